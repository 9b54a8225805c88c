"""SIGKILL at random points, and the same command again until it has finished.

Two adapters, dropout and accumulation on. The kills fall into training, saves, resumes and the
evaluation; afterwards everything must be equal, byte by byte, to what an undisturbed run leaves.
"""

import math
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.forks import Server, serving
from torture.runs import (
    EPOCH,
    NAME,
    Quiet,
    broken,
    lay,
    lines,
    moment,
    quiet_runs,
    saving,
    sha256,
    signs,
    standing,
    start,
    unequal,
    until,
)

MOST = 5
"""Kills of one run, at most."""
IN_SAVE = 0.15
"""Share of the kills that fall into a save, at least."""
# Saves are a small part of a run's time, and the part where most can go wrong.
KINDS = {"save": 35, "time": 25, "step": 15, "resume": 13, "evaluation": 12}

# What is done to a finished run: in place, so that a part of it must not pass for the whole.
AFTERWARDS = (
    ["recover", NAME, "--steps", "6"],
    ["geometry", NAME],
    ["report", NAME],
    ["plot", NAME],
)


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill `count` times, one to five times per run.

    Returns:
        Counts, and what failed as sentences: `trials` kills over `runs` runs; `in_save` of them
        left a half-written checkpoint, `in_evaluation` fell on a run that had been trained,
        `in_resume` on one that had not made a step since it went on. `lost` runs did not finish,
        `manual_steps` restarts did not go on by themselves, `differing_finals` runs ended otherwise
        than the undisturbed one, `went_backwards` kills cost a checkpoint that had verified. A
        tenth as many kills came `afterwards`, while something was done to a finished run.
    """
    draw = random.Random(f"kills {seed}")
    tally = _Tally(count)
    with serving() as server:
        ground = lay(folder / "ground")
        quiet = quiet_runs(server, ground, 6 if count >= 50 else 2)
        while tally.counts["trials"] < count:
            root = folder / f"run-{tally.counts['runs']}"
            wanted = min(draw.randint(1, MOST), count - tally.counts["trials"])
            _one_run(server, draw.choice(quiet), root, wanted, draw, tally)
        whole = ground.folder / "quiet-0"
        for number in range(max(1, count // 10)):
            _afterwards(server, whole, folder / f"after-{number}", number, draw, tally)
    return tally.outcome()


@dataclass
class _Tally:
    wanted: int
    counts: Counter[str] = field(default_factory=Counter)
    most_steps_redone: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def saves_are_due(self) -> bool:
        """Whether every kill that is left must fall into a save, or nearly."""
        missing = math.ceil(IN_SAVE * self.wanted) - self.counts["in_save"]
        return missing > 0 and self.wanted - self.counts["trials"] <= 2 * missing

    def outcome(self) -> dict[str, Any]:
        named = (
            "trials",
            "runs",
            "in_save",
            "in_evaluation",
            "in_resume",
            "again_in_an_epoch",
            "afterwards",
            "lost",
            "manual_steps",
            "differing_finals",
            "went_backwards",
            "damaged",
            "left_behind",
        )
        return {
            **{name: self.counts[name] for name in named},
            "most_steps_redone": self.most_steps_redone,
            "failures": self.failures,
        }


def _one_run(
    server: Server, quiet: Quiet, root: Path, wanted: int, draw: random.Random, tally: _Tally
) -> None:
    """Kill one run `wanted` times, let it finish, and compare."""
    run, asked = root / "runs" / NAME, lines(quiet.config)
    story, newest, resumed_from = [], 0, [-EPOCH]
    tally.counts["runs"] += 1
    killed = 0
    while killed < wanted:
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        if tally.saves_are_due:
            kind = "save at once"
        child = start(server, asked, root)
        if not moment(kind, child, signs(run), quiet.seconds, draw):
            child.wait()
            break  # it has finished, or the last start, below, says why not
        was_saving = saving(run)
        child.kill()
        if child.code == 0:
            break
        killed += 1
        found = standing(run)
        story.append(f"{kind} at step {found.done}")
        tally.counts["trials"] += 1
        tally.counts["in_save"] += found.unfinished and was_saving
        tally.counts["in_evaluation"] += ": measuring " in child.said
        if "goes on after" in child.said:
            tally.counts["in_resume"] += found.done <= newest
            tally.counts["again_in_an_epoch"] += newest // EPOCH == resumed_from[-1] // EPOCH
            resumed_from.append(newest)
        if found.newest < newest:
            tally.counts["went_backwards"] += 1
            tally.failures.append(f"{root.name}, {story[-1]}: the checkpoint of {newest} is lost.")
        if harmed := broken(run):
            tally.counts["damaged"] += 1
            tally.failures.append(f"{root.name}, {story[-1]}: {'; '.join(harmed)}.")
        newest = found.newest
        tally.most_steps_redone = max(tally.most_steps_redone, found.done - newest)
    _finish(server, quiet, root, story, tally)


def _afterwards(
    server: Server, whole: Path, root: Path, number: int, draw: random.Random, tally: _Tally
) -> None:
    """Kill what is done to a finished run, once, and let the same command finish."""
    verb = AFTERWARDS[number % len(AFTERWARDS)]
    quiet, killed = (shutil.copytree(whole, root / name) for name in ("quiet", "killed"))
    began = time.monotonic()
    child = start(server, [verb], quiet)
    if child.wait():
        raise RuntimeError(f"an undisturbed {verb[0]} ended with {child.code}: {child.said[-600:]}")
    seconds = time.monotonic() - began
    child, wanted = start(server, [verb], killed), draw.uniform(0, seconds)
    began = time.monotonic()
    if not until(child, lambda: time.monotonic() - began > wanted):
        return
    child.kill()
    tally.counts["afterwards"] += 1
    child = start(server, [verb], killed)
    if child.wait():
        tally.failures.append(f"{verb[0]}: ended with {child.code}: {child.said[-300:]}")
    elif different := _differing(quiet, killed):
        tally.failures.append(f"{verb[0]}: differs in {', '.join(different)}.")


def _differing(quiet: Path, killed: Path) -> list[str]:
    """The files in which two folders differ, but for those that clocks decide."""
    one, other = (
        {
            str(path.relative_to(root)): sha256(path)
            for path in root.rglob("*")
            if path.is_file() and path.name not in ("timings.jsonl", "sessions.jsonl")
        }
        for root in (quiet, killed)
    )
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _finish(server: Server, quiet: Quiet, root: Path, story: list[str], tally: _Tally) -> None:
    run = root / "runs" / NAME
    child = start(server, lines(quiet.config), root)
    what = f"{root.name} of {quiet.config.stem}, killed {', '.join(story) or 'never'}"
    if child.wait():
        tally.counts["manual_steps"] += 1
        tally.counts["lost"] += 1
        tally.failures.append(f"{what}: ended with {child.code}: {child.said[-300:]}")
        return
    if different := unequal(run, quiet.finals):
        tally.counts["differing_finals"] += 1
        tally.failures.append(f"{what}: differs in {', '.join(different)}.")
    # A comparison's folder is nobody's own: what a killed writer left there may be another's.
    hidden = [path for path in root.rglob(".*") if not path.name.startswith(".tmp-eval_multi_")]
    if left := sorted(str(path.relative_to(root)) for path in hidden):
        tally.counts["left_behind"] += len(left)
        tally.failures.append(f"{what}: left behind {', '.join(left)}.")
