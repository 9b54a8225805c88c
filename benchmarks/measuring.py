"""How the benchmarks measure: variants in turn, ratios of one round, a bound with an interval.

Which variant comes first changes at random from round to round, so that a machine that slows down
or is shared slows all of them alike. A ratio is taken within a round, and its median over the
rounds is the result. It is the ratio of process CPU times on one thread: what other processes take
of a core is in the wall clock and not in it, and on an idle machine the two agree. Both are kept.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from gradroute.runs.provenance import provenance

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
TRIES = HERE.parent / "runs" / "bench"  # where a run of few rounds is kept out of the results
ROUNDS = 10  # fewer are a try
RESAMPLES = 2000
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


class Seconds(NamedTuple):
    """What a variant took in each round; `clock` is what counts, `wall` is kept beside it."""

    clock: list[float]
    wall: list[float]


class Bound(NamedTuple):
    """A promise: the median ratio of two variants is at most so much."""

    variant: str
    against: str
    at_most: float


def options(description: str | None, argv: Sequence[str] | None, rounds: int = ROUNDS, **more: Any):
    """The options that every benchmark has; `more` are lists of names to choose from."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"of each variant ({rounds})")
    parser.add_argument("--seed", type=int, default=0, help="of order, data and intervals (0)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result")
    for name, known in more.items():
        parser.add_argument(f"--{name}", nargs="+", default=list(known), help=" ".join(known))
    return parser.parse_args(argv)


def answer(
    name: str,
    question: str,
    asked: argparse.Namespace,
    tables: Callable[[], Sequence[dict[str, Any]]],
) -> None:
    """Measure on one thread, where process CPU time is the time of the work, and write the result.

    Args:
        name: Of the benchmark.
        question: That it answers.
        asked: From `options`.
        tables: Measures them.
    """
    import torch

    torch.set_num_threads(1)
    load = load_average()
    write(name, question, tables(), asked, load)


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, seed: int, warm: int = 2
) -> dict[str, Seconds]:
    """Time every variant once a round, in an order of its own in each round."""
    draw = random.Random(f"order {seed}")
    times = {name: Seconds([], []) for name in variants}
    for run in variants.values():
        for _ in range(warm):
            run()
    for _ in range(rounds):
        for name in draw.sample(list(variants), len(variants)):
            gc.collect()
            gc.disable()
            try:
                wall, clock = time.perf_counter(), time.process_time()
                variants[name]()
                times[name].clock.append(time.process_time() - clock)
                times[name].wall.append(time.perf_counter() - wall)
            finally:
                gc.enable()
    return times


