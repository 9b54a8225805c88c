"""What a grid of runs costs beside another checkout: 12 cells of the recipe caps, each measured.

    python benchmarks/grid.py --baseline FOLDER
    python benchmarks/grid.py --baseline FOLDER --steps 60 --cells 4 --rounds 3

Four shares of labeled stories by three seeds, by `gradroute sweep` with two cells at a time, from
nothing: every round begins without a run and without a hidden state on the disk. CPU time of all
processes is one table, wall clock the other. Fewer cells have fewer seeds and shares, two at least;
of another number of steps they are measured on less, too.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import measuring
from measuring import Seconds
from startup import ANEW, BASELINE, HERE, MAIN, OF, THIS, commit_of, smallest

SHARES = ("0.1", "0.2", "0.5", "1.0")
SEEDS = (0, 1, 2)
STEPS, WARMUP = 420, 20  # as in the recipe
LESS = {"evaluate.prompts": 16, "evaluate.held_out": 32}  # of a grid of fewer steps
CPU, WALL = 0.65, 0.60  # at most, of the other checkout's


def axes(cells: int) -> tuple[Sequence[str], Sequence[int]]:
    """Shares and seeds of so many cells, or of the next smaller number that makes a grid."""
    seeds = SEEDS[: max(2, min(len(SEEDS), cells // len(SHARES)))]
    return SHARES[: max(1, cells // len(seeds))], seeds


def command(tree: Path, folder: Path, steps: int, cells: int) -> list[str]:
    """Arguments of Python that run the grid anew with a checkout's code."""
    shares, seeds = axes(cells)
    file = folder / "grid.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    changes = {"train.max_steps": steps, "train.warmup_steps": min(WARMUP, steps)}
    changes |= {} if steps == STEPS else LESS
    settings = "".join(f"  {key}: {value}\n" for key, value in changes.items())
    file.write_text(
        f"recipe: caps\nset:\n{settings}"
        f"axes: {{data.labeled_fraction: [{', '.join(shares)}]}}\nseeds: {list(seeds)}\n",
        encoding="utf-8",
    )
    code = OF.format(tree=str(tree.resolve())) + ANEW.format(folder=str(folder / "grid")) + MAIN
    return ["-c", code, "sweep", str(file), "--jobs", "2", "--runs", str(folder)]


def measure(baseline: Path, rounds: int, seed: int, steps: int, cells: int) -> list[dict]:
    """The tables."""
    shares, seeds = axes(cells)
    with tempfile.TemporaryDirectory() as folder:
        return beside(
            f"{len(shares) * len(seeds)} cells of {steps} steps, measured, two at a time",
            in_both(lambda *where: command(*where, steps, cells), Path(folder), baseline),
            {"CPU time": CPU, "wall clock": WALL},
            baseline,
            rounds,
            seed,
            steps=steps,
        )


def in_both(
    work: Callable[[Path, Path], Sequence[str]], folder: Path, baseline: Path
) -> dict[str, Sequence[str]]:
    """What this and the other checkout are asked, each with a folder of its own.

    Args:
        work: A checkout and a folder -> arguments of Python.
        folder: Where the two folders are made.
        baseline: The other checkout.
    """
    return {THIS: work(HERE, folder / "this"), BASELINE: work(baseline, folder / "other")}


def beside(
    what: str,
    asked: Mapping[str, Sequence[str]],
    at_most: Mapping[str, float],
    baseline: Path,
    rounds: int,
    seed: int,
    **told: int,
) -> list[dict]:
    """A table of CPU time and one of wall clock, of work done by this and by another checkout.

    Args:
        what: The work, in words.
        asked: `THIS` and `BASELINE` -> arguments of Python that do it from nothing.
        at_most: Clock -> the bound on this checkout's share of the other's time, if any.
        baseline: Folder of the other checkout.
        rounds: Of each.
        seed: Of the order and of the intervals.
        told: What else the tables say.
    """
    with tempfile.TemporaryDirectory() as folder:
        small = in_both(lambda *where: smallest(*where)["train"], Path(folder), baseline)
        measuring.in_processes(small, 1, seed, {})  # files come from the disk, bytecode is made
    times = measuring.in_processes(asked, rounds, seed, {})
    walls = {name: Seconds(own.wall, own.wall) for name, own in times.items()}
    return [
        measuring.table(
            f"{what}, {clock}",
            own,
            BASELINE,
            seed=seed,
            bounds=[measuring.Bound(THIS, BASELINE, at_most[clock])] if clock in at_most else [],
            unit="s",
            scale=1,
            **told,
        )
        for clock, own in (("CPU time", times), ("wall clock", walls))
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(
        __doc__, argv, baseline=(), steps=(str(STEPS),), cells=(str(len(SHARES) * len(SEEDS)),)
    )
    if len(asked.baseline) != 1:
        raise SystemExit("error: name one other checkout: --baseline FOLDER")
    os.environ["OMP_NUM_THREADS"] = "1"
    baseline, steps, cells = Path(asked.baseline[0]), int(asked.steps[0]), int(asked.cells[0])

    def tables() -> list[dict]:
        asked.baseline = [commit_of(baseline)]  # what the result names
        return measure(baseline, asked.rounds, asked.seed, steps, cells)

    measuring.answer("grid", "What does a grid of runs cost?", asked, tables)


if __name__ == "__main__":
    main()
