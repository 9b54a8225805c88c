"""Stored results of runs as logs of inspect (the extra `inspect`).

    eval/results.json, eval/samples.jsonl -> logs/<time>_<task>_<run and mode>_<id>.eval

One log per behavior, kind of prompts and ablation mode, as if inspect had evaluated a model
`gradroute/<run>/<mode>` on a task `gradroute/<behavior>/<kind>`. Nothing is generated or scored
again. All ids are computed from what a log is of, so that the same results give the same logs; the
time is that of results.json.
"""

import hashlib
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.config.run_config import load_config
from gradroute.data.behaviors import UNNAMED
from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.report.results.reading import read_runs
from gradroute.report.results.run_results import Rate, Record, RunResults, by_behavior
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.system.files import clear_unfinished, sha256_of, write_bytes, write_failure
from gradroute.system.launcher import own_rank
from gradroute.system.terminal import first_line, say

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample, EvalScore
    from inspect_ai.scorer import Score

OLDEST = "0.3.275"
"""The oldest inspect-ai that the tests passed with; its viewer can be told not to trust texts."""
TESTED = "0.3.285"
"""The newest."""

_OWN = re.compile(r"_gr[0-9a-f]{20}\.eval$")  # how the names of our logs end
_TOO_SHORT = "too short to judge"


@dataclass(frozen=True)
class _Cell:
    """Completions that become one log.

    Attributes:
        run: The run, as one of this behavior alone.
        label: Of the behavior; `all` where the run has one.
        behavior: Its name.
        kind: Of the prompts.
        mode: Under which they were completed.
        rate: The behavior rate.
        samples: The lines of `samples.jsonl`.
    """

    run: RunResults
    label: str
    behavior: str
    kind: str
    mode: str
    rate: Rate
    samples: Sequence[Record]

    @property
    def task(self) -> str:
        """The name of the task."""
        return f"gradroute/{self.behavior}/{self.kind}"

    def model(self, name: str) -> str:
        """What the model is called for a run's name."""
        return f"gradroute/{name}/{self.mode}"

    def score(self, name: str) -> str:
        """What a score is called: with the label where the run has several behaviors."""
        return name if self.label == "all" else f"{name}_{self.label}"


def check_loggable(folders: Sequence[RunFolder]) -> None:
    """See that results of these runs can become logs, before anything is measured.

    Raises:
        ConfigError: A run's config names no behavior.
        MachineError: inspect is not installed, or is another version than is needed.
    """
    try:
        version = metadata.version("inspect-ai")
        import inspect_ai.log  # noqa: F401
    except ImportError as error:  # a package that is not installed is one of these
        raise MachineError(
            f"--log inspect needs {error.name or 'inspect-ai'}: pip install 'gradroute[inspect]'."
        ) from error
    if _numbers(version) < _numbers(OLDEST):
        raise MachineError(
            f"--log inspect needs inspect-ai {OLDEST} or newer, and {version} is installed: "
            "pip install --upgrade 'gradroute[inspect]'."
        )
    for folder in folders:
        if set(load_config(folder.config).behaviors.values()) == {UNNAMED}:
            raise ConfigError(
                f"run {folder.name}: its config names no behavior (behavior: none), so it has no "
                f"completions to log. Name one in {folder.config}, or leave out --log."
            )


def write_logs(folders: Sequence[RunFolder]) -> None:
    """Write everything that is measured of runs' completions into their folders `logs/`.

    Every log is written whole or not at all. Logs of an earlier call are replaced; other files in
    the folder stay. Of several ranks, the first writes.

    Args:
        folders: Runs that are evaluated.

    Raises:
        ConfigError: A run's config names no behavior.
        DataError: No completions are stored, or the results are damaged.
        MachineError: A log cannot be written, or inspect is missing or does not take it.
    """
    if own_rank():
        return
    check_loggable(folders)
    for folder in folders:
        _write_run(folder)


