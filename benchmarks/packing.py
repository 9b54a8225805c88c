"""What packing and steps of like lengths save: time over that of padded steps as they are drawn.

    python benchmarks/packing.py

The embedded model with the default adapters, and the same examples for both layouts: embedded
stories, once as they are (of like lengths) and once each cut to a share between a tenth and all of
its words. Steps take turns, each layout on a copy of the model of its own, and which comes first
changes from step to step. Steps of like lengths (`train.length_window`) have other examples than
the others, but windows of them have the same, so these are compared by their sums. One JSON file
under `benchmarks/results/packing/`; a few minutes on one core.
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch.optim import Optimizer

from gradroute.config.run_config import load_config
from gradroute.data.batches import Batch, DataOrder, TokenizedExample, collate, pack, tokenize
from gradroute.data.examples import Example
from gradroute.data.stories import stories
from gradroute.models.base import load_base
from gradroute.models.trained import attach
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.provenance import provenance
from gradroute.train.model_checks import check_packing
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import train_step

CONFIG = load_config(None, ["data.max_length=128", "train.batch_size=16"])
POLICY = RoutingPolicy.parse(CONFIG.routing, tuple(CONFIG.adapters))
WINDOW = 8  # steps whose examples are sorted by length
WARM = WINDOW  # steps that are not counted


def texts(kind: str, count: int, seed: int) -> list[str]:
    """Stories as they are ("like"), or each cut to a share of its words ("mixed")."""
    found = stories("tune", count, seed)
    if kind == "like":
        return found
    draw = random.Random(f"packing {seed}")
    return [
        " ".join(words[: max(3, round(len(words) * draw.uniform(0.1, 1.0)))])
        for words in (text.split() for text in found)
    ]


def trained() -> tuple[PeftModel, Optimizer]:
    """The embedded model with fresh adapters, and their optimizer."""
    model = attach(load_base("embedded").model, CONFIG).train()
    return model, build_optimizer(model, CONFIG.adapters, 1e-4)


def compare(rows: list[TokenizedExample], pad_id: int, steps: int, seed: int) -> dict[str, Any]:
    """Seconds, positions and losses of the same steps in both layouts."""
    width, size = CONFIG.data.max_length, CONFIG.train.batch_size
    order = DataOrder(seed, len(rows), tuple(range(len(rows))))
    lengths = tuple(len(row.input_ids) for row in rows)
    sorted_order = replace(order, window=WINDOW, lengths=lengths)
    models = {name: trained() for name in ("padded", "packed", "sorted")}
    check_packing(models["packed"][0], rows, pad_id)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    positions, tokens = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    for step in range(WARM + steps):
        chosen = [rows[at] for at in order.batch(step, size)]
        alike = [rows[at] for at in sorted_order.batch(step, size)]
        for name in sorted(models, reverse=step % 2 == 1):
            model, optimizer = models[name]
            mine = alike if name == "sorted" else chosen
            began = time.perf_counter()
            batch: Batch = pack(mine, pad_id, width) if name == "packed" else collate(mine, pad_id)
            report = train_step(model, optimizer, [batch], POLICY, loss_mean="token", rate=1.0)
            if step >= WARM:
                seconds[name].append(time.perf_counter() - began)
                losses[name].append(report.loss)
                positions[name] += batch.input_ids.numel()
                tokens[name] += sum(len(row.input_ids) for row in mine)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    windows = {
        name: [sum(found[at : at + WINDOW]) for at in range(0, steps, WINDOW)]
        for name, found in seconds.items()
    }
    ratios = [s / p for s, p in zip(windows["sorted"], windows["padded"], strict=True)]
    pairs = zip(losses["packed"], losses["padded"], strict=True)
    return {
        "examples": len(rows),
        "tokens_of_an_example": [
            round(one) for one in statistics.quantiles((len(r.input_ids) for r in rows), n=4)
        ],
        "steps": steps,
        "median_seconds": medians,
        "packed_over_padded": medians["packed"] / medians["padded"],
        "sorted_over_padded": statistics.median(ratios),
        "sorted_over_padded_windows": ratios,
        "padding_share": {name: 1 - tokens[name] / positions[name] for name in models},
        "largest_difference_of_losses": max(abs(one - other) for one, other in pairs),
    }


def main() -> None:
    """Measure both kinds of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help=f"a multiple of {WINDOW}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "packing")
    options = parser.parse_args()
    base = load_base("embedded")
    record: dict[str, Any] = {
        "question": "the time of a step on packed, or sorted, examples over that on padded ones",
        "command": f"python benchmarks/packing.py --steps {options.steps} --seed {options.seed}",
        "date": date.today().isoformat(),
        "provenance": provenance(),
        "batch_size": CONFIG.train.batch_size,
        "max_length": CONFIG.data.max_length,
    }
    for kind in ("mixed", "like"):
        count = CONFIG.train.batch_size * (WARM + options.steps)  # an epoch
        found = [Example(str(at), one) for at, one in enumerate(texts(kind, count, options.seed))]
        label_ids = [at % len(POLICY.labels) for at in range(len(found))]
        rows, _ = tokenize(found, base.tokenizer, label_ids, CONFIG.data.max_length)
        record[kind] = compare(rows, base.pad_id, options.steps, options.seed)
        print(
            f"{kind}: packed / padded = {record[kind]['packed_over_padded']:.2f}, "
            f"sorted / padded = {record[kind]['sorted_over_padded']:.2f}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"embedded_seed{options.seed}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