def ratio(values: Sequence[float], against: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The median of the ratios of rounds, its quartiles and its 95 % bootstrap interval."""
    return spread([one / other for one, other in zip(values, against, strict=True)], seed)


def spread(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Median, quartiles and the percentile bootstrap interval of the median."""
    draw = random.Random(f"bootstrap {seed}")
    medians = sorted(
        statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    if len(values) < 2:
        q1 = q3 = values[0]
    else:
        q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    found = {
        "median": statistics.median(values),
        "q1": q1,
        "q3": q3,
        "low": medians[round(0.025 * (RESAMPLES - 1))],
        "high": medians[round(0.975 * (RESAMPLES - 1))],
    }
    return {name: round(value, 4) for name, value in found.items()}


def table(
    title: str,
    times: Mapping[str, Seconds],
    reference: str,
    *,
    seed: int,
    bounds: Sequence[Bound] = (),
    unit: str = "ms",
    scale: float = 1e3,
    **facts: Any,
) -> dict[str, Any]:
    """One table of a result: medians and ratios of every variant, and what became of the bounds.

    Args:
        title: What the variants did.
        times: From `interleaved`, or of other quantities than seconds.
        reference: The variant that the ratios are to.
        seed: Of the intervals.
        bounds: The promises.
        unit: Of the medians.
        scale: Of that unit.
        facts: Whatever else is to stand beside it.
    """
    of = times[reference].clock
    rows = {
        name: {
            "median": round(scale * statistics.median(own.clock), 3),
            "median_wall": round(scale * statistics.median(own.wall), 3),
            "ratio": ratio(own.clock, of, seed),
            "rounds": [round(scale * value, 3) for value in own.clock],
            "rounds_wall": [round(scale * value, 3) for value in own.wall],
        }
        for name, own in times.items()
    }
    judged = [
        _judged(bound, ratio(times[bound.variant].clock, times[bound.against].clock, seed))
        for bound in bounds
        if {bound.variant, bound.against} <= times.keys()
    ]
    for name, row in rows.items():
        told = row["ratio"]
        print(
            f"{title}: {name}: {row['median']:.4g} {unit}, {told['median']:.2f} "
            f"[{told['q1']:.2f}-{told['q3']:.2f}] of {reference}",
            flush=True,
        )
    for one in judged:
        print(
            f"{title}: {one['variant']} / {one['against']} {one['ratio']['median']:.3f}, at most "
            f"{one['at_most']:.3g}: {one['verdict']}",
            flush=True,
        )
    return {
        "title": title,
        "reference": reference,
        "unit": unit,
        "rounds": len(of),
        **facts,
        "variants": rows,
        "bounds": judged,
    }


def _judged(bound: Bound, found: dict[str, float]) -> dict[str, Any]:
    """A bound is met when the whole interval is under it, and not met when none of it is."""
    verdict = "not shown"
    if found["high"] < bound.at_most:
        verdict = "met"
    elif found["low"] > bound.at_most:
        verdict = "not met"
    return {**bound._asdict(), "ratio": found, "verdict": verdict}


def write(
    name: str,
    question: str,
    tables: Sequence[dict[str, Any]],
    asked: argparse.Namespace,
    load: float | None,
) -> Path:
    """Write a result to a file of its own: what was asked, where it ran, the tables.

    Args:
        name: Of the benchmark.
        question: That it answers.
        tables: From `table`.
        asked: From `options`.
        load: `load_average()` of before it began.
    """
    import torch

    given = {key: value for key, value in vars(asked).items() if key != "out"}
    record = {
        "name": name,
        "question": question,
        "date": date.today().isoformat(),
        "options": given,
        "clock": "process CPU time on one thread; wall clock beside it",
        "provenance": provenance(),
        "threads": torch.get_num_threads(),
        "load_average": {"before": load, "after": load_average()},
        "tables": list(tables),
    }
    folder = asked.out or (RESULTS if asked.rounds >= ROUNDS else TRIES)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['date']}-{name}.json"
    number = 2
    while path.exists():  # a result is added, never edited
        path = folder / f"{record['date']}-{name}-{number}.json"
        number += 1
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}", flush=True)
    return path


def load_average() -> float | None:
    """Processes that wanted to run, over the last minute."""
    return round(os.getloadavg()[0], 2)


def in_processes(
    commands: Mapping[str, Sequence[str]], rounds: int, seed: int, expect: Mapping[str, int]
) -> dict[str, Seconds]:
    """Time commands as `interleaved` does functions, each run in a process of its own.

    Args:
        commands: Name -> arguments of this Python.
        rounds: Of each.
        seed: Of the order.
        expect: Name -> exit status, where it is not 0.
    """

    def run(name: str) -> tuple[float, float]:
        before, wall = _of_children(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *commands[name]], capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - wall
        _wait_for_orphans(others)
        if done.returncode != expect.get(name, 0):
            raise SystemExit(f"error: {name} ended with {done.returncode}: {done.stderr[-500:]}")
        return _of_children() - before, wall

    others = {child.pid for child in psutil.Process().children()}
    draw = random.Random(f"order {seed}")
    times = {name: Seconds([], []) for name in commands}
    with _adopting_orphans():
        for _ in range(rounds):
            for name in draw.sample(list(commands), len(commands)):
                clock, wall = run(name)
                times[name].clock.append(clock)
                times[name].wall.append(wall)
    return times


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Meanwhile processes whose parent has ended are children of this one (Linux).

    Else the time of a server that outlives the command that started it would be counted nowhere.
    """
    control = ctypes.CDLL(None, use_errno=True).prctl
    if control(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SystemExit(f"error: prctl: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        control(_SUBREAPER, 0, 0, 0, 0)


def _wait_for_orphans(others: set[int]) -> None:
    """Wait for all children but those that were there before."""
    while left := {child.pid for child in psutil.Process().children()} - others:
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _of_children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
