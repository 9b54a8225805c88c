"""Memory that really runs out: an address space with a limit, and rows whose logits fill it.

A run under a limit must end, with fewer rows at a time and the same rows in every step; when it
is interrupted and goes on under the limit, it must end with the same bits; and what is measured
under a limit must be what is measured without one. Where there is not even room for one row, it
must say so, and end without the limit as if nothing had been.
"""

import json
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradroute.data.stories import stories
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines
from torture.bases import save_base
from torture.forks import Child, Server
from torture.runs import NAME, Ground, command, finals, one_line_error, steps_done, unequal, until

VOCABULARY = 30_000
ROWS = 8
"""In a forward pass, two of which make a step."""
STEPS = 4
ROOM = ((125, 165), (85, 108), (56, 64))
"""Megabytes that leave room for 4, 2 or 1 of 8 long rows, about."""
TOO_LITTLE = 30
LONG = (12, 1)
"""One of so many rows is long: memory runs out in some forward pass of a step, or in the first."""
CLOSE = 1e-6
"""Largest relative difference of a loss in training."""
MEASURED = 1e-5
"""Largest relative difference of a measured number."""
SETTINGS: Mapping[str, Any] = {
    "data.max_length": 64,
    "data.train_examples": 96,
    "adapters.good.dropout": 0.0,
    "adapters.bad.dropout": 0.0,
    "train.max_steps": STEPS,
    "train.batch_size": ROWS,
    "train.gradient_accumulation": 2,
    "train.save_every": 2,
    "evaluate.prompts": 4,
    "evaluate.held_out": 8,
    "evaluate.modes": ["full", "bad_ablated", "base"],
}


def limited(lines: Sequence[Sequence[str]], megabytes: int) -> int:
    """In a child: command lines with so much memory beyond what the process has already."""
    if megabytes:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return command(lines)


def wide(folder: Path, long: int) -> Ground:
    """A base of two layers of 16 numbers whose logits are large and all computed, and stories.

    Args:
        folder: where it is made.
        long: one of so many rows is long; the others need a quarter of its memory.
    """
    ground = Ground(folder)
    save_base(ground.base, VOCABULARY, 128, scaled=True)
    texts = [
        text if i % long == 0 else " ".join(text.split()[:8])
        for i, text in enumerate(stories("tune", 120))
    ]
    rows = [{"id": f"s{i}", "text": text} for i, text in enumerate(texts)]
    ground.data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ground


