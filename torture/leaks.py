"""Adapters that no label of a step updates stay bit-identical, optimizer state included.

Random tables, adapters and optimizers. Every trial is warm before it looks: with empty moments and
no weight decay a gradient of zeros would not move anything, and a leak would go unseen.
Beside it the two usual ways are measured from the same state: gradients set to zero instead of
None, and one gradient norm clipped over all adapters.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import Batch, collate
from gradroute.routing.adapters import adapter_parameters
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.optimizer import build_optimizer, schedule
from gradroute.train.step import accumulate_gradients, train_step
from torture.routings import (
    Table,
    base_digest,
    draw_row,
    draw_table,
    due_updates,
    same_bits,
    tiny_routed,
    weight_of,
)

OPTIMIZERS = {
    "AdamW, one by one": (torch.optim.AdamW, {"foreach": False}),
    "AdamW, foreach": (torch.optim.AdamW, {"foreach": True}),
    "AdamW, fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW, amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "RMSprop with momentum": (torch.optim.RMSprop, {"momentum": 0.9}),
}
OWN = "AdamW of build_optimizer"
LOUD = 1000.0
NAMES = ("good", "bad", "style", "tone")
TARGETS = ("all-linear", ["q_proj", "v_proj"], ["o_proj", "down_proj"], ["k_proj", "up_proj"])
LABELS = ("bad", "unlabeled", "good", "other")


@dataclass
class Trial:
    """One configuration, and the model that is trained under it."""

    draw: random.Random
    table: Table
    policy: RoutingPolicy
    warming: RoutingPolicy  # updates every adapter
    quiet: Sequence[Collection[str]]  # sets of labels that leave an adapter out
    model: PeftModel
    optimizer: torch.optim.Optimizer
    kind: str
    accumulation: int
    loss_mean: str
    rate: float

    def batches(self, labels: Collection[str], count: int | None = None) -> list[Batch]:
        """The micro-batches of a step that has every one of these labels, and no other."""
        draw, count = self.draw, count or self.accumulation
        names = [*labels, *draw.choices(sorted(labels), k=draw.randint(0, 2))]
        names += draw.choices(sorted(labels), k=max(0, count - len(names)))
        draw.shuffle(names)
        ids = self.policy.label_ids(names)
        rows = [draw_row(draw, i, f"row-{at}") for at, i in enumerate(ids)]
        return [collate(rows[at::count], 0) for at in range(count)]

    def step(self, batches: Sequence[Batch], policy: RoutingPolicy | None = None) -> set[str]:
        """One step; the adapters that it says it has updated."""
        return train_step(
            self.model,
            self.optimizer,
            batches,
            policy or self.policy,
            loss_mean=self.loss_mean,
            rate=self.rate,
        ).updated

    def tensors(self, adapter: str) -> list[Tensor]:
        """Weights and optimizer state of an adapter, as they are now."""
        own = adapter_parameters(self.model)[adapter]
        state = [self.optimizer.state[p] for p in own]
        moments = [v for one in state for _, v in sorted(one.items()) if isinstance(v, Tensor)]
        return [tensor.detach().clone() for tensor in (*own, *moments)]

    def snapshot(self) -> dict[str, list[Tensor]]:
        return {name: self.tensors(name) for name in self.policy.adapters}

    def back_to(self, before: dict[str, list[Tensor]]) -> None:
        """Put weights and optimizer state back."""
        for name, tensors in before.items():
            own = adapter_parameters(self.model)[name]
            state = [self.optimizer.state[p] for p in own]
            moments = [v for one in state for _, v in sorted(one.items()) if isinstance(v, Tensor)]
            with torch.no_grad():
                for now, then in zip((*own, *moments), tensors, strict=True):
                    now.copy_(then)


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Random routing configurations, and what became of the adapters that were left out.

    Args:
        count: configurations.
        seed: of everything that is drawn.
        folder: not used; nothing is written.

    Returns:
        "trials"; "steps" that left an adapter out; "left_out" (adapters times steps), of them
        "leaks" and the "largest_drift" of a weight or moment; "updated" (adapters times steps)
        and of them "unmoved"; "base_changed"; "loud" comparisons with one adapter's gradient times
        1,000, and of them "loud_leaks"; the usual ways in the same trials: gradients "zeroed",
        and how far a weight drifts then, and all adapters "clipped_together", and by how much the
        gradient of one shrinks then when another is loud; what was drawn; "failures".
    """
    counts: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    drifts: dict[str, list[float]] = {"zeros": [], "joint clip": []}
    largest = 0.0
    failures: list[str] = []
    for number in range(count):
        trial = _draw(random.Random(f"leaks {seed} {number}"))
        torch.manual_seed(number)  # of dropout
        base = base_digest(trial.model)
        drawn.update(_features(trial))
        for _ in range(trial.draw.randint(5, 7)):
            trial.step(trial.batches(trial.policy.labels, count=1), trial.warming)
        found, drift = _leave_out(trial, counts)
        largest = max(largest, drift)
        found += _shout(trial, counts)
        _usual_ways(trial, drifts)
        if base_digest(trial.model) != base:
            counts["base_changed"] += 1
            found.append("the base changed")
        failures += [f"trial {number} ({trial.kind}, {trial.table}): {text}." for text in found]
    names = ("steps", "left_out", "leaks", "updated", "unmoved", "base_changed", "loud")
    return {
        "trials": count,
        **{name: counts[name] for name in (*names, "loud_leaks")},
        "largest_drift": largest,
        **_summary("zeroed", drifts["zeros"]),
        **_summary("clipped_together", drifts["joint clip"]),
        "drawn": dict(sorted(drawn.items())),
        "failures": failures,
    }


