"""What the ranks of one run tell each other in a step: gradients, losses, and whether to stop.

Every rank trains on its own part of the step's examples, and knows the whole: the order of the data
is a function of seed and step. So the mean of the loss, and which adapters the step reaches, follow
from the labels of all examples and are not sent. What is sent is one sum of the gradients of the
adapters that the step reaches, and one of a few numbers.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradroute.data.batches import Batch
from gradroute.routing.policy import RoutingPolicy
from gradroute.system.ranks import ALONE, Ranks
from gradroute.train.checks import RowLoss
from gradroute.train.step_report import StepReport


@dataclass
class Exchange:
    """One step, as one rank sees it.

    Attributes:
        ranks: The processes of the run.
        before: The micro-batches of the ranks before this one, for reading.
        after: Those of the ranks after it.
        stop: Whether this rank was asked to stop; after the step, whether any was.
        micro_batch: Examples that this rank has memory for in one forward pass; after the step,
            the fewest that any has.
        sharded: The gradients of the adapters are summed by the backward pass itself.
        begun: Whether anything was sent, after which a step cannot be done again.
        sent: Bytes that this rank has given to sums, as they are before they travel.
    """

    ranks: Ranks
    before: Sequence[Batch]
    after: Sequence[Batch]
    stop: bool
    micro_batch: int
    sharded: bool = False
    begun: bool = False
    sent: int = 0

    @classmethod
    def with_nobody(cls) -> "Exchange":
        """That of a process alone: the whole is its own part, and nothing is sent."""
        return cls(ALONE, (), (), stop=False, micro_batch=0)

    def whole(self, own: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of all ranks, in the order of their examples."""
        return [*self.before, *own, *self.after]

    def own(self, of_whole: Sequence[Any], batches: Sequence[Batch]) -> list[Any]:
        """This rank's part of what there is one of for each micro-batch of the whole step."""
        start = len(self.before)
        return list(of_whole[start : start + len(batches)])

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over all ranks, see `sum_gradients`."""
        if not self.ranks.several:
            return
        self.begun = True
        if self.sharded:
            return
        self.sent += sum_gradients(self.ranks, parameters)

    def add_report(self, report: StepReport, policy: RoutingPolicy) -> None:
        """Make the losses and counts of a report those of the whole step; hear who is to stop."""
        if not self.ranks.several:
            return
        self.begun = True
        labels = policy.labels
        sizes = [0.0] * self.ranks.size
        sizes[self.ranks.rank] = float(self.micro_batch)
        tables = (report.nll, report.tokens, report.examples)
        counted = [float(table.get(label, 0)) for table in tables for label in labels]
        own = [report.loss, report.divergence or 0.0, float(self.stop), *sizes, *counted]
        self.sent += 8 * len(own)
        loss, divergence, stop, *rest = self.ranks.numbers(own)
        self.stop, self.micro_batch = stop > 0, int(min(rest[: self.ranks.size]))
        report.loss = loss
        if report.divergence is not None:
            report.divergence = divergence
        rest = rest[self.ranks.size :]
        count = len(labels)
        nll, tokens, examples = rest[:count], rest[count : 2 * count], rest[2 * count :]
        report.nll = {k: n for k, n, some in zip(labels, nll, tokens, strict=True) if some}
        report.tokens = {k: int(n) for k, n in zip(labels, tokens, strict=True) if n}
        report.examples = {k: int(n) for k, n in zip(labels, examples, strict=True) if n}

    def rows_of_all(self, own: Sequence[RowLoss]) -> list[RowLoss]:
        """What the step took of each example, of all ranks; to say what went wrong."""
        said = self.ranks.texts(json.dumps([list(row) for row in own]))
        return [
            RowLoss(name, label, nll, tokens, tuple(by), tuple(of))
            for text in said
            for name, label, nll, tokens, by, of in json.loads(text)
        ]


def sum_gradients(ranks: Ranks, parameters: Iterable[nn.Parameter]) -> int:
    """Replace gradients by their sums over all ranks; one sum for all of a dtype and device.

    A parameter without a gradient counts as one with zeros: whether a rank has a gradient depends
    on its examples, and the sum does not.

    Returns:
        Bytes that this rank has given to the sums.
    """
    own, sent = list(parameters), 0
    for kind in dict.fromkeys((p.dtype, p.device) for p in own):
        some = [p for p in own if (p.dtype, p.device) == kind]
        flat = torch.cat([_gradient(p).reshape(-1) for p in some])
        sent += flat.numel() * flat.element_size()
        ranks.add(flat)
        for parameter, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
            parameter.grad = part.view_as(parameter)
    return sent


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