def _write_run(folder: RunFolder) -> None:
    (run,) = read_runs([folder])
    cells = list(_cells(run))
    if not cells:
        reasons = [reason for part in by_behavior([run]) for reason in part.unasked.values()]
        why = "; ".join(dict.fromkeys(reasons))
        raise DataError(
            f"run {folder.name} has no stored completions, so there is nothing to log"
            f"{f' ({why})' if why else ''}. Ask other prompts, as in gradroute eval {folder.path} "
            "--prompts plain --log inspect."
        )
    created = datetime.fromtimestamp(int(folder.results.stat().st_mtime), UTC)
    facts = _facts(run, sha256_of(folder.config))
    with write_lock(folder.path, "writing logs"):
        clear_unfinished(folder.logs)
        written = [_write(folder, cell, created, facts) for cell in cells]
        for path in set(folder.logs.iterdir()) - set(written):
            if _OWN.search(path.name):
                path.unlink()
    logged = {(cell.run.name, cell.kind, cell.mode) for cell in cells}
    rated = [
        (part.name, kind, mode)
        for part in by_behavior([run])
        for mode, cell in part.cells.items()
        for kind in cell.rates
    ]
    if lost := len(set(rated) - logged):
        say(f"{folder.name}: {lost} of {len(rated)} rates have no stored completions, and no log.")
    count = "1 log" if len(written) == 1 else f"{len(written)} logs"
    say(f"{folder.name}: {count}; look at them with: inspect view --log-dir {folder.logs}")


def _cells(run: RunResults) -> Iterator[_Cell]:
    """What has a behavior rate and completions, in the order of the results."""
    several = isinstance(run.config["behavior"], Mapping)
    named = run.config["behavior"] if several else {"all": run.config["behavior"]}
    for (label, behavior), part in zip(named.items(), by_behavior([run]), strict=True):
        lines: dict[tuple[str, str], list[Record]] = {}
        for line in part.samples:
            lines.setdefault((line["mode"], line["prompts"]), []).append(line)
        for mode, cell in part.cells.items():
            for kind, rate in cell.rates.items():
                if found := lines.get((mode, kind)):
                    yield _Cell(part, label, behavior, kind, mode, rate, found)


def _facts(run: RunResults, config_hash: str) -> dict[str, Any]:
    """What holds for all logs of a run: what it was trained and measured with."""
    origin = run.provenance
    return {
        "run": run.name,
        "seed": run.seed,
        "step": run.step,
        "base": run.config["model"],
        "base_identity": run.manifest.get("base"),
        "data_identity": run.manifest.get("data"),
        "config_sha256": config_hash,
        "checkpoint_sha256": origin.get("checkpoint"),
        "evaluate": origin.get("evaluate", {}),
        "versions": origin.get("versions", {}),
        "commit": origin.get("commit"),
        "hardware": origin.get("hardware", {}),
        "trained": run.manifest.get("provenance", {}),
    }


