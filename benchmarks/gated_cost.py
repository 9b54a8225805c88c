"""Gated use: what one routed run costs beside the two runs that it takes the place of.

    python benchmarks/gated_cost.py

The recipe caps on the embedded model, 60 steps: the routed run, the unrouted one and the oracle, of
equal steps, batches and total rank, in turn. Whole trainings are timed, from reading the data to
the last checkpoint.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import measuring
from gated_use import CPU_SHARE, config_of
from measuring import Bound, Seconds

from gradroute.run import train_run

STEPS = 60
ROUTED, UNROUTED, ORACLE = "one routed run", "an unrouted run", "an oracle"
BOTH = "an unrouted run and an oracle"


def measure(place: Path, rounds: int, seed: int) -> dict:
    """Time the three trainings, and add up the two of which the routed run takes the place."""

    def training(table: str) -> Callable[[], object]:
        config = config_of("caps", table, 0.5, seed)
        train = config.train.model_copy(update={"max_steps": STEPS, "warmup_steps": 6})
        config = config.model_copy(update={"train": train, "controls": None})
        return lambda: train_run(config, place, if_exists="new", bar=False)

    tables = {UNROUTED: "none", ORACLE: "oracle", ROUTED: "anchored"}
    variants = {name: training(table) for name, table in tables.items()}
    times = measuring.interleaved(variants, rounds, seed, warm=0)
    one, other = times[UNROUTED], times[ORACLE]
    times[BOTH] = Seconds(
        [a + b for a, b in zip(one.clock, other.clock, strict=True)],
        [a + b for a, b in zip(one.wall, other.wall, strict=True)],
    )
    bounds = [Bound(ROUTED, BOTH, CPU_SHARE)]
    title = f"caps, {STEPS} steps of 16 stories"
    return measuring.table(title, times, BOTH, seed=seed, bounds=bounds, unit="s", scale=1.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv, rounds=3)
    asked.out = asked.out or measuring.RESULTS
    question = "What does one routed run cost beside an unrouted run and an oracle?"
    with tempfile.TemporaryDirectory() as place:
        measuring.answer(
            "gated_cost",
            question,
            asked,
            lambda: [measure(Path(place), asked.rounds, asked.seed)],
        )


if __name__ == "__main__":
    main()
