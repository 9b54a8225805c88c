"""SIGKILL of any rank of a run on two, and the same command again until it has finished.

The kills fall into training, saves and resumes, under both strategies. The rank that is left must
end by itself, with one line; afterwards everything must be equal, byte by byte, to what two ranks
leave that nobody disturbed.
"""

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from torture.forks import Child, Server, serving
from torture.ranks import launch
from torture.runs import NAME, Ground, broken, finals, lay, moment, saving, signs, standing

KINDS = {"save at once": 30, "time": 30, "step": 25, "resume": 15}
STRATEGIES = ("ddp", "fsdp2")
MOST = 4
"""Kills of one run, at most."""
LEFT = 60
"""Seconds within which a rank that is left alone must have ended."""


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill `count` times, one to four times per run.

    Returns:
        Counts, and what failed as sentences: `trials` kills over `runs` runs, `in_save` of them
        while a checkpoint was being written; `of_rank_0` and `of_rank_1`; `resumed` starts that
        went on from a checkpoint; `differing_finals` runs that ended otherwise than undisturbed;
        `damaged` checkpoints; `not_ended` ranks that had to be ended after the other was killed.
    """
    draw = random.Random(f"rank kills {seed}")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with serving() as server:
        ground = lay(folder / "ground")
        quiet = {}
        for parallel in STRATEGIES[: 1 if count < 4 else 2]:
            began = time.monotonic()
            root = folder / f"quiet-{parallel}"
            for child in ranks(server, ground, root, parallel):
                if child.wait():
                    raise RuntimeError(f"an undisturbed rank ended with {child.code}: {child.said}")
            quiet[parallel] = (finals(root / "runs" / NAME), time.monotonic() - began)
        while counts["trials"] < count:
            parallel = list(quiet)[counts["runs"] % len(quiet)]
            root = folder / f"run-{counts['runs']}"
            wanted = min(draw.randint(1, MOST), count - counts["trials"])
            _one_run(
                server, ground, root, parallel, quiet[parallel], wanted, draw, counts, failures
            )
    named = ("trials", "runs", "in_save", "of_rank_0", "of_rank_1", "resumed")
    named += ("differing_finals", "damaged", "not_ended", "lost")
    return {**{name: counts[name] for name in named}, "failures": failures}


def ranks(
    server: Server, ground: Ground, root: Path, parallel: str, size: int = 2, *more: str
) -> list[Child]:
    """Start a run on so many ranks, as a launcher does."""
    config = ground.config({"train.parallel": parallel, "train.log_gradients_every": 7}, parallel)
    line = ["train", str(config.resolve()), *more]
    return launch(server, "torture.ranks:command", {"line": line}, root, size)


def _one_run(
    server: Server,
    ground: Ground,
    root: Path,
    parallel: str,
    quiet: tuple[dict[str, str], float],
    wanted: int,
    draw: random.Random,
    counts: Counter[str],
    failures: list[str],
) -> None:
    run = root / "runs" / NAME
    wanted_finals, seconds = quiet
    counts["runs"] += 1
    for number in range(wanted):
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        children = ranks(server, ground, root, parallel)
        if not moment(kind, children[0], signs(run), seconds, draw):
            break  # it has finished, or the last start, below, says why not
        victim = draw.randrange(len(children))
        was_saving = saving(run)
        children[victim].kill()
        if children[victim].code == 0:
            break
        counts["trials"] += 1
        counts[f"of_rank_{victim}"] += 1
        what = f"{root.name} ({parallel}), kill {number + 1} ({kind}) of rank {victim}"
        _see_the_other_end(children[1 - victim], what, counts, failures)
        counts["in_save"] += standing(run).unfinished or was_saving
        counts["resumed"] += any("goes on after" in child.said for child in children)
        if harmed := broken(run):
            counts["damaged"] += 1
            failures.append(f"{what}: {'; '.join(harmed)}.")
    children = ranks(server, ground, root, parallel)
    for child in children:
        if child.wait():
            counts["lost"] += 1
            failures.append(f"{root.name}: ended with {child.code}: {child.said[-400:]}")
            return
    counts["resumed"] += "goes on after" in children[0].said
    found = finals(run)
    if different := sorted(
        k for k in {*found, *wanted_finals} if found.get(k) != wanted_finals.get(k)
    ):
        counts["differing_finals"] += 1
        failures.append(f"{root.name} ({parallel}): differs in {', '.join(different)}.")


def _see_the_other_end(other: Child, what: str, counts: Counter[str], failures: list[str]) -> None:
    try:
        code = other.wait(LEFT)
    except TimeoutError:
        counts["not_ended"] += 1
        failures.append(f"{what}: the other rank did not end within {LEFT} s.")
        return
    told = [line for line in other.said.splitlines() if "error: " in line]
    if code not in (0, 4) or (code == 4 and len(told) != 1) or "Traceback" in other.said:
        failures.append(f"{what}: the other rank ended with {code}: {other.said[-400:]}")
