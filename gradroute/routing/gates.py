"""Gates on positions: numbers or masks that close parts of activations and gradients.

Where a gate is 0 the result is 0, whatever was there: 0 times NaN would be NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Gate = float | bool | Tensor
"""One number for all positions, or a tensor [m]: bool, or float for other weights than 0 and 1."""


def some_columns(values: Tensor, ranks: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """The blocks of columns of some adapters, side by side."""
    blocks = values.split(list(ranks), dim=1)
    return blocks[wanted[0]] if len(wanted) == 1 else torch.cat([blocks[i] for i in wanted], dim=1)


def gated_columns(values: Tensor, gates: Sequence[Gate], ranks: Sequence[int]) -> Tensor:
    """Gate each adapter's block of columns; the same tensor if every gate is fully open."""
    if all(is_one(gate) for gate in gates):
        return values
    blocks = values.split(list(ranks), dim=1)
    return torch.cat([gated(b, gate) for b, gate in zip(blocks, gates, strict=True)], dim=1)


def gated(values: Tensor, gate: Gate) -> Tensor:
    """Each row of values [m, n] times its gate, where 0 gives 0 also for NaN."""
    if not isinstance(gate, Tensor):
        if is_one(gate):
            return values
        return torch.zeros_like(values) if is_zero(gate) else values * gate
    if gate.dtype == torch.bool:
        return torch.where(gate[:, None], values, 0)
    return torch.where(gate[:, None] != 0, values * gate[:, None].to(values.dtype), 0)


def is_zero(gate: Gate) -> bool:
    """Whether it is closed everywhere, as one number."""
    return not isinstance(gate, Tensor) and gate == 0


def is_one(gate: Gate) -> bool:
    """Whether it is open everywhere, as one number."""
    return not isinstance(gate, Tensor) and gate == 1


def shut_columns(values: Tensor, gates: Sequence[bool | Tensor], ranks: Sequence[int]) -> None:
    """In place, set each adapter's block of columns [m, r] to 0 where its mask is False."""
    for block, gate in zip(values.split(list(ranks), dim=1), gates, strict=True):
        if isinstance(gate, Tensor):
            block.masked_fill_(~gate[:, None], 0.0)
        elif not gate:
            block.zero_()
