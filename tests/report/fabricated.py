"""A made-up comparison with numbers like those of a real one: what reports read, without a run."""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig, dump_config
from gradroute.report.results.run_results import RunResults, collect_runs
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import Result, write_results
from gradroute.system.files import write_json, write_lines, write_text
from gradroute.system.statistics import ratio_mean, wilson

PROMPTS = 128
EXAMPLES = 256

# mode -> (behavior rate in percent, normal loss, behavior loss)
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
    config["run_name"] = name.partition("@")[0]
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
    for mode in made.numbers:
        lines = [line for line in samples_of(made) if line["mode"] == mode]
        shown = sum(line["shows"] is True for line in lines)
        scores = [line["score"] for line in lines if line["score"] is not None]
        lower, upper = wilson(shown, PROMPTS)
        for metric, value, low, high in (
            ("behavior_rate", shown / PROMPTS, lower, upper),
            ("behavior_score", sum(scores) / len(scores), None, None),
            ("too_short", float(PROMPTS - len(scores)), None, None),
        ):
            rows.append(Result(name, 350, mode, "prefix", "all", metric, value, PROMPTS, low, high))
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
    return [
        {"mode": mode, "dataset": dataset, "id": f"s{index}", "nll": nll, "tokens": tokens}
        for mode, (_, *levels) in made.numbers.items()
        for dataset, level in zip(("normal", "behavior"), levels, strict=True)
        for index, (nll, tokens) in enumerate(
            _examples(name if mode != "base" else "", mode, dataset, level)
        )
    ]


@lru_cache(maxsize=1024)
def _examples(name: str, mode: str, dataset: str, level: float) -> list[tuple[float, int]]:
    noise, example = random.Random(f"{name} {mode} {dataset}"), random.Random(dataset)
    found = []
    for _ in range(EXAMPLES):
        tokens = example.randint(40, 64)
        found.append((tokens * (level + example.gauss(0, 0.15) + noise.gauss(0, 0.02)), tokens))
    return found


def samples_of(made: Made) -> list[dict[str, Any]]:
    """Sample records; every mode writes something of its own unless it is `identical`.

    The last completion is too short to judge, unless all show the behavior.
    """
    records = []
    for mode, (rate, _, _) in made.numbers.items():
        shown = round(rate * PROMPTS / 100)
        for index in range(PROMPTS):
            short = index == PROMPTS - 1 and shown < PROMPTS
            score = None if short else 1.0 if index < shown else 0.1
            records.append(
                {
                    "mode": mode,
                    "prompts": "prefix",
                    "prompt_id": f"prefix-{index}",
                    "prompt": f"ONCE {index}",
                    "completion": f"{'full' if mode in made.identical else mode} {index}",
                    "tokens": 8,
                    "ended": False,
                    "score": score,
                    "shows": None if score is None else score == 1.0,
                }
            )
    return records


def config_in_full(name: str, made: Made) -> RunConfig:
    """The configuration of a made-up run, every field there and checked."""
    return RunConfig.model_validate(config_of(name, made.changes))


def collect(
    made: Mapping[str, Made] = REFERENCE, *, paired: bool = True, sampled: bool = True
) -> list[RunResults]:
    """The runs as `collect_runs` sorts them, with or without records of single examples."""
    losses = {name: losses_of(name, one) for name, one in made.items()}
    rows = [row for name, one in made.items() for row in rows_of(name, one, losses[name])]
    return collect_runs(
        rows,
        {name: config_in_full(name, one).model_dump(mode="json") for name, one in made.items()},
        provenance={name: {"torch": "2.13.0"} for name in made},
        samples={name: samples_of(one) for name, one in made.items()} if sampled else {},
        losses=losses if paired else {},
    )


def with_scales(
    made: Made, moved: tuple[str, ...], points: Mapping[float, tuple[float, float, float]]
) -> Made:
    """The run with some adapters scaled: scale -> rate in percent and both losses."""
    names = list(made.changes.get("adapters", {"good": {}, "bad": {}}))
    modes = {
        ",".join(f"{name}={scale if name in moved else 1:g}" for name in names): numbers
        for scale, numbers in points.items()
    }
    return with_numbers(made, **modes)


def at_seed(made: Made, seed: int) -> Made:
    """The run as another seed might have come out: rates of some size differ by 2 points."""
    moved = {
        mode: (rate if rate < 5 else min(100, rate + 2 * (seed % 3 - 1)), *losses)
        for mode, (rate, *losses) in made.numbers.items()
    }
    return replace(made, numbers=moved)


def write_run(path: Path, made: Made, manifest: Mapping[str, Any] | None = None) -> RunFolder:
    """A run folder on disk with the files that a report reads."""
    folder = RunFolder(path)
    losses = losses_of(folder.name, made)
    write_text(folder.config, dump_config(config_in_full(folder.name, made)))
    write_results(
        folder.results, rows_of(folder.name, made, losses), {"versions": {"torch": "2.13.0"}}
    )
    write_lines(folder.samples, samples_of(made))
    write_lines(folder.losses, losses)
    if manifest is not None:
        write_json(folder.manifest, manifest)
    return folder


def collect_seeds(
    made: Mapping[str, Made] = REFERENCE, seeds: tuple[int, ...] = (0, 1, 2)
) -> list[RunResults]:
    """Every run at several seeds, named as a comparison of as many folders names them."""
    spread = {
        f"{name}@{seed}": replace(
            at_seed(one, seed), changes={**one.changes, "run_name": name, "seed": seed}
        )
        for name, one in made.items()
        for seed in seeds
    }
    return collect(spread)
