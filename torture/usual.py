"""The same kills and signals on the usual way to train an adapter, for comparison.

transformers' Trainer on a PEFT model with one adapter, where our runs have two: with two it cannot
resume at all, which is shown first. When a start fails, the newest checkpoint is deleted by hand,
which is counted, and the same command is tried again.
"""

import json
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.forks import Child, Server
from torture.kills import MOST
from torture.runs import SAVE_EVERY, STEPS, Ground, Signs, lay, moment

# Those of `kills`; this way has no evaluation of its own.
KINDS = {"save": 35, "time": 31, "step": 21, "resume": 13}


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill `count` times, then send half as many SIGTERMs, one to five per run.

    Returns:
        Counts, and what failed of this test itself as sentences. Of the `kills` so many were
        `unresumable`: followed by a start that failed, which took `manual_steps`; and
        `differing_finals` of the `runs` ended otherwise than an undisturbed one. The same for the
        `sigterms`. `two_adapters` is how a resume with two active adapters ends.
    """
    draw = random.Random(f"usual {seed}")
    with Server("torture.usual_way") as server:
        ground = lay(folder / "ground")
        quiet = _Quiet(server, ground, folder)
        found = {"two_adapters": _two_adapters(server, ground, folder / "two" / "out")}
        kills = _many(quiet, count, signal.SIGKILL, folder / "kills", draw)
        stops = _many(quiet, count // 2, signal.SIGTERM, folder / "stops", draw)
        from transformers import __version__ as version

    return {
        "trials": kills["trials"] + stops["trials"],
        "transformers": version,
        "save_every": SAVE_EVERY,
        **found,
        "kills": kills["trials"],
        "unresumable": kills["unresumable"],
        "manual_steps": kills["manual_steps"],
        "differing_finals": kills["differing_finals"],
        "in_save": kills["in_save"],
        "runs": kills["runs"],
        "sigterms": stops["trials"],
        "unresumable_after_sigterm": stops["unresumable"],
        "differing_after_sigterm": stops["differing_finals"],
        "runs_with_sigterm": stops["runs"],
        "failures": quiet.failures,
    }


@dataclass
class _Quiet:
    """An undisturbed run, with which the others are compared."""

    server: Server
    ground: Ground
    folder: Path
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        out = self.folder / "quiet" / "out"
        began = time.monotonic()
        child = self.start(out)
        if child.wait():
            raise RuntimeError(f"an undisturbed run ended with {child.code}: {child.said[-2000:]}")
        self.seconds = time.monotonic() - began
        self.finals = _finals(out)

    def start(self, out: Path, **more: int) -> Child:
        """Start the same command as always."""
        out.mkdir(parents=True, exist_ok=True)
        arguments = {"ground": str(self.ground.folder), "out": str(out), **more}
        return self.server.start("torture.usual_way:train", arguments, out.parent)


def _many(
    quiet: _Quiet, count: int, number: signal.Signals, folder: Path, draw: random.Random
) -> Counter[str]:
    counts: Counter[str] = Counter(
        trials=0, runs=0, in_save=0, unresumable=0, manual_steps=0, differing_finals=0
    )
    while counts["trials"] < count:
        out = folder / f"run-{counts['runs']}" / "out"
        wanted = min(draw.randint(1, MOST), count - counts["trials"])
        _one_run(quiet, out, wanted, number, draw, counts)
    return counts


def _one_run(
    quiet: _Quiet,
    out: Path,
    wanted: int,
    number: signal.Signals,
    draw: random.Random,
    counts: Counter[str],
) -> None:
    """Disturb one run `wanted` times, let it finish, and compare."""
    counts["runs"] += 1
    disturbed, fell = 0, False
    signs = Signs(lambda: _saving(out), lambda: _steps_done(out))
    while True:
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        child = quiet.start(out)
        if disturbed < wanted and moment(kind, child, signs, quiet.seconds, draw):
            child.send(number)
            child.wait()
            disturbed, fell = disturbed + 1, False
            counts["trials"] += 1
            counts["in_save"] += _saving(out)
            continue
        if child.wait() == 0:
            counts["differing_finals"] += _finals(out) != quiet.finals
            return
        broken = _newest(out)
        if broken is None:
            quiet.failures.append(f"{out}: cannot be started: {child.said[-600:]}")
            return
        counts["unresumable"] += not fell
        counts["manual_steps"] += 1
        fell = True
        shutil.rmtree(broken)


def _two_adapters(server: Server, ground: Ground, out: Path) -> str:
    """How the usual way goes on with two active adapters: the last line of its error."""
    arguments = {"ground": str(ground.folder), "out": str(out), "adapters": 2, "steps": 6}
    out.mkdir(parents=True)
    first = server.start("torture.usual_way:train", arguments, out.parent)
    if first.wait():
        raise RuntimeError(f"two adapters cannot be trained: {first.said[-2000:]}")
    second = server.start("torture.usual_way:train", {**arguments, "steps": STEPS}, out.parent)
    return "goes on" if second.wait() == 0 else second.said.rstrip().splitlines()[-1]


def _newest(out: Path) -> Path | None:
    return max(
        out.glob("checkpoint-*"), default=None, key=lambda path: int(path.name.split("-")[1])
    )


def _saving(out: Path) -> bool:
    """Whether the newest checkpoint lacks the file that is written last."""
    newest = _newest(out)
    return newest is not None and not (newest / "trainer_state.json").exists()


def _steps_done(out: Path) -> int:
    """Steps that were made; those that were made again count again."""
    try:
        return (out / "steps").stat().st_size // 2
    except FileNotFoundError:
        return 0


def _finals(out: Path) -> dict[str, Any]:
    return json.loads((out / "final.json").read_text(encoding="utf-8"))
