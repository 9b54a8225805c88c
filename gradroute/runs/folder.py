"""The place of a run on disk, and its name on the command line.

runs/<name>/  config.yaml · manifest.json · data_report.json · sessions.jsonl · metrics.jsonl
              timings.jsonl · audit.jsonl · training_plot.png · checkpoints/step-000350/ · recover/
              found/ · tracking/ · logs/ · pins.jsonl · exports.jsonl
              eval/{results.json, samples.jsonl, losses.jsonl, during.jsonl, geometry.json,
              relearn.json, tasks.json, tasks.jsonl}
runs/.states/ hidden states that runs share, see `gradroute.runs.states`
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradroute.errors import ConfigError, MachineError
from gradroute.system.terminal import say


class _Within:
    """A place inside a run's folder, as a path."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __get__(self, folder: "RunFolder", _: object) -> Path:
        return folder.path / self.place


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; a name for each, nothing created until something is written."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: the folder's own."""
        return self.path.resolve().name

    config = _Within("config.yaml")
    """The resolved configuration, written before step 1."""
    manifest = _Within("manifest.json")
    """What the run stands on: data and base identity, label counts, versions, notes."""
    sessions = _Within("sessions.jsonl")
    """One JSON line per start of training and per event in it: what changed, versions."""
    metrics = _Within("metrics.jsonl")
    """One JSON line per logged step; a function of the config alone."""
    timings = _Within("timings.jsonl")
    """One JSON line per logged step with seconds; everything that a clock decides."""
    data_report = _Within("data_report.json")
    """The rows of the data files that were skipped: file, line and reason of each."""
    audit = _Within("audit.jsonl")
    """One JSON line per audited step: which route every example took."""
    tracking = _Within("tracking")
    """What `train.report_to` writes for looking at; nothing depends on it."""
    checkpoints = _Within("checkpoints")
    """One folder per checkpoint."""
    results = _Within("eval/results.json")
    """The result rows of the evaluation."""
    samples = _Within("eval/samples.jsonl")
    """Every completion that a behavior rate counts."""
    measures = _Within("eval/during.jsonl")
    """Behavior rate and normal loss measured during training, one line per step and mode."""
    geometry = _Within("eval/geometry.json")
    """How the updates of the adapters lie to each other, module by module."""
    relearn = _Within("eval/relearn.json")
    """How many steps of fine-tuning bring the behavior back."""
    tasks = _Within("eval/tasks.json")
    """Results of standard tasks."""
    task_documents = _Within("eval/tasks.jsonl")
    """What each document of a standard task gave, under every mode."""
    recovery = _Within("recover")
    """What a short tune of the kept adapters did: a checkpoint and its results."""
    logs = _Within("logs")
    """What is measured as logs of inspect; nothing depends on them."""
    found = _Within("found")
    """What `find` says of unlabeled examples: a summary, scores and the rows it found."""
    pins = _Within("pins.jsonl")
    """One JSON line per pin of `playground`: a prompt and what was written after it."""
    exports = _Within("exports.jsonl")
    """One JSON line per export and audit adapter: where it was written, which adapters."""
    training_plot = _Within("training_plot.png")
    """The training curves as a picture."""
    losses = _Within("eval/losses.jsonl")
    """Summed loss and target tokens of every held-out example."""

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
    there = (
        f"Runs there: {', '.join(found)}."
        if found
        else "There are no runs there yet: train one (gradroute train), or name the folder of the "
        "runs with --runs."
    )
    what = f"no run '{name}' as a folder or under {root}/."
    if Path(name).is_dir():
        what = f"'{name}' is a folder without a run: it has no config.yaml."
    raise ConfigError(f"{what} {there}")


def distinct_names(folders: Sequence[RunFolder], seeds: Sequence[int]) -> list[str]:
    """What runs are called beside each other: their names, with the seed where several have one.

    Raises:
        ConfigError: Two runs of one name have the same seed.
    """
    times = Counter(folder.name for folder in folders)
    names = [
        folder.name if times[folder.name] == 1 else f"{folder.name}@{seed}"
        for folder, seed in zip(folders, seeds, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two of the runs have the same name ({', '.join(names)}), so that one would hide the "
            "other. Give runs of different names or seeds."
        )
    return names


def move_aside(folder: RunFolder) -> None:
    """Rename a run's folder, if it is there, to `<name>.old-<number>`, and say so.

    Raises:
        MachineError: It cannot be renamed.
    """
    if not folder.path.exists():
        return
    number = 1
    while (aside := folder.path.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    try:
        folder.path.rename(aside)
    except OSError as error:
        raise MachineError(f"cannot move {folder.path} to {aside}: {error.strerror}.") from error
    say(f"{folder.name}: the earlier run is now {aside}.")
