"""Everything that one run's training needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from gradroute.config.sections import TrainConfig
from gradroute.data.batches import DataOrder, TokenizedExample
from gradroute.models.hidden_state_cache import HiddenStateCache
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.system.ranks import ALONE, Ranks
from gradroute.train.audit import Audit
from gradroute.train.reference import Reference


@dataclass(frozen=True)
class Training:
    """Everything that `trainer.train` needs for one run.

    Attributes:
        settings: how long, how fast and on how much is trained.
        seed: of the run.
        config_text: the whole configuration; every checkpoint holds it.
        told: what a tracker is told of the configuration, see `shown_config`.
        folder: where the run is written.
        model: the routed model on its device.
        optimizer: of its adapters, from `build_optimizer`.
        rows: the tokenized training examples.
        order: which of them make up a step.
        policy: the routing table that the rows' label ids index.
        pad_id: the padding token.
        packed_into: tokens of a row of several examples; None to pad each example.
        say: where a line for the user goes.
        bar: show a progress bar rather than a line now and then.
        measure: called with the number of steps done, every `train.measure_every` of them and after
            the last; it must leave the model and the random state as they were.
        audit: follows every example of every step to its routes; nothing that training computes
            depends on it.
        states: what leaves the lower layers for every example that is visited, where it is reused.
        reference: what else the loss pulls the model to, see `open_reference`.
        ranks: the processes that train the run together; each has all of the above.
        sharded: the weights are spread over the ranks, see `models.sharding`.
    """

    settings: TrainConfig
    seed: int
    config_text: str
    told: Mapping[str, Any]
    folder: RunFolder
    model: PeftModel
    optimizer: torch.optim.Optimizer
    rows: Sequence[TokenizedExample]
    order: DataOrder
    policy: RoutingPolicy
    pad_id: int
    say: Callable[[str], None]
    packed_into: int | None = None
    bar: bool = False
    measure: Callable[[int], None] | None = None
    audit: Audit | None = None
    states: HiddenStateCache | None = None
    reference: Reference | None = None
    ranks: Ranks = ALONE
    sharded: bool = False

    @property
    def visited(self) -> list[TokenizedExample]:
        """The examples that all steps together take."""
        return [self.rows[at] for at in self.order.visited(self.settings.max_steps, self.each)]

    @property
    def each(self) -> int:
        """Examples of a step, of all ranks together."""
        return self.settings.step_examples

    def places(self, step: int, rank: int) -> list[int]:
        """A rank's part of the examples of a step, as many as any other's."""
        part = self.each // self.ranks.size
        return self.order.batch(step, self.each)[rank * part : (rank + 1) * part]

    @property
    def at_once(self) -> int:
        """Examples of one forward pass on one rank, where memory holds them."""
        return min(self.settings.batch_size, self.each // self.ranks.size)

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files; of several, the first does."""
        return self.ranks.is_main
