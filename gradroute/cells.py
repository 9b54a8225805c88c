"""Several runs at a time, each in a process of its own with one thread.

Runs are independent, so results do not depend on how many run at a time.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path

from gradroute.config import RunConfig
from gradroute.errors import Interrupted, MachineError
from gradroute.folders import RunFolder


def run_cells(
    configs: Sequence[RunConfig], root: Path, jobs: int | None, *, if_exists: str, evaluate: bool
) -> list[RunFolder]:
    """Train and evaluate every run, `jobs` at a time (the number of cores).

    Args:
        configs: the runs.
        root: the folder of the runs.
        jobs: processes at the same time; None for as many as there are cores.
        if_exists: what a run folder that is there means, see `train_run`.
        evaluate: measure each run as soon as it is trained.

    Returns:
        The run folders, in the order of `configs`.
    """
    workers = min(len(configs), jobs or os.cpu_count() or 1)
    # Longest first: routed runs take a little longer than the others.
    order = sorted(configs, key=lambda config: config.routing == "none")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (stop,)) as pool:
        # A Ctrl-C reaches every process. Workers are born deaf to it: training listens for it by
        # itself, and everything else is stopped from here.
        listening = signal.signal(signal.SIGINT, signal.SIG_IGN)
        waiting = [pool.submit(_cell, one, root, if_exists, evaluate) for one in order]
        signal.signal(signal.SIGINT, listening)
        try:
            for done in as_completed(waiting):
                done.result()
        except BrokenProcessPool as error:
            raise MachineError(
                "a run's process was ended from outside, perhaps for want of memory. The same "
                "command goes on; --jobs 1 needs the least memory."
            ) from error
        except BaseException:
            stop.set()  # for runs that a worker has taken but not begun
            for worker in multiprocessing.active_children():
                worker.terminate()  # training finishes its step and saves
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [RunFolder(root / config.run_name) for config in configs]


def _start_worker(stop: Event) -> None:
    import torch

    torch.set_num_threads(1)
    global _stop
    _stop = stop


_stop: Event | None = None  # of the pool that this worker process belongs to


def _cell(config: RunConfig, root: Path, if_exists: str, evaluate: bool) -> None:
    if _stop is not None and _stop.is_set():
        raise Interrupted(f"{config.run_name}: not begun. The same command goes on.")
    from gradroute.run import evaluate_run, train_run

    folder = train_run(config, root, if_exists=if_exists, bar=False)
    if evaluate:
        evaluate_run(folder)
