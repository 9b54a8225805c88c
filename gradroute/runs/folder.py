"""The place of a run on disk, and its name on the command line.

runs/<name>/  config.yaml · manifest.json · data_report.json · sessions.jsonl · metrics.jsonl
              timings.jsonl · audit.jsonl · training_plot.png · checkpoints/step-000350/ · recover/
              found/ · tracking/ · exports.jsonl
              eval/{results.json, samples.jsonl, losses.jsonl, during.jsonl, geometry.json,
              relearn.json, tasks.json, tasks.jsonl}
runs/.states/ what the runs share, see `gradroute.models.hidden_state_cache`
"""

from dataclasses import dataclass
from pathlib import Path

from gradroute.errors import ConfigError, MachineError


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; a name for each, nothing created until something is written."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: the folder's own."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """The resolved configuration, written before step 1."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """What the run stands on: data and base identity, label counts, versions, notes."""
        return self.path / "manifest.json"

    @property
    def sessions(self) -> Path:
        """One JSON line per start of training and per event in it: what changed, versions."""
        return self.path / "sessions.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step; a function of the config alone."""
        return self.path / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """One JSON line per logged step with seconds; everything that a clock decides."""
        return self.path / "timings.jsonl"

    @property
    def data_report(self) -> Path:
        """The rows of the data files that were skipped: file, line and reason of each."""
        return self.path / "data_report.json"

    @property
    def audit(self) -> Path:
        """One JSON line per audited step: which route every example took."""
        return self.path / "audit.jsonl"

    @property
    def tracking(self) -> Path:
        """What `train.report_to` writes for looking at; nothing depends on it."""
        return self.path / "tracking"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """The result rows of the evaluation."""
        return self.path / "eval" / "results.json"

    @property
    def samples(self) -> Path:
        """Every completion that a behavior rate counts."""
        return self.path / "eval" / "samples.jsonl"

    @property
    def measures(self) -> Path:
        """Behavior rate and normal loss measured during training, one line per step and mode."""
        return self.path / "eval" / "during.jsonl"

    @property
    def geometry(self) -> Path:
        """How the updates of the adapters lie to each other, module by module."""
        return self.path / "eval" / "geometry.json"

    @property
    def relearn(self) -> Path:
        """How many steps of fine-tuning bring the behavior back."""
        return self.path / "eval" / "relearn.json"

    @property
    def tasks(self) -> Path:
        """Results of standard tasks."""
        return self.path / "eval" / "tasks.json"

    @property
    def task_documents(self) -> Path:
        """What each document of a standard task gave, under every mode."""
        return self.path / "eval" / "tasks.jsonl"

    @property
    def recovery(self) -> Path:
        """What a short tune of the kept adapters did: a checkpoint and its results."""
        return self.path / "recover"

    @property
    def found(self) -> Path:
        """What `find` says of unlabeled examples: a summary, scores and the rows it found."""
        return self.path / "found"

    @property
    def exports(self) -> Path:
        """One JSON line per export and audit adapter: where it was written, which adapters."""
        return self.path / "exports.jsonl"

    @property
    def training_plot(self) -> Path:
        """The training curves as a picture."""
        return self.path / "training_plot.png"

    @property
    def losses(self) -> Path:
        """Summed loss and target tokens of every held-out example."""
        return self.path / "eval" / "losses.jsonl"

    def check_there(self) -> None:
        """See that the run still is where it was, before results are put into a folder anew.

        Raises:
            MachineError: it was removed or moved meanwhile.
        """
        if not self.path.is_dir():
            raise MachineError(
                f"run folder {self.path} was removed or moved while it was written to; nothing is "
                "written in its place."
            )


def find_run(name: str, root: Path) -> RunFolder:
    """The run that a command line names: a folder, or a name under `root`.

    Raises:
        ConfigError: there is no such run; the message lists those that are there.
    """
    for path in (Path(name), root / name):
        if (path / "config.yaml").is_file():
            return RunFolder(path)
    found = sorted(folder.parent.name for folder in root.glob("*/config.yaml"))
    there = f"Runs there: {', '.join(found)}." if found else "There are no runs there yet."
    raise ConfigError(f"no run '{name}' as a folder or under {root}/. {there}")
