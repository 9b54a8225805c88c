"""A grid of runs on this machine and on Ray; its driver is killed twice, and the command goes on.

Cells that were finished stay, the others go on from their checkpoints, and every cell ends with
what a run that nobody disturbed ends with, whatever ran it.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from gradroute.experiments.sweep.cells import read_sweep
from gradroute.run import train_run
from torture.runs import finals, lay

BACKENDS = ("local", "ray")
KILLS = ((0.1, 0.35), (0.45, 0.75))
"""Shares of all steps between which the driver is killed, once each."""
GRACE = 120.0
"""Seconds after which no process of a killed driver should be left; servers of Ray take 64."""
STEPS, SAVE_EVERY = 60, 7


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run a grid of `count` cells (six or more) by each back end.

    Returns:
        Counts, and what failed as sentences: cells `finished` by each back end, those finished
        `before` the last kill, `kills` of drivers, `processes` that they had started, those that
        `stayed`, finished cells that were `redone`, and cells whose finals are `unequal` to an
        undisturbed run's.
    """
    draw = random.Random(f"sweeps {seed}")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    ground = lay(folder / "ground")
    steps = {"train.max_steps": STEPS, "train.save_every": SAVE_EVERY}
    file = _grid(folder, ground.config(steps, "recipe"), max(1, count // 6))
    cells = read_sweep(file).cells
    quiet = {
        cell.name: finals(train_run(cell.config, folder / "quiet", if_exists="new", bar=False).path)
        for cell in cells
    }
    seconds: dict[str, float] = {}
    for backend in BACKENDS:
        began = time.monotonic()
        runs = folder / backend / "grid"
        ready: dict[Path, int] = {}
        left: list[psutil.Process] = []
        for low, high in KILLS:
            steps_then = draw.uniform(low, high) * STEPS * len(cells)
            left += _killed(folder, backend, steps_then, failures)
            ready = {path: path.stat().st_mtime_ns for path in _finished(runs)} | ready
            counts[f"finished_before_{backend}"] = len(ready)
            counts["kills"] += 1
        last = _start(folder, backend)  # at once: what was left behind is still about to end
        said = last.communicate()[1]
        if last.returncode:
            failures.append(f"{backend}: ended with {last.returncode}: {said[-600:]}")
        _, stayed = psutil.wait_procs(left, timeout=GRACE)
        counts["processes"] += len(left)
        counts["stayed"] += len(stayed)
        failures += [f"{backend}: {one} stayed after the driver was killed." for one in stayed]
        for one in stayed:
            one.kill()
        again = [path for path, when in ready.items() if path.stat().st_mtime_ns != when]
        counts["redone"] += len(again)
        failures += [f"{backend}: {path} was written again." for path in again]
        for name, wanted in quiet.items():
            found = finals(runs / name)
            counts[f"finished_{backend}"] += found.get("step") == wanted["step"]
            if found != wanted:
                counts["unequal"] += 1
                failures.append(f"{backend}: {name} ended otherwise than undisturbed.")
        seconds[f"seconds_{backend}"] = round(time.monotonic() - began, 1)
    named = ("kills", "processes", "stayed", "redone", "unequal")
    ended = {
        name: counts[name]
        for backend in BACKENDS
        for name in (f"finished_before_{backend}", f"finished_{backend}")
    }
    found = {"trials": len(cells), **ended, **{name: counts[name] for name in named}}
    return {**found, **seconds, "failures": failures}


def _grid(folder: Path, recipe: Path, seeds: int) -> Path:
    """A file of six cells for each seed."""
    file = folder / "grid.yaml"
    file.write_text(
        f"recipe: {recipe}\nevaluate: false\n"
        "axes:\n  train.learning_rate: [0.01, 0.02, 0.005]\n  data.labeled_fraction: [0.3, 0.6]\n"
        f"seeds: {list(range(seeds))}\n",
        encoding="utf-8",
    )
    return file


def _start(folder: Path, backend: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradroute", "sweep", "run", str(folder / "grid.yaml")]
    command += ["--runs", str(folder / backend), "--backend", backend, "--jobs", "2"]
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def _killed(folder: Path, backend: str, steps: float, failures: list[str]) -> list[psutil.Process]:
    """Kill a sweep's driver once so many steps are done in all; the processes that it had."""
    runs = folder / backend / "grid"
    driver = _start(folder, backend)
    while _done(runs) < steps:
        if driver.poll() is not None:
            said = driver.communicate()[1]
            failures.append(
                f"{backend}: ended with {driver.returncode} before the kill: {said[-600:]}"
            )
            return []
        time.sleep(0.05)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    return family


def _done(runs: Path) -> int:
    """Steps of all cells together."""
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/metrics.jsonl"))


def _finished(runs: Path) -> list[Path]:
    """The newest checkpoints' folders of cells that are finished."""
    return list(runs.glob(f"*/checkpoints/step-{STEPS:06d}"))
