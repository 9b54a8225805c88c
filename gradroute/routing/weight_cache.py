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

from gradroute.routing.adapter_groups import AdapterGroup, stacked
from gradroute.routing.gates import ColumnGates, cast
from gradroute.system.modules import is_plain

MAX_CACHE_BYTES = 2**30
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
class _CachedStacks:
    """The stacks of one layer, and what they were made of.

    `whole` is the stack of all adapters that some group runs, where there are several groups and
    all weights are finite: then a position at which one is off can be given 0 for it.
    """

    parts: tuple[Tensor, ...]
    stamps: list[tuple[int, int]]
    key: tuple
    stacks: tuple[Side, ...]
    whole: Side | None


class StackCache:
    """The stacks of all layers in one scope.

    Equal, bit for bit, to stacks made anew: a weight that was replaced, moved or changed in place
    is noticed by its identity, its address and its version. Writing through `weight.data` in the
    midst of a scope is not, as autograd does not notice it either.
    """

    def __init__(self) -> None:
        self._layers: dict[object, _CachedStacks] = {}
        self._gates: dict[tuple, tuple[Sequence[AdapterGroup], ColumnGates]] = {}
        self._room = MAX_CACHE_BYTES

    def of(
        self,
        layer: object,
        downs: Sequence[Float[Tensor, "_ inputs"]],
        ups: Sequence[Float[Tensor, "outputs _"]],
        scalings: Sequence[float],
        groups: Sequence[AdapterGroup],
        positions: int,
    ) -> tuple[Side, ...] | Together | None:
        """The stack of every group, or one for all, for `cached_linear`.

        Args:
            layer: Whose they are; one and the same object at every call.
            downs: As for `routed_linear`, and so are the next three.
            ups: See there.
            scalings: See there.
            groups: See there.
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
        kept = self._stacks(layer, parts, scalings, groups)
        if kept.whole is None or positions > TOGETHER:
            return kept.stacks
        ranks = tuple(len(down) for down in downs)
        # Every layer with these ranks has the same gates; the groups are kept, and so their id.
        key = (id(groups), ranks, positions)
        if key not in self._gates:
            self._gates[key] = (groups, _gates(groups, ranks, positions, kept.whole[0]))
        return Together(*kept.whole, self._gates[key][1])

    def _stacks(
        self,
        layer: object,
        parts: tuple[Tensor, ...],
        scalings: Sequence[float],
        groups: Sequence[AdapterGroup],
    ) -> _CachedStacks:
        kept = self._layers.get(layer)
        # torch counts the changes of a tensor in place (an optimizer's step, `copy_`) in its
        # version; `.to` and `weight.data = …` move its address.
        stamps = [(part._version, part.data_ptr()) for part in parts]
        asked = (tuple(scalings), [(group.adapters, group.scales) for group in groups])
        if (
            kept is not None
            and len(kept.parts) == len(parts)
            and all(known is part for known, part in zip(kept.parts, parts, strict=True))
            and kept.stamps == stamps
            and kept.key == asked
        ):
            return kept
        if kept is not None:
            self._room += _size(self._layers.pop(layer))
        downs, ups = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        stacks = tuple(_stack(group, downs, ups, scalings) for group in groups)
        made = _CachedStacks(parts, stamps, asked, stacks, _whole(groups, downs, ups, scalings))
        # Beyond the room, the stacks serve this call and are dropped.
        if (size := _size(made)) <= self._room:
            self._room -= size
            self._layers[layer] = made
        return made


def cached_linear(
    x: Float[Tensor, "*batch inputs"],
    base: tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]
    | Float[Tensor, "*batch outputs"],
    groups: Sequence[AdapterGroup],
    stacks: Sequence[Side] | Together,
) -> Float[Tensor, "*batch outputs"]:
    """`routed_linear` without gradients and autocast: the same products, in the same order.

    A generation calls this for every token of few rows, where what surrounds the products costs
    as much as they do. So nothing is done here that a scope can know beforehand.

    Args:
        x: As for `routed_linear`.
        base: See there.
        groups: See there; their rows are None or slices, as those of an ablation.
        stacks: Of the groups, from `StackCache`. Where it is one for all, what the groups do not
            run is computed and set to 0: few more products of few rows cost less than more calls.
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
        for group, (down, up, alpha) in zip(groups, stacks, strict=True):
            if group.rows is None:
                y.addmm_(torch.mm(x2, down), up, alpha=alpha)
            else:
                y[group.rows].addmm_(torch.mm(x2[group.rows], down), up, alpha=alpha)
    return cast(y, result_dtype).view(*x.shape[:-1], y.shape[-1])


def _stack(
    group: AdapterGroup, downs: Sequence[Tensor], ups: Sequence[Tensor], scalings: Sequence[float]
) -> Side:
    down, (up,), alpha = stacked(group, downs, ups, scalings, downs[0].dtype)
    return down.t(), up.t(), alpha


def _whole(
    groups: Sequence[AdapterGroup],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scalings: Sequence[float],
) -> Side | None:
    on = tuple(sorted({k for group in groups for k in group.adapters}))
    if len(groups) < 2 or any(not isinstance(group.rows, slice) for group in groups):
        return None
    one = (1.0,) * len(on)
    found = _stack(AdapterGroup(on, None, one, one, (True,) * len(on)), downs, ups, scalings)
    # Where one is off, A x is set to 0 and still meets B, and 0 times infinity is NaN.
    return found if all(bool(part.isfinite().all()) for part in found[:2]) else None


def _gates(
    groups: Sequence[AdapterGroup], ranks: Sequence[int], positions: int, like: Tensor
) -> ColumnGates:
    """The scale of every adapter, per position and rank."""
    columns, end = {}, 0
    for k in sorted({k for group in groups for k in group.adapters}):
        columns[k] = slice(end, end := end + ranks[k])
    factors = torch.zeros(positions, end, dtype=like.dtype)
    for group in groups:
        assert isinstance(group.rows, slice)
        for k, scale in zip(group.adapters, group.scales, strict=True):
            factors[group.rows, columns[k]] = scale
    plain = bool(((factors == 0) | (factors == 1)).all())
    return ColumnGates.of(factors.to(like.device), plain)


def _is_watched(part: Tensor) -> bool:
    # A tensor that was made in inference mode has no version.
    return is_plain(part) and not part.is_inference()


def _size(stacks: _CachedStacks) -> int:
    """Bytes beyond the weights themselves: a single adapter is not copied."""
    own = {part.data_ptr() for part in stacks.parts}
    return sum(
        tensor.numel() * tensor.element_size()
        for stack in (*stacks.stacks, *(() if stacks.whole is None else (stacks.whole,)))
        for tensor in stack[:2]
        if tensor.data_ptr() not in own
    )