@dataclass(frozen=True)
class Case:
    """A ground, its config, and a run of it that had all the memory it wanted."""

    config: Path
    run: RunFolder
    finals: Mapping[str, str]


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train and measure under limits.

    Args:
        count: limits; each is trained, interrupted and continued, and measured.
        seed: of everything that is drawn.
        folder: where runs are written.

    Returns:
        "trials"; of them "finished" with fewer rows at a time, "same_rows" in every step,
        "continued" with the same bits, "measured" the same (and how many "measured_with_fewer" rows
        at a time); the largest relative differences of a
        loss in training and of a measured one; "refused" in one line where there is no room for
        one row; the sizes that it came down to; "failures".
    """
    counts: Counter[str] = Counter(finished=0, same_rows=0, continued=0, measured=0)
    counts.update(measured_with_fewer=0, refused=0)
    largest = {"training": 0.0, "measured": 0.0}
    sizes: Counter[str] = Counter()
    failures: list[str] = []
    with _exact_memory(), Server() as server:
        cases = [_case(server, folder, long) for long in LONG[:count]]
        for number in range(count):
            draw = random.Random(f"memory {seed} {number}")
            megabytes = draw.randint(*ROOM[number % len(ROOM)])
            case, root = cases[(number + number // len(ROOM)) % len(cases)], folder / f"{number}"
            found = list(_trial(server, case, megabytes, root, draw, counts, largest, sizes))
            if number % len(ROOM) == len(ROOM) - 1:
                found += _too_little(server, case, folder / f"{number}-little", counts)
            failures += [f"trial {number} ({megabytes} MB): {text}." for text in found]
            shutil.rmtree(root)
    return {
        "trials": count,
        **counts,
        "largest_difference_of_a_loss": largest["training"],
        "largest_difference_measured": largest["measured"],
        "rows_at_a_time": dict(sorted(sizes.items())),
        "failures": failures,
    }


def _trial(
    server: Server,
    case: Case,
    megabytes: int,
    root: Path,
    draw: random.Random,
    counts: Counter[str],
    largest: dict[str, float],
    sizes: Counter[str],
) -> Iterator[str]:
    run = RunFolder(root / "runs" / NAME)
    while True:
        child = _start(server, _training(case), megabytes, root)
        if child.wait():
            yield f"training ended with {child.code}: {child.said[-300:]}"
            return
        events = _halvings(run)
        if events or megabytes < TOO_LITTLE:
            break
        megabytes = megabytes * 7 // 8  # enough on this machine, where code needs less
        shutil.rmtree(root)
    last = events[-1][1] if events else ROWS
    sizes[str(last)] += 1
    halved = all(after == (before + 1) // 2 for before, after in events)
    state = read_json(max(run.checkpoints.glob("step-*")) / "state.json")
    if not events or not halved or state["micro_batch"] != last:
        yield f"halved {events}, and the checkpoint says {state['micro_batch']}"
    else:
        counts["finished"] += 1
    if _rows(run) == _rows(case.run):
        counts["same_rows"] += 1
    else:
        yield "has other rows in its steps"
    difference = _largest(_losses(run), _losses(case.run))
    largest["training"] = max(largest["training"], difference)
    if difference > CLOSE:
        yield f"has losses that differ by {difference:.1e}"
    yield from _interrupted(server, case, megabytes, root / "cut", draw, run, counts)
    yield from _measured(server, megabytes, root, counts, largest)


def _interrupted(
    server: Server,
    case: Case,
    megabytes: int,
    root: Path,
    draw: random.Random,
    whole: RunFolder,
    counts: Counter[str],
) -> Iterator[str]:
    """The same, stopped or killed after some step, and again by the same command."""
    run = RunFolder(root / "runs" / NAME)
    wanted = draw.randint(1, STEPS - 1)
    child = _start(server, _training(case), megabytes, root)
    until(child, lambda: steps_done(run.path) >= wanted)
    child.send(draw.choice([signal.SIGTERM, signal.SIGKILL]))
    child.wait()
    again = _start(server, _training(case), megabytes, root)
    if again.wait():
        yield f"the interrupted run ended with {again.code}: {again.said[-300:]}"
    elif different := unequal(run.path, finals(whole.path)):
        yield f"the interrupted run differs in {', '.join(different)}"
    else:
        counts["continued"] += 1


def _measured(
    server: Server, megabytes: int, root: Path, counts: Counter[str], largest: dict[str, float]
) -> Iterator[str]:
    """One checkpoint, measured with and without the limit."""
    free = root / "free"
    shutil.copytree(root / "runs", free / "runs")
    runs = []
    for limit, place in ((megabytes, root), (0, free)):
        child = _start(server, [["eval", NAME]], limit, place)
        if child.wait():
            yield f"measuring ended with {child.code}: {child.said[-300:]}"
            return
        if limit:
            counts["measured_with_fewer"] += "memory ran out in an evaluation" in child.said
        runs.append(RunFolder(place / "runs" / NAME))
    one, other = (_leaves(read_json(run.results)["results"]) for run in runs)
    difference = _largest(*([v for v in leaves if isinstance(v, float)] for leaves in (one, other)))
    largest["measured"] = max(largest["measured"], difference)
    kept = [[v for v in leaves if not isinstance(v, float)] for leaves in (one, other)]
    if kept[0] != kept[1] or difference > MEASURED:
        yield f"measured something else, by {difference:.1e}"
    elif runs[0].samples.read_bytes() != runs[1].samples.read_bytes():
        yield "wrote other completions"
    else:
        counts["measured"] += 1


def _too_little(server: Server, case: Case, root: Path, counts: Counter[str]) -> Iterator[str]:
    """No room for one row: one line, and the same command without the limit ends as ever."""
    child = _start(server, _training(case), TOO_LITTLE, root)
    child.wait()
    trouble = one_line_error(child, 4)
    if trouble is None and (code := _start(server, _training(case), 0, root).wait()):
        trouble = f"without the limit it ended with {code}"
    different = unequal(root / "runs" / NAME, case.finals)
    if trouble or different:
        yield f"with {TOO_LITTLE} MB: {trouble or 'differs in ' + ', '.join(different)}"
    else:
        counts["refused"] += 1
    shutil.rmtree(root)


def _case(server: Server, folder: Path, long: int) -> Case:
    ground = wide(folder / f"ground-{long}", long)
    config, root = ground.config(SETTINGS, "wide"), folder / f"free-{long}"
    run = RunFolder(root / "runs" / NAME)
    case = Case(config, run, {})
    child = _start(server, _training(case), 0, root)
    if child.wait():
        raise RuntimeError(f"a run without a limit ended with {child.code}: {child.said[-2000:]}")
    if _halvings(run):
        raise RuntimeError("a run without a limit ran out of memory.")
    return Case(config, run, finals(run.path))


def _training(case: Case) -> list[list[str]]:
    return [["train", str(case.config), "--audit"]]


def _start(server: Server, lines: Sequence[Sequence[str]], megabytes: int, root: Path) -> Child:
    arguments = {"lines": lines, "megabytes": megabytes}
    return server.start("torture.memory_limits:limited", arguments, root)


@contextmanager
def _exact_memory() -> Iterator[None]:
    """Let the C library ask for what is used and no more: no spare regions, all blocks given back.

    A limit on addresses counts what is only reserved, and runs would differ by chance.
    """
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _halvings(run: RunFolder) -> list[list[int]]:
    return [line["micro_batch"] for line in read_lines(run.sessions) if "event" in line]


def _rows(run: RunFolder) -> list[list[list[int]]]:
    """Places, labels and routes of every step, in order."""
    return [line["rows"] for line in read_lines(run.audit)]


def _losses(run: RunFolder) -> list[float]:
    lines = read_lines(run.metrics)
    return [loss for line in lines for loss in (line["loss"], *line["loss_per_label"].values())]


def _leaves(value: Any) -> list[Any]:
    """Every single value of nested rows."""
    if isinstance(value, Mapping):
        value = [part for item in sorted(value.items()) for part in item]
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _largest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(
        (abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(one, other, strict=True)),
        default=0.0,
    )
