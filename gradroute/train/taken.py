"""What a step took of its examples: left on the device as it comes, read once at the end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradroute.data.batches import IGNORED, Batch
from gradroute.devices import fetched
from gradroute.routing.policy import RoutingPolicy
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
    """

    loss: float = 0.0
    nll: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    updated: set[str] = field(default_factory=set)
    gradient_norms: dict[str, float] = field(default_factory=dict)
    rows: list[RowLoss] = field(default_factory=list)


class Taken(NamedTuple):
    """What a micro-batch left behind.

    Attributes:
        batch: The examples.
        loss: Its share of the loss of the step.
        losses: At every position.
    """

    batch: Batch
    loss: Float[Tensor, ""]
    losses: Float[Tensor, "r t"]

    def tensors(self) -> list[Tensor]:
        """What is to be read: the loss, the sums by example, and what labels by token ask for."""
        sums = self.batch.by_example(self.losses)
        by_position = [] if self.batch.token_label_ids is None else [self.losses]
        return [self.loss, sums, *by_position]


def read_step(
    taken: Sequence[Taken], policy: RoutingPolicy, more: Mapping[str, Float[Tensor, ""]]
) -> tuple[StepReport, dict[str, float]]:
    """Read what a step left on the device; the CPU waits for it once.

    Args:
        taken: Of every micro-batch.
        policy: The routing table.
        more: Other numbers to read along.

    Returns:
        The losses per label and example, and the other numbers.
    """
    left = [one.tensors() for one in taken]
    numbers = iter(fetched([*(tensor for own in left for tensor in own), *more.values()]))
    report = StepReport()
    for one, own in zip(taken, left, strict=True):
        [loss], sums, *by_position = (next(numbers) for _ in own)
        report.loss += loss
        _count(report, one, sums, by_position[0] if by_position else [], policy)
    return report, {name: next(numbers)[0] for name in more}


def _count(
    report: StepReport,
    taken: Taken,
    sums: Sequence[float],
    by_position: Sequence[float],
    policy: RoutingPolicy,
) -> None:
    """Add what a micro-batch took of each example, and of each label."""
    labels, batch = policy.labels, taken.batch.on_cpu
    counts: list[int] = batch.target_counts().tolist()
    losses = torch.tensor(by_position, dtype=taken.losses.dtype)
    shares = _shares(batch, losses, sums, counts)
    computed, taught = batch.computed_labels(), batch.target_labels()
    for at, (name, label_id) in enumerate(zip(batch.ids, batch.label_ids.tolist(), strict=True)):
        for own, nll, count in next(shares):
            label = labels[own]
            report.nll[label] = report.nll.get(label, 0.0) + nll
            report.tokens[label] = report.tokens.get(label, 0) + count
        label = labels[label_id]
        report.examples[label] = report.examples.get(label, 0) + 1
        by, of = (tuple(labels[i] for i in ids[at]) for ids in (computed, taught))
        report.rows.append(RowLoss(name, label, sums[at], counts[at], by, of))


def _shares(
    batch: Batch, losses: Float[Tensor, " n"], sums: Sequence[float], counts: Sequence[int]
) -> Iterator[list[tuple[int, float, int]]]:
    """Of each example: label id, summed loss and number of the targets with it."""
    if batch.token_label_ids is None:
        for whole in zip(batch.label_ids.tolist(), sums, counts, strict=True):
            yield [whole]
        return
    losses, wanted = losses.view(batch.targets.shape), batch.targets != IGNORED
    for row, start, end in batch.places:
        own, among = batch.token_label_ids[row, start:end], wanted[row, start:end]
        masks = [(i, (own == i) & among) for i in own[among].unique().tolist()]
        yield [(i, losses[row, start:end][m].sum().item(), int(m.sum())) for i, m in masks]
