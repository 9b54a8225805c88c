"""Cells on this machine: a process each, one per core, or per GPU where there are some."""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial

from gradroute.config.run_config import load_config
from gradroute.errors import Interrupted, MachineError
from gradroute.experiments.parallel import Task, for_forks, run_tasks
from gradroute.experiments.sweep.folder import Record, SweepFolder
from gradroute.experiments.sweep.one_cell import record_failure, run_cell
from gradroute.experiments.sweep.state import cell_states, status_text
from gradroute.runs.states import begin_sharing
from gradroute.system.terminal import say

_REDRAWN = 2.0  # seconds between two tables


def run_locally(
    folder: SweepFolder,
    record: Record,
    cells: Sequence[str],
    *,
    jobs: int | None,
    retries: int,
) -> dict[str, Exception]:
    """Run cells until each is finished or has failed.

    Args:
        folder: Of the sweep.
        record: Of the sweep.
        cells: Names of those to run.
        jobs: Cells at the same time; None for as many as there are GPUs, or else cores.
        retries: How often a cell is tried again that was killed or that the machine stopped.

    Returns:
        What stopped each cell that is not finished, by name.

    Raises:
        Interrupted: The sweep was asked to stop; every cell has saved its step.
    """
    at_once, devices = _places(len(cells), jobs)
    failures: dict[str, Exception] = {}
    tries = dict.fromkeys(cells, 0)
    show = _Table(folder, record, at_once)

    def ended(name: str, error: Exception | None) -> bool:
        if error is None:
            show.line(f"{name}: finished.")
            return False
        if not isinstance(error, Interrupted) and not folder.failure(name).is_file():
            record_failure(folder, name, error)  # it was killed, and could not
        tries[name] += 1
        again = may_pass(error) and tries[name] <= retries
        show.line(f"{name}: {'tried again after' if again else 'failed'}: {error}")
        if not again:
            failures[name] = error
        return again

    def watch() -> None:
        if folder.stop.exists():
            raise Interrupted(stopped_text(folder))
        show.redraw()

    if len(record.cells) > 1:
        begin_sharing(folder.path)
    configs = [load_config(folder.cell(name)) for name in cells]
    work = partial(run_cell, folder, evaluate=record.evaluate, log=True)
    tasks = [Task(name, partial(work, name)) for name in cells]
    try:
        forked = for_forks(configs)
        run_tasks(tasks, at_once, ended=ended, watch=watch, devices=devices, forked=forked)
    finally:
        show.redraw(last=True)
    return failures


def _places(cells: int, jobs: int | None) -> tuple[int, list[str]]:
    """How many cells run at a time, and the device of each; more cells than GPUs take turns."""
    devices = visible_devices()
    at_once = min(cells, jobs or len(devices) or os.cpu_count() or 1)
    return at_once, [devices[slot % len(devices)] for slot in range(at_once)] if devices else []


def stopped_text(folder: SweepFolder) -> str:
    """What a sweep says that was asked to stop."""
    return (
        f"{folder.path}: stopped as asked (gradroute sweep stop). Every cell has saved its step; "
        "gradroute sweep run goes on."
    )


def may_pass(error: Exception) -> bool:
    """Whether another try may help: the machine refused, or the process was killed."""
    return isinstance(error, MachineError)


def visible_devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    return names[:count] if names else [str(number) for number in range(count)]


class _Table:
    """The cells on a terminal, drawn again in place; elsewhere a line for each change."""

    def __init__(self, folder: SweepFolder, record: Record, at_once: int) -> None:
        self.folder, self.record, self.at_once = folder, record, at_once
        self.live = sys.stderr.isatty()
        self.drawn, self.lines = 0.0, 0

    def line(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        say(text)

    def redraw(self, last: bool = False) -> None:
        """The table as it is now, where it is time for it."""
        if not last and (not self.live or time.monotonic() < self.drawn + _REDRAWN):
            return
        text = status_text(cell_states(self.folder, self.record), self.at_once)
        self._clear()
        say(text)
        self.drawn = time.monotonic()
        self.lines = 0 if last else text.count("\n") + 1

    def _clear(self) -> None:
        if self.live and self.lines:
            sys.stderr.write(f"\x1b[{self.lines}F\x1b[J")
        self.lines = 0
