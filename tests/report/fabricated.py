"""A made-up comparison with numbers like those of a real one: what reports read, without a run."""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradroute.config import RunConfig
from gradroute.report.analysis import RunResults, collect_runs
from gradroute.results import Result
from gradroute.statistics import ratio_mean, wilson

PROMPTS = 128
EXAMPLES = 256

# mode -> (behaviour rate in per cent, normal loss, behaviour loss)
Numbers = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Made:
    """One made-up run: what differs from the default configuration, and what was measured."""

    changes: Mapping[str, Any]
    numbers: Numbers
    cosine: float | None = None
    identical: frozenset[str] = field(default_factory=frozenset)  # modes that write what full does


UNROUTED = {"routing": "none", "data.labeled_fraction": 0.0}
BASE = (0, 0.905, 1.554)
REFERENCE: Mapping[str, Made] = {
    "baseline": Made(
        {**UNROUTED, "data.behavior_fraction": 0.0},
        {
            "full": (0, 0.781, 3.093),
            "bad_ablated": (0, 0.815, 2.4),
            "good_ablated": (0, 0.818, 2.5),
            "good_x2": (0, 0.79, 3.0),
            "base": BASE,
        },
        0.38,
    ),
    "0.1_0.0": Made(
        UNROUTED,
        {
            "full": (62, 0.786, 0.952),
            "bad_ablated": (1, 0.832, 1.127),
            "good_ablated": (2, 0.829, 1.13),
            "good_x2": (47, 0.801, 1.01),
            "base": BASE,
        },
        0.32,
    ),
    "0.1_0.5": Made(
        {"data.labeled_fraction": 0.5},
        {
            "full": (60, 0.783, 0.95),
            "bad_ablated": (0, 0.785, 1.684),
            "good_ablated": (77, 1.62, 1.02),
            "good_x2": (0, 0.83, 2.2),
            "base": BASE,
        },
        0.09,
    ),
    "0.1_1.0": Made(
        {"data.labeled_fraction": 1.0},
        {
            "full": (63, 0.784, 0.96),
            "bad_ablated": (0, 0.788, 5.263),
            "good_ablated": (100, 5.9, 1.0),
            "good_x2": (0, 0.86, 7.1),
            "base": BASE,
        },
        0.27,
    ),
    "filter_0.5": Made(
        {
            "routing": "none",
            "data.labeled_fraction": 0.5,
            "data.drop": "labeled_bad",
            "adapters": {"good": {"rank": 64}},
        },
        {"full": (51, 0.784, 1.0), "base": BASE},
    ),
}


def with_numbers(made: Made, **numbers: tuple[float, float, float]) -> Made:
    """The run with other numbers under some modes."""
    return replace(made, numbers={**made.numbers, **numbers})


def config_of(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The default configuration with dotted keys changed, as plain values."""
    config = RunConfig().model_dump()
    config["run_name"] = name
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[last] = copy.deepcopy(value)
    return config


def rows_of(name: str, made: Made, losses: list[dict[str, Any]]) -> list[Result]:
    """Result rows as an evaluation writes them."""
    rows = []
    for mode, (rate, _, _) in made.numbers.items():
        shown = round(rate * PROMPTS / 100)
        lower, upper = wilson(shown, PROMPTS)
        for metric, value, low, high in (
            ("behavior_rate", shown / PROMPTS, lower, upper),
            ("behavior_score", 0.1 + 0.9 * rate / 100, None, None),
            ("too_short", 1.0, None, None),
        ):
            rows.append(
                Result(name, 350, mode, "prompts", "all", metric, value, PROMPTS, low, high)
            )
        for dataset in ("normal", "behavior"):
            own = [row for row in losses if (row["mode"], row["dataset"]) == (mode, dataset)]
            mean = ratio_mean([row["nll"] for row in own], [row["tokens"] for row in own])
            rows.append(
                Result(name, 350, mode, dataset, "all", "held_out_loss", mean.mean, len(own),
                       mean.lower, mean.upper, mean.std)
            )  # fmt: skip
    if made.cosine is not None:
        noise = random.Random(name)
        cosines = [made.cosine * noise.uniform(0.8, 1.2) for _ in range(14)]
        for index, cosine in enumerate(cosines):
            rows.append(Result(name, 350, "full", f"m{index}", "all", "update_cosine", cosine, 1))
        rows.append(
            Result(name, 350, "full", "modules", "all", "random_cosine", 0.004, 5, 0.003, 0.005)
        )
    return rows


def losses_of(name: str, made: Made) -> list[dict[str, Any]]:
    """Loss records: examples differ much, modes and runs differ little beside that."""
    records = []
    for mode, (_, *levels) in made.numbers.items():
        for dataset, level in zip(("normal", "behavior"), levels, strict=True):
            noise = random.Random(f"{name if mode != 'base' else ''} {mode} {dataset}")
            example = random.Random(dataset)
            for index in range(EXAMPLES):
                tokens = example.randint(40, 64)
                nll = tokens * (level + example.gauss(0, 0.15) + noise.gauss(0, 0.02))
                records.append(
                    {"mode": mode, "dataset": dataset, "id": f"s{index}", "nll": nll,
                     "tokens": tokens}
                )  # fmt: skip
    return records


def samples_of(made: Made) -> list[dict[str, Any]]:
    """Sample records; every mode writes something of its own unless it is `identical`."""
    return [
        {
            "mode": mode,
            "prompt_id": f"p{index}",
            "completion": f"{'full' if mode in made.identical else mode} {index}",
        }
        for mode in made.numbers
        for index in range(PROMPTS)
    ]


def collect(
    made: Mapping[str, Made] = REFERENCE, *, paired: bool = True, sampled: bool = True
) -> list[RunResults]:
    """The runs as `collect_runs` sorts them, with or without records of single examples."""
    losses = {name: losses_of(name, one) for name, one in made.items()}
    rows = [row for name, one in made.items() for row in rows_of(name, one, losses[name])]
    return collect_runs(
        rows,
        {name: config_of(name, one.changes) for name, one in made.items()},
        provenance={name: {"torch": "2.13.0"} for name in made},
        samples={name: samples_of(one) for name, one in made.items()} if sampled else {},
        losses=losses if paired else {},
    )
