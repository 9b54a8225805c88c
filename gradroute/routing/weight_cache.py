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
from torch import Tensor

from gradroute.routing.adapter_groups import Term, stacked
from gradroute.routing.gates import ColumnGates, cast
from gradroute.system.modules import is_plain

KEPT_BYTES = 2**30
"""What the stacks of one scope may hold; layers beyond it stack their weights at every call."""
TOGETHER = 256
"""Positions up to which the groups of a batch are computed together rather than one by one."""

Side = tuple[Tensor, Tensor, float]
"""An `adapter_groups.Stack` for use on rows: downᵀ [in, R], upᵀ [R, out] and alpha."""


@dataclass(frozen=True)
class Together:
    """All adapters of a layer in one product, for a batch whose groups are few positions each.

    Attributes:
        down: That of the `adapter_groups.Stack` of every adapter that is on somewhere, transposed.
        up: The same of its up.
        alpha: Its factor.
        gates: At every position the scale of each rank.
    """

    down: Float[Tensor, "inputs R"]
    up: Float[Tensor, "R outputs"]
    alpha: float
    gates: ColumnGates


@dataclass(frozen=True)
class _Kept:
    """The stacks of one layer, and what they were made of.

    `whole` is the stack of all adapters that some term runs, where there are several terms and all
    weights are finite: then a position at which one is off can be given 0 for it.
    """

    parts: tuple[Tensor, ...]
    stamps: list[tuple[int, int]]
    asked: tuple
    stacks: tuple[Side, ...]
    whole: Side | None


class KeptStacks:
    """The stacks of all layers in one scope.

    Equal, bit for bit, to stacks made anew: a weight that was replaced, moved or changed in place
    is noticed by its identity, its address and its version. Writing through `weight.data` in the
    midst of a scope is not, as autograd does not notice it either.
    """

    def __init__(self) -> None:
        self._layers: dict[object, _Kept] = {}
        self._gates: dict[tuple, tuple[Sequence[Term], ColumnGates]] = {}
        self._room = KEPT_BYTES

    def of(
        self,
        layer: object,
        downs: Sequence[Float[Tensor, "_ inputs"]],
        ups: Sequence[Float[Tensor, "outputs _"]],
        scalings: Sequence[float],
        terms: Sequence[Term],
        positions: int,
    ) -> tuple[Side, ...] | Together | None:
        """The stack of every term, or one for all, for `kept_linear`.

        Args:
            layer: Whose they are; one and the same object at every call.
            downs: As for `routed_linear`, and so are the next three.
            ups: See there.
            scalings: See there.
            terms: See there.
            positions: Of the batch, flattened.

        Returns:
            None where `routed_linear` is to compute it: under autocast, in a compiled model, on
            weights whose changes cannot be seen (sharded, traced, made in inference mode).
        """
        parts = (*downs, *ups)
        if not parts or torch.compiler.is_compiling() or not all(map(_is_watched, parts)):
            return None
        if torch.is_autocast_enabled(parts[0].device.type):
            return None
        kept = self._stacks(layer, parts, scalings, terms)
        if kept.whole is None or positions > TOGETHER:
            return kept.stacks
        ranks = tuple(len(down) for down in downs)
        # Every layer with these ranks has the same gates; the terms are kept, and so their id.
        key = (id(terms), ranks, positions)
        if key not in self._gates:
            self._gates[key] = (terms, _gates(terms, ranks, positions, kept.whole[0]))
        return Together(*kept.whole, self._gates[key][1])

    def _stacks(
        self,
        layer: object,
        parts: tuple[Tensor, ...],
        scalings: Sequence[float],
        terms: Sequence[Term],
    ) -> _Kept:
        kept = self._layers.get(layer)
        # torch counts the changes of a tensor in place (an optimizer's step, `copy_`) in its
        # version; `.to` and `weight.data = …` move its address.
        stamps = [(part._version, part.data_ptr()) for part in parts]
        asked = (tuple(scalings), [(term.adapters, term.scales) for term in terms])
        if (
            kept is not None
            and len(kept.parts) == len(parts)
            and all(known is part for known, part in zip(kept.parts, parts, strict=True))
            and kept.stamps == stamps
            and kept.asked == asked
        ):
            return kept
        if kept is not None:
            self._room += _size(self._layers.pop(layer))
        downs, ups = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        stacks = tuple(_stack(term, downs, ups, scalings) for term in terms)
        made = _Kept(parts, stamps, asked, stacks, _whole(terms, downs, ups, scalings))
        # Beyond the room, the stacks serve this call and are dropped.
        if (size := _size(made)) <= self._room:
            self._room -= size
            self._layers[layer] = made
        return made


