"""Groups of adapters that are computed together, their gates, and their stacked weights.

A scope makes the groups of a batch once for all layers; `ops` computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gradroute.routing.gates import ColumnGates, Gate, cast, column_gates, is_zero

Rows = slice | Tensor | None


@dataclass(frozen=True)
class AdapterGroup:
    """Adapters that are computed together on the same positions of a flattened batch.

    Attributes:
        adapters: Indices of the adapters.
        rows: The m positions: None for all, a slice, or their indices (int64, ascending).
        scales: Factor on each adapter's output, beside the adapter's own.
        update: Gate on each adapter's weight gradient: one number, or a tensor [m] (bool, or
            float for weights other than 0 and 1).
        passes: Gate on the gradient through each adapter to the input: a bool, or a bool [m].
        on: Where each adapter runs, among these positions: True, or a bool [m]. Where it does not,
            its hidden activations are computed and set to 0, and its `update` and `passes` have
            to be closed too. An adapter whose weights are not finite still reaches what it is off
            at: 0 times infinity is no number.
    """

    adapters: tuple[int, ...]
    rows: Rows
    scales: tuple[float, ...]
    update: tuple[Gate, ...]
    passes: tuple[Gate, ...]
    on: tuple[bool | Tensor, ...] | None = None
    # Kept with the group, which all layers of a batch share: layers differ in ranks and dtype only.
    _columns: dict[tuple, "GateColumns"] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _wide: dict[tuple[int, int], "AdapterGroup"] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def columns(
        self, ranks: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> "GateColumns":
        """The gates of adapters of these ranks, side by side; made once for all layers."""
        key = (*ranks, dtype)
        if key not in self._columns:
            self._columns[key] = _gate_columns(self, ranks, dtype, device)
        return self._columns[key]

    def on_layers(self, layers: int, adapters: int) -> "AdapterGroup":
        """The group on so many layers at once, each with so many adapters; made once for all.

        Adapter k of layer i has the index `i * adapters + k`, and the gates of adapter k.
        """
        if layers == 1:
            return self
        key = (layers, adapters)
        if key not in self._wide:
            self._wide[key] = AdapterGroup(
                tuple(i * adapters + k for i in range(layers) for k in self.adapters),
                self.rows,
                self.scales * layers,
                self.update * layers,
                self.passes * layers,
                None if self.on is None else self.on * layers,
            )
        return self._wide[key]


@dataclass(frozen=True)
class GateColumns:
    """What a group's gates are for adapters of certain ranks; None is open everywhere.

    Attributes:
        ranks: Of the group's adapters.
        learning: Which of these have an update gate that is not 0 everywhere.
        on: Where they run.
        through: Whether any of them passes gradient to the input.
        passes: What else closes that gradient.
        update: What else closes that of the weights, of those that learn.
    """

    ranks: tuple[int, ...]
    learning: tuple[int, ...]
    on: ColumnGates | None
    through: bool
    passes: ColumnGates | None
    update: ColumnGates | None


class Stack(NamedTuple):
    """Adapters as one: the output on each layer is `alpha * up @ (its part of down @ x)`.

    Attributes:
        down: Every A; times its adapter's factor where the adapters have different ones.
        ups: Every B of each layer.
        alpha: The factor that all of them have, else 1.
    """

    down: Float[Tensor, "rank inputs"]
    ups: tuple[Float[Tensor, "_ _"], ...]
    alpha: float


def stacked(
    group: AdapterGroup,
    downs: Sequence[Float[Tensor, "_ inputs"]],
    ups: Sequence[Float[Tensor, "_ _"]],
    scalings: Sequence[float],
    dtype: torch.dtype,
    layers: int = 1,
) -> Stack:
    """The group's adapters as one; a single one, and a common factor, is not copied.

    The group is one of so many layers, see `AdapterGroup.on_layers`.
    """
    # One wide product costs less than one for each adapter; a copy of A and B is what it takes.
    factors = [scalings[k] * scale for k, scale in zip(group.adapters, group.scales, strict=True)]
    down = [cast(downs[k], dtype) for k in group.adapters]
    up = [cast(ups[k], dtype) for k in group.adapters]
    common = len(set(factors)) == 1
    if not common:
        # On A and not on B: then the hidden activations carry the factor, and dB is right as it is.
        down = [own * factor for own, factor in zip(down, factors, strict=True)]
    each = len(up) // layers
    blocks = [up[start : start + each] for start in range(0, len(up), each)]
    alpha = factors[0] if common else 1.0
    return Stack(_side_by_side(down, dim=0), tuple(_side_by_side(b, dim=1) for b in blocks), alpha)


def _side_by_side(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def select_rows(values: Shaped[Tensor, "n ..."], rows: Rows) -> Shaped[Tensor, "m ..."]:
    """The positions of a group: all, a view of a slice, or a copy of some."""
    if isinstance(rows, Tensor):
        return values.index_select(0, rows)  # several times as fast as values[rows] on a CPU
    return values if rows is None else values[rows]


def _gate_columns(
    group: AdapterGroup, ranks: Sequence[int], dtype: torch.dtype, device: torch.device
) -> GateColumns:
    """Gates that close just what `on` does are left out: it is in force already."""

    def beyond(gates: Sequence[Gate]) -> list[Gate]:
        on = group.on or (True,) * len(gates)
        # By identity: scopes put the mask itself where a gate equals it.
        return [1.0 if gate is here else gate for gate, here in zip(gates, on, strict=True)]

    learning = tuple(i for i, gate in enumerate(group.update) if not is_zero(gate))
    update = beyond(group.update)
    return GateColumns(
        ranks=tuple(ranks),
        learning=learning,
        on=column_gates(group.on or (), ranks if group.on else (), dtype, device),
        through=any(gate is not False for gate in group.passes),
        passes=column_gates(beyond(group.passes), ranks, dtype, device),
        update=column_gates(
            [update[i] for i in learning], [ranks[i] for i in learning], dtype, device
        ),
    )
