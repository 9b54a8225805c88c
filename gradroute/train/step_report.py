"""Numbers of a step's examples: left on the device, read once at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradroute.data.batches import Batch
from gradroute.routing.policy import RoutingPolicy
from gradroute.system.devices import to_host
from gradroute.train.checks import RowLoss


@dataclass
class StepReport:
    """What one optimizer step did.

    Attributes:
        loss: the step's training loss in nats, averaged as `loss_mean` says.
        nll: label -> summed negative log likelihood of its target tokens, in nats; whatever the
            weights of the examples.
        tokens: label -> number of target tokens: those with it, where tokens have labels of their
            own.
        examples: label -> number of examples, each under its own label.
        updated: the adapters whose weights this step changed.
        gradient_norms: adapter -> norm of its gradient before clipping, for updated adapters.
        rows: what the step took of each example, in its order.
        divergence: from the reference in nats, averaged as `loss_mean` says and before its factor;
            None for a step without one.
    """

    loss: float = 0.0
    nll: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    updated: set[str] = field(default_factory=set)
    gradient_norms: dict[str, float] = field(default_factory=dict)
    rows: list[RowLoss] = field(default_factory=list)
    divergence: float | None = None


class MicroBatchLosses(NamedTuple):
    """What a micro-batch left behind.

    Attributes:
        batch: The examples.
        loss: Its share of the loss of the step.
        losses: Summed over each of the batch's groups of targets.
        divergence: Its share of the mean divergence of the step, where a reference was asked.
    """

    batch: Batch
    loss: Float[Tensor, ""]
    losses: Float[Tensor, " g"]
    divergence: Float[Tensor, ""] | None = None


def read_step(
    micro_batches: Sequence[MicroBatchLosses],
    policy: RoutingPolicy,
    more: Mapping[str, Float[Tensor, ""]],
) -> tuple[StepReport, dict[str, float]]:
    """Read what a step left on the device; the CPU waits for it once.

    Args:
        micro_batches: Of every micro-batch.
        policy: The routing table.
        more: Other numbers to read along.

    Returns:
        The losses per label and example, and the other numbers.
    """
    left = [tensor for one in micro_batches for tensor in one[1:] if tensor is not None]
    numbers = iter(to_host([*left, *more.values()]))
    report = StepReport()
    for one in micro_batches:
        [loss], losses = next(numbers), next(numbers)
        report.loss += loss
        if one.divergence is not None:
            report.divergence = (report.divergence or 0.0) + next(numbers)[0]
        _count(report, one.batch, losses, policy)
    return report, {name: next(numbers)[0] for name in more}


def _count(
    report: StepReport, batch: Batch, losses: Sequence[float], policy: RoutingPolicy
) -> None:
    """Add what a micro-batch took of each example, and of each label."""
    labels, groups = policy.labels, batch.on_cpu.target_groups()
    sums, counts = [0.0] * len(batch.ids), [0] * len(batch.ids)
    for loss, size, at, own in zip(
        losses, groups.sizes, groups.examples, groups.labels, strict=True
    ):
        label = labels[own]
        report.nll[label] = report.nll.get(label, 0.0) + loss
        report.tokens[label] = report.tokens.get(label, 0) + size
        sums[at] += loss
        counts[at] += size
    computed, taught = batch.computed_labels(), batch.target_labels()
    own_labels: list[int] = batch.on_cpu.label_ids.tolist()
    for at, (name, label_id) in enumerate(zip(batch.ids, own_labels, strict=True)):
        label = labels[label_id]
        report.examples[label] = report.examples.get(label, 0) + 1
        by, of = (tuple(labels[i] for i in ids[at]) for ids in (computed, taught))
        report.rows.append(RowLoss(name, label, sums[at], counts[at], by, of))


def metrics_line(
    step: int,
    report: StepReport,
    optimizer: torch.optim.Optimizer,
    norms: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """The line of a step in `metrics.jsonl`: losses, counts, rates and gradient norms."""
    row: dict[str, Any] = {
        "step": step,
        "loss": report.loss,
        "loss_per_label": {
            label: report.nll[label] / report.tokens[label] for label in sorted(report.nll)
        },
        "examples": dict(sorted(report.examples.items())),
        "tokens": dict(sorted(report.tokens.items())),
        "learning_rate": {group["adapter"]: group["lr"] for group in optimizer.param_groups},
        "gradient_norm": dict(sorted(report.gradient_norms.items())),
    }
    if report.divergence is not None:
        row["divergence"] = report.divergence
    if norms:
        row["gradient_norm_per_label"] = norms
    return row
