"""Several runs at a time: when the process that started them goes, none of theirs stays.

A parent that is killed cannot tell its workers; they notice by themselves. One that is asked to
stop asks them, and they save.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from torture.forks import Child, Server, serving
from torture.runs import NAME, broken, lay, standing, steps_done, until

GRACE = 2.0
"""Seconds after which no process should be left."""
PATIENCE = 300.0
"""Seconds after which one that is left is taken to stay."""
RUNS = (NAME, f"{NAME}-none")
LONG = {"train.max_steps": 100_000, "train.save_every": 50}


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill the parent of two runs, or ask it to stop by turns, `count` times.

    Returns:
        Counts, and what failed as sentences: `killed` and `asked` parents, the `processes` that
        they had started; those that were `alive_after_2_s`, and those that `stayed`.
    """
    draw = random.Random(f"orphans {seed}")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with serving() as server:
        config = lay(folder / "ground").config(LONG, "config")
        asked = [["train", str(config), "controls=[none]", "--jobs", "2"]]
        for number in range(count):
            judge = _asked if number % 2 else _killed
            failures += _one(server, asked, folder / f"run-{number}", judge, draw, counts)
            counts["trials"] += 1
    named = ("trials", "killed", "asked", "processes", "alive_after_2_s", "stayed")
    return {**{name: counts[name] for name in named}, "failures": failures}


Judge = Callable[[Child, Path], list[str]]


def _one(
    server: Server,
    asked: list[list[str]],
    root: Path,
    judge: Judge,
    draw: random.Random,
    counts: Counter[str],
) -> list[str]:
    """Start two runs, wait until both train, and do something to their parent; what failed."""
    runs = root / "runs"
    child = server.start("torture.runs:command", {"lines": asked}, root, leave=True)
    more = draw.randint(1, 20)
    if not until(child, lambda: all(steps_done(runs / name) >= more for name in RUNS)):
        return [f"two runs at a time ended with {child.wait()}: {child.said[-600:]}"]
    family = psutil.Process(child.pid).children(recursive=True)
    try:
        wrong = judge(child, runs)
        counts[judge.__name__.removeprefix("_")] += 1
        counts["processes"] += len(family)
        wrong += _gone(family, counts)
        for name in RUNS:
            wrong += [f"{name}: {harm}" for harm in broken(runs / name)]
        return wrong
    finally:
        for process in _alive(family):
            process.kill()


def _killed(child: Child, runs: Path) -> list[str]:
    child.send(signal.SIGKILL)
    child.wait()
    return []


def _asked(child: Child, runs: Path) -> list[str]:
    child.send(signal.SIGTERM)
    wrong = [] if child.wait() == 75 else [f"ended with {child.code}: {child.said[-600:]}"]
    for name in RUNS:
        found = standing(runs / name)
        if found.newest != found.done:
            wrong.append(f"{name} has {found.done} steps, and {found.newest} in its checkpoint.")
    return wrong


def _gone(family: list[psutil.Process], counts: Counter[str]) -> list[str]:
    """Wait until no process is left; those that stay."""
    ended, late = time.monotonic(), False
    while (left := _alive(family)) and time.monotonic() < ended + PATIENCE:
        if not late and time.monotonic() > ended + GRACE:
            counts["alive_after_2_s"] += len(left)
            late = True
        time.sleep(0.02)
    counts["stayed"] += len(left)
    names = [" ".join(process.cmdline()[-2:])[:80] for process in left]
    return [f"{PATIENCE:g} s after the parent's end there are {names}."] if left else []


def _alive(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run still; one that has ended and was not waited for is not among them."""
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