def _leave_out(trial: Trial, counts: Counter[str]) -> tuple[list[str], float]:
    """A few steps that leave an adapter out: who moved, and the largest drift of who must not."""
    found: list[str] = []
    largest = 0.0
    for _ in range(trial.draw.randint(1, 5)):
        labels = trial.draw.choice(trial.quiet)
        due = due_updates(trial.table, labels)
        before = trial.snapshot()
        said = trial.step(trial.batches(labels))
        counts["steps"] += 1
        if said != due:
            found.append(f"labels {sorted(labels)} updated {sorted(said)}, due {sorted(due)}")
        for name in trial.policy.adapters:
            now = trial.tensors(name)
            same = all(map(same_bits, before[name], now)) and len(before[name]) == len(now)
            if name in due:
                counts["updated"] += 1
                counts["unmoved"] += same
                if same:
                    found.append(f"{name} did not learn from {sorted(labels)}")
                continue
            counts["left_out"] += 1
            counts["leaks"] += not same
            largest = max(largest, _difference(before[name], now))
            if not same:
                found.append(f"{name} moved in a step of {sorted(labels)}")
    return found, largest


def _shout(trial: Trial, counts: Counter[str]) -> list[str]:
    """One adapter's gradient times 1,000 and under another clip: the others must not notice."""
    updated = sorted(due_updates(trial.table, trial.policy.labels))
    others = [name for name in trial.policy.adapters if name not in updated[:1]]
    if not updated or not others:
        return []
    loud = trial.draw.choice(updated)
    before, batches = trial.snapshot(), trial.batches(trial.policy.labels)
    after = []
    for factor, clip in ((1.0, 1.0), (LOUD, trial.draw.choice([None, 1e-3, 1.0]))):
        trial.back_to(before)
        group = next(g for g in trial.optimizer.param_groups if g["adapter"] == loud)
        group["clip"] = clip
        torch.manual_seed(0)
        with _scaled(trial.model, loud, factor):
            trial.step(batches)
        after.append(trial.snapshot())
    found = []
    for name in trial.policy.adapters:
        if name != loud:
            counts["loud"] += 1
            if not all(map(same_bits, after[0][name], after[1][name])):
                counts["loud_leaks"] += 1
                found.append(f"{name} noticed that the gradient of {loud} was larger")
    return found


def _usual_ways(trial: Trial, drifts: dict[str, list[float]]) -> None:
    """What the same step does to an adapter that is left out, done in the usual ways."""
    before = trial.snapshot()
    labels = trial.draw.choice(trial.quiet)
    due = due_updates(trial.table, labels)
    accumulate_gradients(trial.model, trial.batches(labels), trial.policy, trial.loss_mean)
    trial.optimizer.step()  # gradients of zeros, not None
    quiet = [name for name in trial.policy.adapters if name not in due]
    weights = adapter_parameters(trial.model)
    drifts["zeros"].append(
        max(_difference(before[n][: len(weights[n])], weights[n]) for n in quiet)
    )
    trial.back_to(before)
    trial.optimizer.zero_grad(set_to_none=True)
    updated = sorted(due_updates(trial.table, trial.policy.labels))
    if len(updated) < 2:
        return
    loud, quiet_one = updated[:2]
    batches, clipped = trial.batches(trial.policy.labels), []
    for factor in (1.0, LOUD):
        torch.manual_seed(0)
        with _scaled(trial.model, loud, factor):
            accumulate_gradients(trial.model, batches, trial.policy, trial.loss_mean)
        nn.utils.clip_grad_norm_(trial.model.parameters(), 0.1)
        own = adapter_parameters(trial.model)[quiet_one]
        clipped.append(torch.cat([p.grad.flatten() for p in own if p.grad is not None]))
        trial.optimizer.zero_grad(set_to_none=True)
    drifts["joint clip"].append(float((clipped[0] - clipped[1]).norm() / clipped[0].norm()))


