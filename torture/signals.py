"""SIGTERM, SIGUSR1 and SIGINT at random points: the run saves and ends with 75; again goes on.

Signals fall before training, between and inside the forward passes of a step, into saves and into
the evaluation. Some are followed by a second SIGINT, some by SIGKILL, before the run had its time.
"""

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.forks import Child, Server, serving
from torture.runs import (
    NAME,
    OUTSIDE,
    Quiet,
    broken,
    lay,
    lines,
    moment,
    quiet_runs,
    signs,
    start,
    steps_done,
    unequal,
)

MOST = 3
"""Signals to one run, at most."""
KINDS = {"time": 35, "step": 30, "save": 10, "resume": 10, "evaluation": 15}
ASKED = 75
"""The exit code of a run that was asked to stop."""


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Send `count` SIGTERMs, and a tenth as many of each of the others, one to three per run.

    Returns:
        Counts, and what failed as sentences: how many of each signal; how many ended with 75
        (`asked`), had `finished` in the meantime, or were reached `outside` of a command, before or
        between them; where they fell; `differing_finals` runs ended otherwise than an undisturbed
        one; `longest_stop` is the seconds from signal to end.
    """
    draw = random.Random(f"signals {seed}")
    few = -(-count // 10)
    wanted = ["SIGTERM"] * count + ["SIGUSR1"] * few + ["SIGINT"] * few + ["SIGINT twice"] * few
    draw.shuffle(wanted)
    tally = _Tally()
    with serving() as server:
        ground = lay(folder / "ground")
        quiet = quiet_runs(server, ground, 6 if count >= 50 else 2)
        while wanted:
            root = folder / f"run-{tally.counts['runs']}"
            _one_run(server, draw.choice(quiet), root, wanted, draw, tally)
    return tally.outcome()


@dataclass
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    longest_stop: float = 0.0
    failures: list[str] = field(default_factory=list)

    def outcome(self) -> dict[str, Any]:
        named = (
            "trials",
            "runs",
            "SIGTERM",
            "SIGUSR1",
            "SIGINT",
            "SIGINT twice",
            "killed_after",
            "asked",
            "finished",
            "outside",
            "in_preparation",
            "in_training",
            "in_evaluation",
            "damaged",
            "differing_finals",
        )
        return {
            **{name: self.counts[name] for name in named},
            "longest_stop": round(self.longest_stop, 2),
            "failures": self.failures,
        }


def _one_run(
    server: Server,
    quiet: Quiet,
    root: Path,
    wanted: list[str],
    draw: random.Random,
    tally: _Tally,
) -> None:
    """Interrupt one run some times, let it finish, and compare; takes signals from `wanted`."""
    run, asked = root / "runs" / NAME, lines(quiet.config)
    tally.counts["runs"] += 1
    story: list[str] = []
    for _ in range(min(draw.randint(1, MOST), len(wanted))):
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        child = start(server, asked, root)
        if not moment(kind, child, signs(run), quiet.seconds, draw):
            break
        which = wanted[-1]
        phase = _phase(child.said)
        _interrupt(child, which, draw, tally, f"{root.name} of {quiet.config.stem}")
        wanted.pop()
        tally.counts["trials"] += 1
        tally.counts[which] += 1
        tally.counts[f"in_{phase}"] += 1
        story.append(f"{which} in {phase} at step {steps_done(run)} ({child.code})")
        if harmed := broken(run):
            tally.counts["damaged"] += 1
            tally.failures.append(f"{root.name}, {story[-1]}: {'; '.join(harmed)}.")
    child = start(server, asked, root)
    what = f"{root.name} of {quiet.config.stem}, {', '.join(story) or 'undisturbed'}"
    if child.wait():
        tally.failures.append(f"{what}: ended with {child.code}: {child.said[-300:]}")
    elif different := unequal(run, quiet.finals):
        tally.counts["differing_finals"] += 1
        tally.failures.append(f"{what}: differs in {', '.join(different)}.")


def _phase(said: str) -> str:
    if ": measuring " in said:
        return "evaluation"
    return "training" if " steps on " in said else "preparation"


def _interrupt(child: Child, which: str, draw: random.Random, tally: _Tally, what: str) -> None:
    """Send the signal, wait for the end, and count how it came."""
    number = signal.Signals[which.split()[0]]
    began, heard = time.monotonic(), bool(child.said)
    child.send(number)
    killed = which == "SIGTERM" and draw.random() < 0.25
    if killed:
        time.sleep(draw.uniform(0, 0.08))
        killed = child.alive
        child.kill()
    elif which == "SIGINT twice":
        time.sleep(draw.uniform(0, 0.04))
        child.send(number)
    code = child.wait()
    tally.longest_stop = max(tally.longest_stop, time.monotonic() - began)
    if killed and code == -signal.SIGKILL:
        tally.counts["killed_after"] += 1
    elif code == ASKED:
        tally.counts["asked"] += 1
        if "error: " not in child.said or "Traceback" in child.said:
            tally.failures.append(f"{what}: {which} is not explained: {child.said[-300:]}")
    elif code == 0:
        tally.counts["finished"] += 1
    elif code == OUTSIDE or (code == -number and not heard):
        tally.counts["outside"] += 1
    else:
        tally.failures.append(f"{what}: {which} ended it with {code}: {child.said[-300:]}")
