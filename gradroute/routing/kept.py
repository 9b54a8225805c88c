"""Stacked adapter weights that are kept for as long as an ablation is in force.

A generation runs every layer once for each token on the same weights. Stacking them anew costs
about as much as the low-rank products themselves, so a scope keeps the stacks of its layers and
makes one again only when something that it was made of has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradroute.routing.ops import Term, stacked

KEPT_BYTES = 2**30
"""What the stacks of one scope may hold; layers beyond it stack their weights at every call."""

Stack = tuple[Tensor, Tensor]
"""Of one term: (s A)ᵀ [in, R] and Bᵀ [R, out]."""

_PLAIN_TENSORS = (nn.Parameter, Tensor)


@dataclass(frozen=True)
class _Kept:
    """The stacks of one layer, and what they were made of."""

    parts: tuple[Tensor, ...]
    stamps: list[tuple[int, int]]
    asked: tuple
    stacks: tuple[Stack, ...]


class KeptStacks:
    """The stacks of all layers in one scope.

    Equal, bit for bit, to stacks made anew: a weight that was replaced, moved or changed in place
    is noticed by its identity, its address and its version. Writing through `weight.data` in the
    midst of a scope is not, as autograd does not notice it either.
    """

    def __init__(self) -> None:
        self._layers: dict[object, _Kept] = {}
        self._room = KEPT_BYTES

    def of(
        self,
        layer: object,
        downs: Sequence[Float[Tensor, "_ inputs"]],
        ups: Sequence[Float[Tensor, "outputs _"]],
        scalings: Sequence[float],
        terms: Sequence[Term],
    ) -> tuple[Stack, ...] | None:
        """The stack of every term, for `kept_linear`.

        Args:
            layer: Whose they are; one and the same object at every call.
            downs: As for `routed_linear`, and so are the next three.
            ups: See there.
            scalings: See there.
            terms: See there.

        Returns:
            None where `routed_linear` is to compute it: under autocast, in a compiled model, on
            weights whose changes cannot be seen (sharded, traced, made in inference mode).
        """
        parts = (*downs, *ups)
        if not parts or torch.compiler.is_compiling() or not all(map(_is_watched, parts)):
            return None
        if torch.is_autocast_enabled(parts[0].device.type):
            return None
        kept = self._layers.get(layer)
        stamps = [(part._version, part.data_ptr()) for part in parts]
        asked = (tuple(scalings), [(term.adapters, term.scales) for term in terms])
        if (
            kept is not None
            and len(kept.parts) == len(parts)
            and all(known is part for known, part in zip(kept.parts, parts, strict=True))
            and kept.stamps == stamps
            and kept.asked == asked
        ):
            return kept.stacks
        if kept is not None:
            self._room += _size(self._layers.pop(layer))
        stacks = tuple(_stack(term, downs, ups, scalings) for term in terms)
        made = _Kept(parts, stamps, asked, stacks)
        if (size := _size(made)) <= self._room:
            self._room -= size
            self._layers[layer] = made
        return stacks


def kept_linear(
    x: Float[Tensor, "*batch inputs"],
    base: tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]
    | Float[Tensor, "*batch outputs"],
    terms: Sequence[Term],
    stacks: Sequence[Stack],
) -> Float[Tensor, "*batch outputs"]:
    """`routed_linear` without gradients and autocast: the same products, in the same order.

    A generation calls this for every token of few rows, where what surrounds the products costs
    as much as they do. So nothing is done here that a scope can know beforehand.

    Args:
        x: As for `routed_linear`.
        base: See there.
        terms: See there; their rows are None or slices, as those of an ablation.
        stacks: Of the terms, from `KeptStacks`.
    """
    x2 = x.reshape(-1, x.shape[-1])
    if isinstance(base, tuple):
        weight, bias = base
        bias = bias if bias is None or bias.dtype == weight.dtype else bias.to(weight.dtype)
        y = F.linear(x2 if x2.dtype == weight.dtype else x2.to(weight.dtype), weight, bias)
    else:
        y = base.reshape(-1, base.shape[-1]).clone()  # somebody else may have seen it
    result_dtype = y.dtype
    if stacks:
        dtype = stacks[0][0].dtype
        x2 = x2 if x2.dtype == dtype else x2.to(dtype)
        y = y if y.dtype == dtype else y.to(dtype)
    for term, (down, up) in zip(terms, stacks, strict=True):
        if term.rows is None:
            y.addmm_(torch.mm(x2, down), up)
        else:
            y[term.rows].addmm_(torch.mm(x2[term.rows], down), up)
    y = y if y.dtype == result_dtype else y.to(result_dtype)
    return y.view(*x.shape[:-1], y.shape[-1])


def _stack(
    term: Term, downs: Sequence[Tensor], ups: Sequence[Tensor], scalings: Sequence[float]
) -> Stack:
    down, up = stacked(term, downs, ups, scalings, downs[0].dtype)
    return down.t(), up.t()


def _is_watched(part: Tensor) -> bool:
    return type(part) in _PLAIN_TENSORS and not part.is_inference()


def _size(kept: _Kept) -> int:
    """Bytes beyond the weights themselves: the up side of a single adapter is its own weight."""
    own = {part.data_ptr() for part in kept.parts}
    return sum(
        tensor.numel() * tensor.element_size()
        for stack in kept.stacks
        for tensor in stack
        if tensor.data_ptr() not in own
    )