def kept_linear(
    x: Float[Tensor, "*batch inputs"],
    base: tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]
    | Float[Tensor, "*batch outputs"],
    terms: Sequence[Term],
    stacks: Sequence[Side] | Together,
) -> Float[Tensor, "*batch outputs"]:
    """`routed_linear` without gradients and autocast: the same products, in the same order.

    A generation calls this for every token of few rows, where what surrounds the products costs
    as much as they do. So nothing is done here that a scope can know beforehand.

    Args:
        x: As for `routed_linear`.
        base: See there.
        terms: See there; their rows are None or slices, as those of an ablation.
        stacks: Of the terms, from `KeptStacks`. Where it is one for all, what the groups do not run
            is computed and set to 0: few more products of few rows cost less than more calls.
    """
    x2 = x.reshape(-1, x.shape[-1])
    if isinstance(base, tuple):
        weight, bias = base
        bias = None if bias is None else cast(bias, weight.dtype)
        y = F.linear(cast(x2, weight.dtype), weight, bias)
    else:
        y = base.reshape(-1, base.shape[-1]).clone()  # somebody else may have seen it
    result_dtype = y.dtype
    if isinstance(stacks, Together) or stacks:
        dtype = (stacks.down if isinstance(stacks, Together) else stacks[0][0]).dtype
        x2 = cast(x2, dtype)
        y = cast(y, dtype)
    if isinstance(stacks, Together):
        y.addmm_(stacks.gates.on(torch.mm(x2, stacks.down)), stacks.up, alpha=stacks.alpha)
    else:
        for term, (down, up, alpha) in zip(terms, stacks, strict=True):
            if term.rows is None:
                y.addmm_(torch.mm(x2, down), up, alpha=alpha)
            else:
                y[term.rows].addmm_(torch.mm(x2[term.rows], down), up, alpha=alpha)
    return cast(y, result_dtype).view(*x.shape[:-1], y.shape[-1])


def _stack(
    term: Term, downs: Sequence[Tensor], ups: Sequence[Tensor], scalings: Sequence[float]
) -> Side:
    down, up, alpha = stacked(term, downs, ups, scalings, downs[0].dtype)
    return down.t(), up.t(), alpha


def _whole(
    terms: Sequence[Term], downs: Sequence[Tensor], ups: Sequence[Tensor], scalings: Sequence[float]
) -> Side | None:
    on = tuple(sorted({k for term in terms for k in term.adapters}))
    if len(terms) < 2 or any(not isinstance(term.rows, slice) for term in terms):
        return None
    one = (1.0,) * len(on)
    found = _stack(Term(on, None, one, one, (True,) * len(on)), downs, ups, scalings)
    # Where one is off, A x is set to 0 and still meets B, and 0 times infinity is NaN.
    return found if all(bool(part.isfinite().all()) for part in found[:2]) else None


def _gates(
    terms: Sequence[Term], ranks: Sequence[int], positions: int, like: Tensor
) -> ColumnGates:
    """The scale of every adapter, per position and rank."""
    columns, end = {}, 0
    for k in sorted({k for term in terms for k in term.adapters}):
        columns[k] = slice(end, end := end + ranks[k])
    factors = torch.zeros(positions, end, dtype=like.dtype)
    for term in terms:
        assert isinstance(term.rows, slice)
        for k, scale in zip(term.adapters, term.scales, strict=True):
            factors[term.rows, columns[k]] = scale
    plain = bool(((factors == 0) | (factors == 1)).all())
    return ColumnGates((factors != 0).to(like.device), None if plain else factors.to(like.device))


def _is_watched(part: Tensor) -> bool:
    # A tensor that was made in inference mode has no version.
    return is_plain(part) and not part.is_inference()


def _size(kept: _Kept) -> int:
    """Bytes beyond the weights themselves: a single adapter is not copied."""
    own = {part.data_ptr() for part in kept.parts}
    return sum(
        tensor.numel() * tensor.element_size()
        for stack in (*kept.stacks, *(() if kept.whole is None else (kept.whole,)))
        for tensor in stack[:2]
        if tensor.data_ptr() not in own
    )
