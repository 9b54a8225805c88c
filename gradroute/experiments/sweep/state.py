"""The state of a sweep's cells, read from their run folders: no database, no torch.

finished   every run is trained, and measured where that is wanted
running    somebody writes to one of its runs
failed     it ended with an error when it was last tried
partly     something is there
absent     nothing is
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

from gradroute.errors import DataError
from gradroute.experiments.sweep.folder import Record, RecordedCell, RunOfCell, SweepFolder
from gradroute.report.render.table_cells import aligned
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import in_use
from gradroute.runs.results import HELD_OUT_BAD, PREFIX, read_results
from gradroute.system.files import read_json, read_lines

_RECENT = 50  # steps whose seconds tell how long the next ones take
_CHECKPOINT = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True)
class CellState:
    """How far a cell is.

    Attributes:
        name: Of the cell.
        state: See the module.
        step: Steps done, of all its runs.
        steps: Steps in all.
        seconds: Of a step, lately; None where nothing was timed yet.
        rate: Behavior rate so far of the cell's own run as it would ship; None where not measured.
        why: Of a failed cell, the error.
    """

    name: str
    state: str
    step: int
    steps: int
    seconds: float | None
    rate: float | None
    why: str = ""

    @property
    def left(self) -> float | None:
        """Seconds until its steps are done; None where nobody knows."""
        return None if self.seconds is None else (self.steps - self.step) * self.seconds


def cell_states(folder: SweepFolder, record: Record) -> list[CellState]:
    """The state of every cell, in order."""
    return [_state(folder, cell, record.evaluate) for cell in record.cells]


def finished(folder: SweepFolder, cell: RecordedCell, evaluate: bool) -> bool:
    """Whether every run of a cell is trained, and measured where that is wanted."""
    return all(
        _saved(folder.run(run.name)) >= run.steps
        and (not (evaluate and run.measured) or folder.run(run.name).results.is_file())
        for run in cell.runs
    )


def status_text(states: Sequence[CellState], at_once: int) -> str:
    """A table of the cells, and a line on all of them.

    Args:
        states: Of the cells.
        at_once: Cells at the same time, for the time that is left.
    """
    rows = [["cell", "state", "step", "left", "rate so far"]]
    for one in states:
        left = one.left if one.state != "finished" else None
        rows.append(
            [
                one.name,
                one.state,
                f"{one.step}/{one.steps}",
                "" if left is None else duration(left),
                "" if one.rate is None else f"{100 * one.rate:.0f} %",
            ]
        )
    lines = [aligned(rows, [True, True, False, False, False])]
    lines += [f"{one.name}: {one.why}" for one in states if one.why]
    return "\n".join([*lines, summary(states, at_once)])


def summary(states: Sequence[CellState], at_once: int) -> str:
    """How many cells are in which state, and how long the rest takes."""
    counts = {name: sum(one.state == name for one in states) for name in _STATES}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    seconds = [one.seconds for one in states if one.seconds is not None]
    left = sum(
        (one.steps - one.step) * (one.seconds if one.seconds is not None else median(seconds))
        for one in states
        if seconds
    )
    rest = f"; about {duration(left / at_once)} of training left" if left else ""
    return f"{cells_text(len(states))}: {told}{rest}."


_STATES = ("finished", "running", "failed", "partly", "absent")


def cells_text(count: int) -> str:
    """How many cells."""
    return f"{count} cell{'s' if count != 1 else ''}"


def duration(seconds: float) -> str:
    """A time as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))


def _state(folder: SweepFolder, cell: RecordedCell, evaluate: bool) -> CellState:
    runs = [folder.run(run.name) for run in cell.runs]
    steps = [_steps(run, of) for run, of in zip(runs, cell.runs, strict=True)]
    running = any(in_use(run.path) for run in runs)
    why = ""
    if not running and finished(folder, cell, evaluate):
        state = "finished"
    elif running:
        state = "running"
    elif folder.failure(cell.name).is_file():
        state, why = "failed", failure_text(folder, cell.name)
    else:
        state = "partly" if any(run.path.is_dir() for run in runs) else "absent"
    timed = [second for run in runs for second in _seconds(run)]
    return CellState(
        name=cell.name,
        state=state,
        step=sum(steps),
        steps=sum(run.steps for run in cell.runs),
        seconds=median(timed[-_RECENT:]) if timed else None,
        rate=_rate(runs[0], cell.mode),
        why=why,
    )


def failure_text(folder: SweepFolder, name: str) -> str:
    """Why a cell failed when it was last tried; empty where it did not."""
    path = folder.failure(name)
    try:
        return str(read_json(path)["message"]) if path.is_file() else ""
    except (DataError, KeyError, TypeError):
        return "its error cannot be read."


def _saved(run: RunFolder) -> int:
    """Steps of the newest checkpoint; 0 without one."""
    if not run.checkpoints.is_dir():
        return 0
    found = (_CHECKPOINT.fullmatch(path.name) for path in run.checkpoints.iterdir())
    return max((int(match[1]) for match in found if match), default=0)


def _steps(run: RunFolder, of: RunOfCell) -> int:
    """Steps done: those of the lines while it is trained, those saved afterwards."""
    logged = max((line["step"] for line in _lines(run.metrics) if "step" in line), default=0)
    return min(max(logged, _saved(run)), of.steps)


def _seconds(run: RunFolder) -> list[float]:
    return [line["step_seconds"] for line in _lines(run.timings) if "step_seconds" in line]


def _rate(run: RunFolder, mode: str) -> float | None:
    """The behavior rate under a mode: of the evaluation, else the newest during training."""
    if run.results.is_file():
        try:
            rows, _ = read_results(run.results)
        except DataError:
            return None
        rates = {
            row.dataset: row.value
            for row in rows
            if row.metric == "behavior_rate" and row.mode == mode
        }
        return rates.get(PREFIX, rates.get(HELD_OUT_BAD))
    lines = [line for line in _lines(run.measures) if line.get("mode") == mode]
    return lines[-1].get("behavior_rate") if lines else None


def _lines(path: Any) -> Iterator[dict[str, Any]]:
    """The lines of a file that may be written to at this moment."""
    try:
        yield from read_lines(path)
    except (DataError, OSError):
        return
