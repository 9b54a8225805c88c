"""Several processes at once: one of them writes to a run folder, and readers see whole states only.

Eight processes start the same command at the same moment. One trains; the others are told who does,
and leave. Meanwhile, and during many saves, readers read at full speed.
"""

import json
import os
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torture.forks import Child, Server, serving
from torture.runs import (
    NAME,
    Quiet,
    lay,
    lines,
    moment,
    one_line_error,
    quiet_run,
    signs,
    start,
    unequal,
)

AT_ONCE = 8
SAVES = 500
# What a run folder is when they all come: new, killed half-way, or finished and to be moved aside.
KINDS = ("new", "killed", "moved aside")


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Start eight processes at once, `count` times, then read during many saves.

    Returns:
        Counts, and what failed as sentences: `one_winner` trials had exactly one process that
        trained; `told` starters were told that the folder is in use; `late` ones came when the
        winner had ended. `reads` were made by readers while others wrote, over `saves`.
    """
    draw = random.Random(f"starters {seed}")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with serving() as server:
        ground = lay(folder / "ground")
        config = ground.config({"train.measure_every": 8}, "config")
        quiet = quiet_run(server, lines(config), ground.folder / "quiet", config)
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            root = folder / f"run-{number}"
            failures += _at_once(server, quiet, root, kind, draw, counts)
            counts["trials"] += 1
        saves = SAVES if count >= 10 else 40
        failures += _readers(server, folder / "saves", saves, counts)
    named = ("trials", "one_winner", "told", "late", "saves", "reads", "half_states")
    return {**{name: counts[name] for name in named}, "failures": failures}


def wait_and_start(lines: Sequence[Sequence[str]], gate: str) -> int:
    """In a child: wait until the gate is there, then run the command lines."""
    from torture.runs import command

    while not os.path.exists(gate):
        time.sleep(0.0005)
    return command(lines)


def save_often(saves: int) -> int:
    """In a child: write checkpoints and results as fast as the disk takes them."""
    import torch

    from gradroute.config.run_config import RunConfig
    from gradroute.models.checkpoint import save_checkpoint
    from gradroute.routing.adapters import attach_adapters
    from gradroute.system.files import write_json, write_lines
    from tests.small_llama import small_llama

    model = attach_adapters(small_llama(), RunConfig().adapters, layers="all")
    moments = {"moments": torch.zeros(1000)}
    for step in range(1, saves + 1):
        save_checkpoint(Path("checkpoints"), step, model, moments, config_text="", policy={})
        rows = [{"step": step, "row": row} for row in range(step % 50 + 1)]
        write_json(Path("results.json"), {"step": step, "rows": rows})
        write_lines(Path("samples.jsonl"), rows)
    return 0


def read_often(until: str) -> int:
    """In a child: read whatever is there at full speed; print what was seen that must not be."""
    from gradroute.models.checkpoint import latest_checkpoint
    from gradroute.system.files import read_json, read_lines

    warnings.simplefilter("error")
    reads, newest = 0, 0
    while not os.path.exists(until):
        if Path("results.json").exists():
            found = read_json(Path("results.json"))
            if len(found["rows"]) != found["step"] % 50 + 1:
                print(f"results.json of step {found['step']} with {len(found['rows'])} rows")
        rows = list(read_lines(Path("samples.jsonl")))
        if rows and len(rows) != rows[0]["step"] % 50 + 1:
            print(f"samples.jsonl of step {rows[0]['step']} with {len(rows)} rows")
        try:
            checkpoint = latest_checkpoint(Path("checkpoints"))
        except Exception as error:
            print(f"the newest checkpoint: {type(error).__name__}: {error}")
            continue
        step = 0 if checkpoint is None else checkpoint.step
        if step < newest:
            print(f"the newest checkpoint was of step {newest}, and is of step {step}")
        newest, reads = step, reads + 1
    print(json.dumps({"reads": reads}))
    return 0


def _at_once(
    server: Server,
    quiet: Quiet,
    root: Path,
    kind: str,
    draw: random.Random,
    counts: Counter[str],
) -> list[str]:
    """Prepare the folder, start all, and judge; what failed."""
    run, asked = root / "runs" / NAME, lines(quiet.config)[:1]
    if kind == "killed":
        child = start(server, asked, root)
        moment("step", child, signs(run), quiet.seconds, draw)
        child.kill()
    elif kind == "moved aside":
        start(server, asked, root).wait()
        asked = lines(quiet.config, "--if-exists", "new")[:1]
    gate = root / "gate"
    children = [
        server.start("torture.starters:wait_and_start", {"lines": asked, "gate": str(gate)}, root)
        for _ in range(AT_ONCE)
    ]
    time.sleep(0.05)
    gate.touch()
    for child in children:
        child.wait()
    measuring = start(server, lines(quiet.config), root)
    if measuring.wait():
        return [f"{root.name} ({kind}): later ended with {measuring.code}: {measuring.said[-300:]}"]
    return [f"{root.name} ({kind}): {wrong}" for wrong in _judged(children, run, quiet, counts)]


def _judged(children: list[Child], run: Path, quiet: Quiet, counts: Counter[str]) -> list[str]:
    wrong = []
    winners = [child for child in children if child.code == 0 and " steps on " in child.said]
    late = [child for child in children if child.code == 0 and child not in winners]
    others = [child for child in children if child.code]
    counts["one_winner"] += len(winners) == 1
    counts["told"] += len(others)
    counts["late"] += len(late)
    if len(winners) != 1:
        ends = [child.code for child in children]
        wrong.append(f"{len(winners)} processes trained and ended well; they ended with {ends}.")
    for child in others:
        if trouble := one_line_error(child, 4):
            wrong.append(trouble)
        elif "is in use" not in child.said:
            wrong.append(f"was not told that the folder is in use: {child.said[-300:]}")
    wrong += [f"late, but: {c.said[-300:]}" for c in late if "nothing to train" not in c.said]
    if different := unequal(run, quiet.finals):
        wrong.append(f"differs in {', '.join(different)}.")
    left = sorted(path.name for path in run.parent.iterdir() if path.name.startswith("."))
    return wrong + ([f"left behind {', '.join(left)}."] if left else [])


def _readers(server: Server, root: Path, saves: int, counts: Counter[str]) -> list[str]:
    """One writer and two readers in one folder; what the readers saw that must not be."""
    stop = root / "stop"
    writer = server.start("torture.starters:save_often", {"saves": saves}, root)
    readers = [
        server.start("torture.starters:read_often", {"until": str(stop)}, root) for _ in range(2)
    ]
    wrong = []
    if writer.wait(600):
        wrong.append(f"the writer ended with {writer.code}: {writer.said[-600:]}")
    stop.touch()
    counts["saves"] += saves
    for reader in readers:
        if reader.wait():
            wrong.append(f"a reader ended with {reader.code}: {reader.said[-600:]}")
            continue
        *seen, last = reader.out.read_text(encoding="utf-8").splitlines()
        counts["reads"] += json.loads(last)["reads"]
        counts["half_states"] += len(seen)
        wrong += [f"a reader saw {line}" for line in seen[:3]]
    return wrong
