"""One cell, whoever starts it: its run and controls trained, then measured, on one thread.

One thread, so that every back end gives the same bits. Whatever was done before goes on, so a cell
may be killed and started again at any moment.
"""

import os
import time
import traceback
from datetime import UTC, datetime

from gradroute.config.libraries import Libraries
from gradroute.config.run_config import load_config
from gradroute.errors import GradrouteError, Interrupted, MachineError
from gradroute.experiments.sweep.folder import SweepFolder
from gradroute.experiments.sweep.state import failure_text
from gradroute.runs.lock import in_use
from gradroute.system.files import make_folder, remove, write_json
from gradroute.system.secrets import without_hub_code
from gradroute.system.terminal import first_line, say

_LEFT_WITHIN = 60.0  # seconds


def run_cell(folder: SweepFolder, name: str, *, evaluate: bool, log: bool) -> None:
    """Train and measure one cell, or go on with it.

    Args:
        folder: Of the sweep.
        name: Of the cell.
        evaluate: Measure its runs.
        log: Send what this process says to the cell's log from now on.

    Raises:
        GradrouteError: Whatever stops it; it is kept as the cell's failure, too.
    """
    if log:
        _say_into_log(folder, name)
    without_hub_code()
    _wait_for_the_last(folder, name)
    remove(folder.failure(name))
    try:
        _train_and_measure(folder, name, evaluate)
    except Interrupted:
        raise
    except Exception as error:
        if log:
            say(traceback.format_exc().rstrip())
        record_failure(folder, name, error)
        raise


def _wait_for_the_last(folder: SweepFolder, name: str) -> None:
    """Give a process that was left behind by a killed sweep the time to save its step and end."""
    until = time.monotonic() + _LEFT_WITHIN
    config = load_config(folder.cell(name))
    runs = [name, *(f"{name}-{control}" for control in config.controls or ())]
    while any(in_use(folder.run(run).path) for run in runs) and time.monotonic() < until:
        time.sleep(0.2)


def record_failure(folder: SweepFolder, name: str, error: Exception) -> None:
    """Keep why a cell failed."""
    message = str(error) if isinstance(error, GradrouteError) else first_line(error)
    told = {
        "error": type(error).__name__,
        "message": message,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.failure(name), told)


def failure_of(folder: SweepFolder, name: str, code: int) -> Exception:
    """The error of a cell whose process has ended, from its exit code; kept where it was killed."""
    kinds = {kind.exit_code: kind for kind in GradrouteError.__subclasses__()}
    if code in kinds or code == 1:
        message = failure_text(folder, name) or f"it ended with {code}; see {folder.log(name)}"
        return kinds.get(code, GradrouteError)(message)
    error = MachineError(f"its process was killed (exit code {code}), perhaps for memory.")
    record_failure(folder, name, error)
    return error


def _train_and_measure(folder: SweepFolder, name: str, evaluate: bool) -> None:
    config = load_config(folder.cell(name))
    with Libraries.of(config):
        import torch

        from gradroute.experiments.controls import train_with_controls
        from gradroute.run import evaluate_run

    torch.set_num_threads(1)
    runs = train_with_controls(config, folder.path, if_exists="resume", bar=False, jobs=1)
    if evaluate:
        for run in runs:
            evaluate_run(run)


def _say_into_log(folder: SweepFolder, name: str) -> None:
    """Standard output and error of this process go to the end of the cell's log."""
    path = folder.log(name)
    make_folder(path.parent)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