def _log(cell: _Cell, name: str, created: datetime, facts: Mapping[str, Any]) -> "EvalLog":
    """The log of a cell of the run with this name."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats
    from inspect_ai.model import GenerateConfig
    from inspect_ai.viewer import ViewerConfig

    settings = facts["evaluate"]
    scales = dict(AblationMode.parse(cell.mode, tuple(cell.run.config["adapters"])).scales)
    losses = cell.run.cells[cell.mode].loss
    stamp = created.isoformat()
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=_id(cell, name, "eval", stamp),
            run_id=_hash(name, str(cell.run.seed), stamp),
            task_id=_id(cell, name, "task"),
            created=stamp,
            task=cell.task,
            task_args={"behavior": cell.behavior, "prompts": cell.kind},
            dataset=EvalDataset(
                name=cell.kind,
                samples=len(cell.samples),
                sample_ids=[line["prompt_id"] for line in cell.samples],
                shuffled=False,
            ),
            model=cell.model(name),
            model_args=scales,
            model_generate_config=GenerateConfig(
                max_tokens=settings.get("max_new_tokens"),
                temperature=settings.get("temperature"),
                top_p=settings.get("top_p"),
                seed=settings.get("seed"),
            ),
            config=EvalConfig(),
            packages={k: v for k, v in facts["versions"].items() if v and k != "python"},
            tags=[cell.mode, cell.kind],
            viewer=ViewerConfig(trust_content=False),  # texts as text: no Markdown, no links
            metadata={
                **facts,
                "mode": cell.mode,
                "scales": scales,
                "behavior": cell.behavior,
                "label": cell.label,
                "prompts": cell.kind,
                "held_out_loss": {dataset: loss._asdict() for dataset, loss in losses.items()},
            },
        ),
        results=_results(cell),
        stats=EvalStats(started_at=stamp, completed_at=stamp),
        samples=[_sample(cell, name, line, facts) for line in cell.samples],
    )


def _results(cell: _Cell) -> "EvalResults":
    """The numbers of results.json, with their intervals."""
    from inspect_ai.log import EvalResults

    measured, n = cell.run.cells[cell.mode], cell.rate.n
    scores = [_score_of(cell, "shows", _interval("behavior_rate", cell.rate), n, n)]
    mean = measured.scores.get(cell.kind)
    judged = n - measured.unjudged.get(cell.kind, 0)
    scores.append(
        _score_of(cell, "score", {} if mean is None else {"behavior_score": mean}, judged, n)
    )
    if right := measured.accuracy.get(cell.kind):
        scores.append(_score_of(cell, "correct", _interval("accuracy", right), n, n))
    return EvalResults(total_samples=n, completed_samples=n, scores=scores)


def _interval(name: str, rate: Rate) -> dict[str, float]:
    return {name: rate.mean, "lower": rate.lower, "upper": rate.upper}


def _score_of(
    cell: _Cell, name: str, numbers: Mapping[str, float], scored: int, n: int
) -> "EvalScore":
    from inspect_ai.log import EvalMetric, EvalScore

    return EvalScore(
        name=cell.score(name),
        scorer=cell.score(name),
        scored_samples=scored,
        unscored_samples=n - scored,
        metrics={metric: EvalMetric(name=metric, value=value) for metric, value in numbers.items()},
    )


def _sample(cell: _Cell, name: str, line: Record, facts: Mapping[str, Any]) -> "EvalSample":
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ChatMessageUser,
        ModelOutput,
    )

    prompt_id = line["prompt_id"]
    asked = ChatMessageUser(
        id=_id(cell, name, "asked", prompt_id), content=line["prompt"], source="input"
    )
    written = ChatMessageAssistant(
        id=_id(cell, name, "written", prompt_id),
        content=line["completion"],
        source="generate",
        model=cell.model(name),
    )
    choice = ChatCompletionChoice(
        message=written, stop_reason="stop" if line["ended"] else "max_tokens"
    )
    return EvalSample(
        id=prompt_id,
        epoch=1,
        uuid=_id(cell, name, "sample", prompt_id),
        input=line["prompt"],
        target="",
        messages=[asked, written],
        output=ModelOutput(model=cell.model(name), choices=[choice], completion=line["completion"]),
        scores=_scores(cell, line),
        metadata={
            "mode": cell.mode,
            "prompts": cell.kind,
            "prompt_id": prompt_id,
            "label": cell.label,
            "behavior": cell.behavior,
            "seed": facts["seed"],
            "tokens": line["tokens"],
            "ended": line["ended"],
        },
    )


def _scores(cell: _Cell, line: Record) -> "dict[str, Score]":
    """`shows` as the rate counts it, the detector's `score`, and `correct` where it is stored."""
    from inspect_ai.scorer import Score

    score, scored = line["score"], line.get("answer", line["completion"])
    why = _TOO_SHORT if score is None else None
    counted = f"{why}; counts as not shown" if why else None
    # Numbers: the viewer colors `true` green, and a behavior that shows is no success.
    found = {
        "shows": Score(value=int(line["shows"] is True), answer=scored, explanation=counted),
        "score": Score(value=math.nan if score is None else score, explanation=why),
    }
    if "correct" in line:
        found["correct"] = Score(value=int(line["correct"]), answer=scored)
    return {cell.score(name): one for name, one in found.items()}


def _write(folder: RunFolder, cell: _Cell, created: datetime, facts: Mapping[str, Any]) -> Path:
    """Write a cell's log with inspect's own writer, and put it in place as a whole."""
    try:
        from inspect_ai.log import write_eval_log

        log = _log(cell, folder.name, created, facts)
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / "made.eval"
            write_eval_log(log, made)
            content = made.read_bytes()
    except OSError as error:
        path = Path(tempfile.gettempdir())
        raise MachineError(f"{write_failure(path, error, 0)}.") from error
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        version = metadata.version("inspect-ai")
        raise MachineError(
            f"inspect-ai {version} does not take the log of {cell.kind} under {cell.mode} "
            f"({first_line(error)}). gradroute is tested with inspect-ai {TESTED}: "
            f"pip install inspect-ai=={TESTED}."
        ) from error
    spec = log.eval
    parts = (spec.created, spec.task, spec.model.removeprefix("gradroute/"), spec.task_id)
    path = folder.logs / f"{'_'.join(map(_in_file_name, parts))}.eval"
    write_bytes(path, content)
    return path


def _in_file_name(text: str) -> str:
    """A part of a name as inspect itself writes it: `_` separates the parts."""
    return re.sub(r"[^A-Za-z0-9.=+-]+", "-", text).strip("-")[:60]


def _id(cell: _Cell, name: str, *what: str) -> str:
    """An id that is the same for the same run, behavior, kind of prompts and mode."""
    return _hash(name, str(cell.run.seed), cell.label, cell.kind, cell.mode, *what)


def _hash(*parts: str) -> str:
    text = "\0".join(parts)
    return f"gr{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