@contextmanager
def _scaled(model: PeftModel, adapter: str, factor: float) -> Iterator[None]:
    hooks = [
        parameter.register_hook(lambda gradient: gradient * factor)
        for parameter in adapter_parameters(model)[adapter]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _draw(draw: random.Random) -> Trial:
    adapters = {name: _adapter(draw) for name in NAMES[: draw.randint(1, 4)]}
    labels = LABELS[: draw.randint(1, 4)]
    quiet: list[Collection[str]] = []
    table: Table = {}
    while not quiet:
        table = draw_table(draw, labels, list(adapters))
        sets = chain.from_iterable(combinations(labels, n) for n in range(1, len(labels) + 1))
        quiet = [one for one in sets if due_updates(table, one) != set(adapters)]
    policy = RoutingPolicy.parse(table, list(adapters))
    everything = {label: dict.fromkeys(adapters, "update") for label in labels}
    warming = policy
    if due_updates(table, labels) != set(adapters):
        warming = RoutingPolicy.parse(everything, list(adapters))
    kind = draw.choice([OWN, *OPTIMIZERS])
    peak = draw.choice([1e-3, 1e-2, 5e-2]) * (20 if kind.startswith("SGD") else 1)
    model = tiny_routed(
        adapters,
        seed=draw.randrange(1000),
        targets=draw.choice(TARGETS),
        layers=draw.choice(["all", "last-half"]),
    )
    max_steps = draw.randint(20, 200)
    at = draw.randrange(int(max_steps * 0.9))
    return Trial(
        draw=draw,
        table=table,
        policy=policy,
        warming=warming,
        quiet=quiet,
        model=model,
        optimizer=_optimizer(kind, model, adapters, peak),
        kind=kind,
        accumulation=draw.choice([1, 1, 2, 3, 4]),
        loss_mean=draw.choice(["token", "example"]),
        rate=schedule(at, max_steps, draw.choice([0, 10])),
    )


def _adapter(draw: random.Random) -> AdapterConfig:
    return AdapterConfig(
        rank=draw.randint(1, 6),
        alpha=draw.choice([None, 1.0, 8.0]),
        dropout=draw.choice([0.0, 0.0, 0.0, 0.0, 0.1, 0.5]),
        learning_rate=draw.choice([None, None, 2e-2]),
        weight_decay=draw.choice([0.0, 0.01, 0.1]),
        clip=draw.choice([None, 0.1, 1.0]),
    )


def _optimizer(
    kind: str, model: PeftModel, adapters: dict[str, AdapterConfig], peak: float
) -> torch.optim.Optimizer:
    """The optimizer of `build_optimizer`, or another one on its parameter groups."""
    own = build_optimizer(model, adapters, peak)
    if kind == OWN:
        return own
    keys = ("params", "adapter", "peak", "weight_decay", "clip")
    make, settings = OPTIMIZERS[kind]
    return make([{key: g[key] for key in keys} for g in own.param_groups], lr=peak, **settings)


def _features(trial: Trial) -> Iterator[str]:
    yield f"optimizer: {trial.kind}"
    yield f"adapters: {len(trial.policy.adapters)}"
    yield f"labels: {len(trial.policy.labels)}"
    yield f"accumulation: {trial.accumulation}"
    yield f"loss_mean: {trial.loss_mean}"
    for group in trial.optimizer.param_groups:
        yield f"weight decay: {group['weight_decay']}"
        yield f"clip: {group['clip']}"
    for route in (route for row in trial.table.values() for route in row.values()):
        weighted = isinstance(route, dict) and f"update with weight {weight_of(route):g}"
        yield f"route: {weighted or route}"


def _difference(before: Sequence[Tensor], now: Sequence[Tensor]) -> float:
    return max(float((a - b.detach()).abs().max()) for a, b in zip(before, now, strict=True))


def _summary(name: str, drifts: Sequence[float]) -> dict[str, float | int]:
    """In how many trials a usual way moved who was left out, and by how much."""
    return {
        name: len(drifts),
        f"{name}_leaks": sum(value > 0 for value in drifts),
        f"{name}_median": median(drifts or [0.0]),
        f"{name}_largest": max(drifts, default=0.0),
    }
