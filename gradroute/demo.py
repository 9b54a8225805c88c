"""The reference experiment: five runs that differ in a few settings, and what they show.

Runs are independent, so they are trained and evaluated side by side, each in a process of its
own with one thread; results do not depend on how many run at a time.
"""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path

from gradroute.config import RunConfig, find_config, load_config
from gradroute.errors import Interrupted, MachineError
from gradroute.folders import RunFolder

UNROUTED = ("routing=none", "data.labeled_fraction=0", "data.good_labeled_fraction=0")

# What each run changes in the recipe `caps`: the share of stories in capitals and of those
# labelled are in the names, as in the description this experiment comes from.
CELLS: Mapping[str, tuple[str, ...]] = {
    "baseline": (*UNROUTED, "data.behavior_fraction=0"),
    "0.1_0.0": UNROUTED,
    "0.1_0.5": ("data.labeled_fraction=0.5",),
    "0.1_1.0": ("data.labeled_fraction=1.0",),
    "filter_0.5": (
        "routing=none",
        "data.labeled_fraction=0.5",
        "data.good_labeled_fraction=0",
        "data.drop_labeled_bad=true",
        "adapters.good.rank=64",  # one adapter of the routed runs' total rank
        "adapters.bad=null",
    ),
}
# As many steps as fit into two minutes on one core.
QUICK = {"quick_0.5": ("data.labeled_fraction=0.5", "train.max_steps=300", "evaluate.held_out=128")}


def demo_configs(seed: int, quick: bool) -> list[RunConfig]:
    """The configurations of the demo's runs, in the order in which they are reported."""
    recipe = find_config("caps")
    return [
        load_config(recipe, [f"run_name={name}", f"seed={seed}", *changes])
        for name, changes in (QUICK if quick else CELLS).items()
    ]


def demo(root: Path, *, seed: int, quick: bool, jobs: int | None) -> None:
    """The whole reference experiment, from stories to figure and verdicts.

    Args:
        root: folder of the runs; a seed other than 0 gets a folder `seed-<seed>` in it.
        seed: of data, labels, adapters and order.
        quick: one shorter routed run without its controls, in a folder `quick`.
        jobs: runs at the same time; None for the number of cores.
    """
    place = root if seed == 0 else root / f"seed-{seed}"
    place = place / "quick" if quick else place
    folders = run_cells(demo_configs(seed, quick), place, jobs)
    from gradroute.run import report

    report(folders, place)


def run_cells(configs: list[RunConfig], root: Path, jobs: int | None) -> list[RunFolder]:
    """Train and evaluate every run, `jobs` at a time (the number of cores); finished ones are kept.

    Args:
        configs: the runs.
        root: the folder of the runs.
        jobs: processes at the same time; None for as many as there are cores.

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
        waiting = [pool.submit(_cell, config, root) for config in order]
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


def _cell(config: RunConfig, root: Path) -> None:
    if _stop is not None and _stop.is_set():
        raise Interrupted(f"{config.run_name}: not begun. The same command goes on.")
    from gradroute.run import evaluate_run, train_run

    evaluate_run(train_run(config, root, if_exists="resume", bar=False))
