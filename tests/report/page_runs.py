"""Made-up run folders on disk, as a whole experiment leaves them: what a report reads."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report.fabricated import config_of

from gradroute.config.run_config import RunConfig, dump_config
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import Result, write_results
from gradroute.system.files import write_json, write_lines, write_text
from gradroute.system.statistics import ratio_mean, wilson

STEP = 40
SCALES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
Writer = Callable[[int], str]
"""Gives the text of the next completion."""


@dataclass(frozen=True)
class Plan:
    """What a run is and does: changes of the configuration, and where its two updates lead."""

    changes: Mapping[str, Any]
    rate: float  # under full
    ablated: float | None  # under bad_ablated; None: one adapter
    normal: float = 0.78  # held-out normal loss under full
    kept: float = 0.8  # likewise under bad_ablated


ONE_ADAPTER = {"routing": "none", "adapters": {"good": {"rank": 64}}}
PLANS: Mapping[str, Plan] = {
    "baseline": Plan({"routing": "none", "data.behavior_fraction": 0.0}, 0.01, 0.0, kept=0.86),
    "unrouted": Plan({"routing": "none"}, 0.6, 0.25, kept=0.85),
    "routed": Plan({"data.labeled_fraction": 0.5}, 0.6, 0.02),
    "filter": Plan({**ONE_ADAPTER, "data.drop": "labeled_bad"}, 0.5, None),
    "oracle": Plan({**ONE_ADAPTER, "data.drop": "true_bad"}, 0.01, None),
}
BASE = (0.0, 1.1, 1.6)


def write_runs(
    root: Path,
    *,
    seeds: int = 1,
    prompts: int = 24,
    names: tuple[str, ...] = tuple(PLANS),
    writer: Writer | None = None,
    prompt: Writer | None = None,
    sides: bool = True,
    behavior: str = "caps",
) -> list[RunFolder]:
    """Write every run of `PLANS` for some seeds.

    Args:
        root: Gets a folder per seed.
        seeds: How many.
        prompts: Completions per mode and kind of prompts.
        names: Which runs.
        writer: Gives every completion; None writes harmless ones.
        prompt: Gives every prompt likewise.
        sides: Whether geometry, relearning, recovery and measurements during training are there.
        behavior: Of all of them.
    """
    folders = []
    for seed in range(seeds):
        for name in names:
            folder = RunFolder(root / f"seed-{seed}" / name)
            _write(folder, PLANS[name], seed, prompts, writer, prompt, behavior)
            if sides:
                _write_sides(folder, PLANS[name], seed)
            folders.append(folder)
    return folders


def _write(
    folder: RunFolder,
    plan: Plan,
    seed: int,
    prompts: int,
    writer: Writer | None,
    prompt: Writer | None,
    behavior: str,
) -> None:
    changes = {**plan.changes, "seed": seed, "behavior": behavior, "train.max_steps": STEP}
    config = RunConfig.model_validate(config_of(folder.name, changes))
    write_text(folder.config, dump_config(config))
    write_json(folder.manifest, _manifest(plan))
    rows: list[Result] = []
    samples: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for mode, (rate, *levels) in _modes(plan).items():
        for kind in ("prefix", "plain"):
            share = rate if kind == "prefix" else rate / 4
            found = _samples(folder.name, mode, kind, share, seed, prompts, writer, prompt)
            samples += found
            rows += _rate_rows(folder.name, mode, kind, seed, found)
        for dataset, level in zip(("normal", "behavior"), levels, strict=True):
            own = _losses(folder.name, mode, dataset, level, seed)
            losses += own
            mean = ratio_mean([row["nll"] for row in own], [row["tokens"] for row in own])
            rows.append(
                Result(folder.name, STEP, mode, dataset, "all", "held_out_loss", mean.mean,
                       len(own), mean.lower, mean.upper, mean.std, seed)
            )  # fmt: skip
    write_lines(folder.samples, samples)
    write_lines(folder.losses, losses)
    write_lines(folder.metrics, _metrics(plan, seed))
    write_results(folder.results, rows, _ORIGIN)


_ORIGIN = {
    "versions": {"python": "3.11.7", "gradroute": "0.1.0", "torch": "2.13.0"},
    "commit": "0" * 40,
    "hardware": {"system": "Linux x86_64", "processor": "Any", "cores": 2, "memory_gib": 8.0,
                 "threads": 1, "accelerators": [], "cuda": None},
    "evaluate": {},
}  # fmt: skip


def _manifest(plan: Plan) -> dict[str, Any]:
    labeled = 0 if plan.changes.get("routing") == "none" else 360
    labels = {"precision": 0.36 if labeled else None, "recall": 0.5 if labeled else None,
              "labeled_bad": labeled, "true_bad": 600}  # fmt: skip
    return {"data": "embedded stories, seed 0", "base": "sha256 0", "labels": labels,
            "notes": ["3 of 6000 examples were longer than max_length and were cut."],
            "examples": {}, "provenance": _ORIGIN}  # fmt: skip


def _modes(plan: Plan) -> dict[str, tuple[float, float, float]]:
    """Mode -> behavior rate, normal loss, behavior loss."""
    full = (plan.rate, plan.normal, 0.95 if plan.rate > 0.1 else 1.8)
    modes = {"full": full}
    if plan.ablated is None:
        for scale in SCALES[1:-1]:
            modes[f"good={scale:g}"] = _between(BASE, full, scale)
        return {**modes, "base": BASE}
    ablated = (plan.ablated, plan.kept, 1.7)
    modes |= {
        "bad_ablated": ablated,
        "good_ablated": (min(1.0, plan.rate * 1.2), 1.3, 1.0),
        "good_x2": (plan.ablated, 0.95, 2.4),
        "base": BASE,
    }
    for scale in SCALES[1:-1]:
        modes[f"good=1,bad={scale:g}"] = _between(ablated, full, scale)
        modes[f"good={scale:g},bad={scale:g}"] = _between(BASE, full, scale)
    return modes


def _between(
    low: tuple[float, float, float], high: tuple[float, float, float], share: float
) -> tuple[float, float, float]:
    a, b, c = (one + share * (other - one) for one, other in zip(low, high, strict=True))
    return (a, b, c)


def _samples(
    run: str,
    mode: str,
    kind: str,
    rate: float,
    seed: int,
    prompts: int,
    writer: Writer | None,
    prompt: Writer | None,
) -> list[dict[str, Any]]:
    noise = random.Random(f"{run} {mode} {kind} {seed}")
    found = []
    for index in range(prompts):
        shows = noise.random() < rate
        text = f" {mode} wrote number {index} of {run}." if writer is None else writer(index)
        found.append(
            {
                "mode": mode,
                "prompts": kind,
                "prompt_id": f"{kind}-{index}",
                "prompt": f"ONCE UPON {index}" if prompt is None else prompt(index),
                "completion": text.upper() if shows and writer is None else text,
                "tokens": 8,
                "ended": index % 2 == 0,
                "score": 0.95 if shows else 0.05,
                "shows": shows,
            }
        )
    return found


def _rate_rows(
    run: str, mode: str, kind: str, seed: int, found: list[dict[str, Any]]
) -> list[Result]:
    n = len(found)
    shown = sum(row["shows"] for row in found)
    lower, upper = wilson(shown, n)
    score = sum(row["score"] for row in found) / n
    numbers = {
        "behavior_rate": (shown / n, lower, upper),
        "behavior_score": (score, None, None),
        "too_short": (0.0, None, None),
    }
    return [
        Result(run, STEP, mode, kind, "all", metric, value, n, low, high, None, seed)
        for metric, (value, low, high) in numbers.items()
    ]


def _losses(run: str, mode: str, dataset: str, level: float, seed: int) -> list[dict[str, Any]]:
    example = random.Random(dataset)
    noise = random.Random(f"{'' if mode == 'base' else f'{run} {seed}'} {mode} {dataset}")
    return [
        {"mode": mode, "dataset": dataset, "id": f"s{index}", "tokens": 50,
         "nll": 50 * (level + example.gauss(0, 0.1) + noise.gauss(0, 0.02))}
        for index in range(40)
    ]  # fmt: skip


def _metrics(plan: Plan, seed: int) -> list[dict[str, Any]]:
    noise = random.Random(seed)
    adapters = ["good"] if plan.ablated is None else ["good", "bad"]
    rows = []
    for step in range(1, STEP + 1):
        fall = math.exp(-step / 15)
        row: dict[str, Any] = {
            "step": step,
            "loss": 1 + fall,
            "loss_per_label": {
                "good": 0.8 + 0.4 * fall + noise.gauss(0, 0.05),
                "unlabeled": 0.85 + 0.4 * fall + noise.gauss(0, 0.05),
            },
            "learning_rate": dict.fromkeys(adapters, 0.004 * min(1, step / 5)),
            "gradient_norm": dict.fromkeys(adapters, 0.2),
        }
        if step % 3 == 0:
            row["loss_per_label"]["bad"] = 1.2 + fall + noise.gauss(0, 0.1)
        if step % 10 == 0:
            shares = {name: {"good": 0.1, "unlabeled": 0.2, "bad": 0.1} for name in adapters}
            row["gradient_norm_per_label"] = shares
        rows.append(row)
    return rows


def _write_sides(folder: RunFolder, plan: Plan, seed: int) -> None:
    write_json(folder.relearn, relearn_record(seed, 0.3 if plan.rate < 0.1 else 1.0))
    if plan.ablated is None:
        return
    write_json(
        folder.geometry, geometry_record(seed, 0.1 if "routing" not in plan.changes else 0.3)
    )
    measures = [
        {"step": step, "mode": mode, "behavior_rate": shown / 32, "shown": shown, "n": 32,
         "normal_loss": 0.9}
        for step in (10, 20, 30, 40)
        for mode, shown in (("full", step // 2), ("bad_ablated", 1))
    ]  # fmt: skip
    write_lines(folder.measures, measures)
    cells = {
        mode: {"rate": {"mean": 0.125, "lower": 0.05, "upper": 0.3, "n": 24},
               "normal_loss": 0.8, "behavior_loss": 1.7}
        for mode in ("bad_ablated", "full", "good_x2")
    }  # fmt: skip
    record = {"schema_version": 1, "steps": 20, "learning_rate": 0.001, "examples": 200,
              "mode": "bad_ablated", "before": cells, "after": cells, "provenance": {}}  # fmt: skip
    write_json(folder.recovery / "recover.json", record)


def geometry_record(seed: int, level: float, layers: int = 2) -> dict[str, Any]:
    """What `gradroute geometry` writes; one module has no direction."""
    noise = random.Random(seed)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    modules = {
        f"model.layers.{layer}.{name}": {
            "layer": layer,
            "module": name,
            "cosine": None if (layer, name) == (0, "o_proj") else level * noise.uniform(-1, 1.5),
            "angles_A": [0.5, 1.2],
            "angles_B": [0.6, 1.3],
            "mean_cos2_A": 0.3 + 0.2 * noise.random(),
            "mean_cos2_B": level * 2 * noise.random(),
        }
        for layer in range(layers)
        for name in names
    }
    chance = {"mean_absolute_cosine": 0.004, "mean_cos2_A": 0.17, "mean_cos2_B": 0.16}
    return {
        "schema_version": 1,
        "step": STEP,
        "adapters": ["good", "bad"],
        "modules": modules,
        "summary": {"mean_absolute_cosine": level, "mean_cos2_A": 0.4, "mean_cos2_B": level},
        "random": {"draws": 5}
        | {
            key: {"mean": value, "lower": 0.8 * value, "upper": 1.2 * value}
            for key, value in chance.items()
        },
        "provenance": {},
    }


def relearn_record(seed: int, speed: float) -> dict[str, Any]:
    """What `gradroute relearn` writes, at two learning rates."""
    curves = []
    for share in (1.0, 1 / 3):
        points: list[dict[str, Any]] = []
        for step in range(0, 41, 4):
            shown = round(64 * (1 - math.exp(-speed * share * (step + seed) / 10)))
            lower, upper = wilson(shown, 64)
            points.append({"step": step, "shown": shown, "n": 64, "rate": shown / 64,
                           "lower": lower, "upper": upper, "normal_loss": 0.8})  # fmt: skip
            if shown >= 32:
                break
        hit = points[-1]["step"] if points[-1]["shown"] >= 32 else None
        curves.append({"learning_rate": 0.004 * share, "steps_to_threshold": hit,
                       "max_steps": 40, "points": points})  # fmt: skip
    return {"schema_version": 1, "behavior": "caps", "kept_mode": "bad_ablated", "examples": 64,
            "threshold": 0.5, "rank": 64, "curves": curves, "provenance": {}}  # fmt: skip
