"""Gates on positions: numbers or masks that close parts of activations and gradients.

Where a gate is 0 the result is 0, whatever was there: 0 times NaN would be NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Gate = float | bool | Tensor
"""One number for all positions, or a tensor [m]: bool, or float for other weights than 0 and 1."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> integers of the same size."""


def some_columns(values: Tensor, ranks: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """The blocks of columns of some adapters, side by side."""
    blocks = values.split(list(ranks), dim=1)
    return blocks[wanted[0]] if len(wanted) == 1 else torch.cat([blocks[i] for i in wanted], dim=1)


@dataclass(frozen=True)
class ColumnGates:
    """Gates of adapters that stand side by side: one number per position and rank.

    Attributes:
        bits: All bits set where the gate is not 0, none where it is, [m, R], or [1, R] where all
            positions share it: integers of the size of the values.
        factors: The gate itself where some are neither 0 nor 1, else None.
    """

    bits: Int[Tensor, "_ R"]
    factors: Float[Tensor, "_ R"] | None

    @classmethod
    def of(cls, gates: Float[Tensor, "_ R"], plain: bool) -> "ColumnGates":
        """Gates with these numbers, for values of their dtype.

        Args:
            gates: The numbers.
            plain: All of them are 0 or 1, so that no product is needed.
        """
        bits = -(gates != 0).to(_INTEGERS[gates.element_size()])
        return cls(bits, None if plain else gates)

    def on(self, values: Float[Tensor, "m R"]) -> Float[Tensor, "m R"]:
        """The values times their gates, where 0 gives 0 also for NaN.

        The bits of `torch.where`, on a CPU in a fifth of its time, and without a gradient: the
        functions that call it have theirs written out.
        """
        if self.factors is not None:
            values = values * self.factors
        return (values.view(self.bits.dtype) & self.bits).view(values.dtype)


def column_gates(
    gates: Sequence[Gate], ranks: Sequence[int], dtype: torch.dtype, device: torch.device
) -> ColumnGates | None:
    """The gates of adapters of these ranks as one; None if every gate is fully open.

    A block of columns by itself costs as much to gate as all of them at once, so this is made once
    for all layers of a batch.
    """
    if all(is_one(gate) for gate in gates):
        return None
    rows = max(len(gate) if isinstance(gate, Tensor) else 1 for gate in gates)
    plain = True  # all gates are 0 or 1
    factors = torch.empty(rows, sum(ranks), dtype=dtype, device=device)
    for block, gate in zip(factors.split(list(ranks), dim=1), gates, strict=True):
        if isinstance(gate, Tensor):
            block.copy_(gate[:, None])
            plain = plain and gate.dtype == torch.bool
        else:
            block.fill_(float(gate))
            plain = plain and gate in (0, 1)
    return ColumnGates.of(factors, plain)


def gated(values: Tensor, gate: Gate) -> Tensor:
    """Each row of values [m, n] times its gate, where 0 gives 0 also for NaN."""
    if not isinstance(gate, Tensor):
        if is_one(gate):
            return values
        return torch.zeros_like(values) if is_zero(gate) else values * gate
    if gate.dtype == torch.bool:
        return torch.where(gate[:, None], values, 0)
    return torch.where(gate[:, None] != 0, values * gate[:, None].to(values.dtype), 0)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in a dtype. A call of `.to` that changes nothing is dearer than the question."""
    return values if values.dtype == dtype else values.to(dtype)


def is_zero(gate: Gate) -> bool:
    """Whether it is closed everywhere, as one number."""
    return not isinstance(gate, Tensor) and gate == 0


def is_one(gate: Gate) -> bool:
    """Whether it is open everywhere, as one number."""
    return not isinstance(gate, Tensor) and gate == 1
