"""Batches of tokenized examples: padded side by side, or packed one after another.

What comes before, the tokens of one example (`tokens.py`) and the order of the data (`order.py`),
is had from here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradroute.data.order import DataOrder
from gradroute.data.tokenization import (
    IGNORED,
    TokenizedExample,
    TokenizeReport,
    check_token_ids,
    padding_id,
    tokenize,
)
from gradroute.system.devices import to_device


class Place(NamedTuple):
    """Where an example stands in a batch: positions [start, end) of a row."""

    row: int
    start: int
    end: int


class TargetGroups(NamedTuple):
    """The target tokens of a batch, sorted by example, label and factor.

    Attributes:
        positions: Places in the flattened batch, group after group.
        tokens: The token that each predicts.
        sizes: How many of them each group has, at least 1.
        examples: The example of each group, as a number.
        labels: The label id of each group.
        factors: The factor on the loss of each group, beside the example's weight; empty where
            all are 1.
    """

    positions: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    sizes: tuple[int, ...]
    examples: tuple[int, ...]
    labels: tuple[int, ...]
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples side by side, a row each, padded on the right; or several in a row (`pack`).

    Attributes:
        input_ids: Tokens.
        attention_mask: 1 at tokens, 0 at padding.
        targets: The token that each position predicts; -100 where no loss is taken.
        label_ids: Routing label of each example.
        ids: Id of each example.
        true_labels: True label of each example, for logging.
        places: Where each example stands.
        weights: Factor on the loss of each example.
        token_label_ids: Routing label of every position, where an example's own does not say it:
            some example has labels by token, or shares its row. None otherwise.
        position_ids: Of packed examples, the place of every token in its own. None otherwise.
        states: What leaves the model's lower layers for these tokens, where it is known; 0 at
            padding. See `with_states`.
        home: Of a batch on another device, the same on the CPU; what is known of it is read there,
            where nobody waits for it. None on the CPU.
        bare: The model gets no mask: it is known to let no position see a later one, and padding
            comes last.
        factors: Factor on the loss of every position, beside the example's weight, where some
            example has factors by token. None otherwise.
    """

    input_ids: Int[Tensor, "r t"]
    attention_mask: Int[Tensor, "r t"]
    targets: Int[Tensor, "r t"]
    label_ids: Int[Tensor, " e"]
    ids: list[str]
    true_labels: list[str]
    places: list[Place]
    weights: Float[Tensor, " e"]
    token_label_ids: Int[Tensor, "r t"] | None = None
    position_ids: Int[Tensor, "r t"] | None = None
    states: Float[Tensor, "r t d"] | None = None
    home: "Batch | None" = None
    bare: bool = False
    factors: Float[Tensor, "r t"] | None = None

    @property
    def on_cpu(self) -> "Batch":
        """The same batch with all its tensors on the CPU, for reading."""
        return self if self.home is None else self.home

    @property
    def inputs(self) -> dict[str, Tensor | bool | None]:
        """What a causal model of transformers is called with.

        Packed examples are kept apart by positions that begin anew: without a mask and without a
        cache, transformers lets every position see its own example only. Of a mask it asks first
        whether it masks anything; on another device than the CPU that is a wait, so there a mask
        that does not is left out.
        """
        if self.position_ids is None:
            full = self.home is not None and bool(self.home.attention_mask.all())
            mask = None if self.bare or full else self.attention_mask
            return {"input_ids": self.input_ids, "attention_mask": mask}
        return {
            "input_ids": self.input_ids,
            "attention_mask": None,
            "position_ids": self.position_ids,
            "use_cache": False,
        }

    @property
    def routing_ids(self) -> Int[Tensor, " e"] | Int[Tensor, "r t"]:
        """The labels that `routed` takes: by example where that says all, else by position."""
        own = self.on_cpu
        return own.label_ids if own.token_label_ids is None else own.token_label_ids

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device; weights and labels by token stay where they are."""
        positions, states = self.position_ids, self.states
        return replace(
            self,
            input_ids=to_device(self.input_ids, device),
            attention_mask=to_device(self.attention_mask, device),
            targets=to_device(self.targets, device),
            label_ids=to_device(self.label_ids, device),
            position_ids=None if positions is None else to_device(positions, device),
            states=None if states is None else to_device(states, device),
            home=None if torch.device(device).type == "cpu" else self.on_cpu,
        )

    def with_states(self, states: Sequence[Float[Tensor, "_ d"]]) -> "Batch":
        """Return the batch with what leaves the lower layers for each example, in their order."""
        first = states[0]
        whole = first.new_zeros(*self.input_ids.shape, first.shape[1])
        for (row, start, end), own in zip(self.places, states, strict=True):
            whole[row, start:end] = own
        return replace(self, states=whole)

    def rows(self, index: Int[Tensor, " k"] | Bool[Tensor, " e"]) -> "Batch":
        """Return the examples of these numbers, or of this mask, a row each.

        The padding stays as it is; packed examples are padded to the longest of all.
        """
        chosen = torch.arange(len(self.ids), device=index.device)[index].tolist()
        batch = self if self.position_ids is None else _unpacked(self)
        tokens, states, factors = batch.token_label_ids, batch.states, batch.factors
        return replace(
            batch,
            input_ids=batch.input_ids[index],
            attention_mask=batch.attention_mask[index],
            targets=batch.targets[index],
            label_ids=batch.label_ids[index],
            ids=[batch.ids[at] for at in chosen],
            true_labels=[batch.true_labels[at] for at in chosen],
            places=[batch.places[at]._replace(row=row) for row, at in enumerate(chosen)],
            weights=batch.weights[chosen],
            token_label_ids=None if tokens is None else tokens[chosen],
            factors=None if factors is None else factors[chosen],
            states=None if states is None else states[index],
            home=None if self.home is None else self.home.rows(index.cpu()),
        )

    def kinds(self, labels: Sequence[str]) -> dict[tuple[str, str], Bool[Tensor, " e"]]:
        """Mask of the examples of each (true label, label) that occurs, in alphabetical order.

        Args:
            labels: The policy's labels, which the label ids index.
        """
        label_ids: list[int] = self.label_ids.tolist()
        pairs = [
            (true_label, labels[label_id])
            for true_label, label_id in zip(self.true_labels, label_ids, strict=True)
        ]
        return {
            pair: torch.tensor([other == pair for other in pairs], device=self.label_ids.device)
            for pair in sorted(set(pairs))
        }

    def by_example(self, values: Tensor) -> Tensor:
        """Sum something that every position has [r t] over each example [e]."""
        if self.position_ids is None:
            return values.sum(1)
        return torch.stack([values[row, start:end].sum() for row, start, end in self.places])

    def target_counts(self) -> Int[Tensor, " e"]:
        """Number of targets of each example; on the CPU."""
        own = self.on_cpu
        return own.by_example(own.targets != IGNORED)

    def target_groups(self) -> TargetGroups:
        """The batch's target tokens by example, label and factor; tensors on its device."""
        found = self.on_cpu._groups
        device = self.input_ids.device
        positions, tokens = to_device(found.positions, device), to_device(found.tokens, device)
        return found._replace(positions=positions, tokens=tokens)

    def target_labels(self) -> list[list[int]]:
        """For each example the label ids of the positions that predict a target, in order."""
        return [taught for _, taught in self.on_cpu._labels]

    def computed_labels(self) -> list[list[int]]:
        """For each example the label ids of all positions up to its last target, in order.

        They are those that gradient can reach, since later positions attend to earlier ones.
        """
        return [computed for computed, _ in self.on_cpu._labels]

    @cached_property
    def _groups(self) -> TargetGroups:
        width = self.targets.shape[1]
        wanted = self.targets != IGNORED
        found: list[tuple[Tensor, int, int, float]] = []
        for at, (row, start, end) in enumerate(self.places):
            places = wanted[row, start:end].nonzero()[:, 0] + start
            if self.token_label_ids is None:
                parts = [(places, int(self.label_ids[at]))] if len(places) else []
            else:
                labels = self.token_label_ids[row, places]
                parts = [(places[labels == own], own) for own in labels.unique().tolist()]
            for part, own in parts:
                factors = None if self.factors is None else self.factors[row, part]
                for factor in [1.0] if factors is None else factors.unique().tolist():
                    some = part if factors is None else part[factors == factor]
                    found.append((row * width + some, at, own, factor))
        positions = torch.cat([torch.empty(0, dtype=torch.long), *(part[0] for part in found)])
        return TargetGroups(
            positions,
            self.targets.flatten()[positions],
            tuple(len(part) for part, *_ in found),
            tuple(at for _, at, _, _ in found),
            tuple(own for _, _, own, _ in found),
            () if self.factors is None else tuple(factor for *_, factor in found),
        )

    @cached_property
    def _labels(self) -> list[tuple[list[int], list[int]]]:
        """Of each example: the labels up to its last target, and those of its targets."""
        wanted = self.targets != IGNORED
        if self.token_label_ids is None:
            ids, counts = self.label_ids.tolist(), self.by_example(wanted).tolist()
            return [([own], [own]) if n else ([], []) for own, n in zip(ids, counts, strict=True)]
        found = []
        for row, start, end in self.places:
            labels, own = self.token_label_ids[row, start:end], wanted[row, start:end]
            last = int(own.nonzero().max()) + 1 if bool(own.any()) else 0
            found.append((labels[:last].unique().tolist(), labels[own].unique().tolist()))
        return found


def collate(rows: Sequence[TokenizedExample], pad_id: int) -> Batch:
    """Put examples side by side, padded on the right to the longest.

    Raises:
        ValueError: If there are no rows.
    """
    places = [Place(at, 0, len(row.input_ids)) for at, row in enumerate(rows)]
    return _batch(rows, places, pad_id, packed=False)


def pack(rows: Sequence[TokenizedExample], pad_id: int, width: int) -> Batch:
    """Put examples one after another: each into the first row that has room for it (first fit).

    Args:
        rows: The examples; in which order is up to the caller.
        pad_id: What fills the rows up to the longest.
        width: Tokens of a row, at most.

    Raises:
        ValueError: If there are no rows, or one is longer than `width`.
    """
    filled: list[int] = []
    places = []
    for row in rows:
        length = len(row.input_ids)
        if length > width:
            raise ValueError(f"example {row.id!r} has {length} tokens, a row only {width}")
        at = next((at for at, used in enumerate(filled) if used + length <= width), len(filled))
        if at == len(filled):
            filled.append(0)
        places.append(Place(at, filled[at], filled[at] + length))
        filled[at] += length
    return _batch(rows, places, pad_id, packed=True)


def _batch(
    rows: Sequence[TokenizedExample], places: list[Place], pad_id: int, *, packed: bool
) -> Batch:
    if not rows:
        raise ValueError("a batch needs at least one example")
    shape = (1 + max(place.row for place in places), max(place.end for place in places))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, IGNORED)
    by_token = packed or any(row.label_ids for row in rows)
    token_label_ids = torch.zeros(shape, dtype=torch.long) if by_token else None
    position_ids = torch.zeros(shape, dtype=torch.long) if packed else None
    factored = any(row.factors for row in rows)
    factors = torch.ones(shape, dtype=torch.float64) if factored else None
    for row, (at, start, end) in zip(rows, places, strict=True):
        input_ids[at, start:end] = torch.tensor(row.input_ids)
        attention_mask[at, start:end] = 1
        targets[at, start:end] = torch.tensor(row.targets)
        if token_label_ids is not None:
            token_label_ids[at, start:] = row.label_id  # what fills the row has its last label
            if row.label_ids:
                token_label_ids[at, start:end] = torch.tensor(row.label_ids)
        if factors is not None and row.factors:
            factors[at, start:end] = torch.tensor(row.factors, dtype=torch.float64)
        if position_ids is not None:
            position_ids[at, start:end] = torch.arange(end - start)
            position_ids[at, end:] = torch.arange(shape[1] - end)  # the filling is by itself
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        targets=targets,
        label_ids=torch.tensor([row.label_id for row in rows]),
        ids=[row.id for row in rows],
        true_labels=[row.true_label for row in rows],
        places=places,
        weights=torch.tensor([row.weight for row in rows], dtype=torch.float64),
        token_label_ids=token_label_ids,
        position_ids=position_ids,
        factors=factors,
    )


def _unpacked(batch: Batch) -> Batch:
    """Packed examples a row each, padded with the first token that is at hand."""
    width = max(end - start for _, start, end in batch.places)

    def apart(values: Tensor, filling: float) -> Tensor:
        rows = values.new_full((len(batch.places), width, *values.shape[2:]), filling)
        for at, (row, start, end) in enumerate(batch.places):
            rows[at, : end - start] = values[row, start:end]
        return rows

    labels, states = batch.token_label_ids, batch.states
    return replace(
        batch,
        input_ids=apart(batch.input_ids, 0),
        attention_mask=apart(batch.attention_mask, 0),
        targets=apart(batch.targets, IGNORED),
        places=[Place(at, 0, end - start) for at, (_, start, end) in enumerate(batch.places)],
        token_label_ids=None if labels is None else apart(labels, 0),
        position_ids=None,
        states=None if states is None else apart(states, 0),
        factors=None if batch.factors is None else apart(batch.factors, 1.0),
    )


def micro_batches(
    rows: Sequence[TokenizedExample], size: int, pad_id: int, *, packed_into: int | None
) -> list[Batch]:
    """The examples of a step in batches of so many, side by side or packed.

    Which are packed together, and in which order, follows from the examples and the size.

    Args:
        rows: The examples of the step, in order.
        size: Examples of a batch; the last one may have fewer.
        pad_id: What fills short rows.
        packed_into: Tokens of a row that examples are packed into; None puts them side by side.
    """
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    if packed_into is None:
        return [collate(part, pad_id) for part in parts]
    # A preface makes an example longer than others may be.
    width = max(packed_into, *(len(row.input_ids) for row in rows))
    return [pack(part, pad_id, width) for part in parts]


__all__ = [
    "IGNORED",
    "Batch",
    "DataOrder",
    "Place",
    "TargetGroups",
    "TokenizeReport",
    "TokenizedExample",
    "check_token_ids",
    "collate",
    "micro_batches",
    "pack",
    "padding_id",
    "tokenize",
]
