"""The arithmetic of routing: a linear layer with low-rank adapters, each gated per position.

For adapters k with A_k [r_k, in], B_k [out, r_k] and factor s_k, and at every position a forward
gate f, an update weight u and a pass-through gate p:

    y    = W x + b + Σ_k f s B A x
    dB   = Σ_positions u f s dy (A x)ᵀ
    dA   = Σ_positions u f s (Bᵀ dy) xᵀ
    dx   = Wᵀ dy + Σ_k p f s Aᵀ Bᵀ dy

u gates the gradient of the *weights*, not the adapter's output, so a frozen adapter still carries
gradient to the layers below it. One forward and one backward of a mixed batch is exact.

A position with f = 0 is left out of the products instead of being multiplied by 0, because
0 * NaN is NaN: an adapter cannot reach a position that it is ablated at, whatever it holds. (Where
the weights are known to be finite, `AdapterGroup.on` sets A x to 0 instead, which copies nothing.)
Gates of 0 on u and p, which act on activations, select and do not multiply.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradroute.routing.adapter_groups import AdapterGroup, GateColumns, Rows, stacked
from gradroute.routing.gates import Gate, cast, gated, some_columns


def routed_linear(
    x: Float[Tensor, "*batch inputs"],
    base: tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]
    | Float[Tensor, "*batch outputs"],
    downs: Sequence[Float[Tensor, "_ inputs"]],
    ups: Sequence[Float[Tensor, "outputs _"]],
    scalings: Sequence[float],
    groups: Sequence[AdapterGroup],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """A linear layer with gated low-rank adapters, in one pass and exact.

    Args:
        x: Input; its positions, flattened in order, are what the rows of the groups count.
        base: The frozen weight and bias, or the output of a base layer that was run already.
        downs: A_k of every adapter, ranks may differ.
        ups: B_k of every adapter.
        scalings: s_k of every adapter (alpha / rank).
        groups: Which adapters run where, and their gates.
        dtype: Of the low-rank products; sums with the base's output are then taken in the wider of
            the two.

    Returns:
        y in the dtype of the base's output. Where no dtype is asked for, the low-rank products are
        computed in the autocast dtype where autocast is on, else in the dtype of the adapters.
    """
    weight, bias, output = (*base, None) if isinstance(base, tuple) else (None, None, base)
    # Gates are made here and travel in `call`, so that backward has those of its own forward, even
    # if it runs after the scope has ended or under that of another batch.
    dtypes = _dtypes(x, weight, downs, dtype)
    columns = tuple(
        group.columns([downs[k].shape[0] for k in group.adapters], dtypes[0], x.device)
        for group in groups
    )
    call = _Call(tuple(scalings), tuple(groups), columns, *dtypes, asked=dtype is not None)
    if torch.is_grad_enabled():  # without, a Function would only cost time: the output is the same
        y = _RoutedLinear.apply(x, output, weight, bias, call, *downs, *ups)
    else:
        with _no_autocast(x):
            y = _forward(x, output, weight, bias, call, downs, ups)[0]
    # Shaped out here: a view made inside the function could not be changed in place by the model.
    return y.view(*x.shape[:-1], y.shape[-1])


def gated_linear(
    x: Float[Tensor, "m inputs"],
    weight: Float[Tensor, "outputs inputs"],
    update: Gate,
    passes: Gate,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "m outputs"]:
    """`x Wᵀ` with gates on its two gradients: dW = Σ u dy xᵀ and dx = p Wᵀ dy.

    The gates are those of `AdapterGroup`. Two of these, one for A and one for B, make an adapter.
    """
    dtype = _dtypes(x, None, (weight,), dtype)[0]
    return _GatedLinear.apply(x, weight, update, passes, dtype)


def select_rows(values: Shaped[Tensor, "n ..."], rows: Rows) -> Shaped[Tensor, "m ..."]:
    """The positions of a group: all, a view of a slice, or a copy of some."""
    if isinstance(rows, Tensor):
        return values.index_select(0, rows)  # several times as fast as values[rows] on a CPU
    return values if rows is None else values[rows]


@dataclass(frozen=True)
class _Call:
    """What one call needs besides tensors: the groups and the dtypes chosen for it."""

    scalings: tuple[float, ...]
    groups: tuple[AdapterGroup, ...]
    columns: tuple[GateColumns, ...]  # of every group
    dtype: torch.dtype  # of the low-rank products
    base_dtype: torch.dtype  # of the base product, if it is computed here
    asked: bool = False  # the dtype of the products was asked for, so sums may be wider

    def sums(self, other: torch.dtype) -> torch.dtype:
        """The dtype in which products are added to something of another dtype."""
        return torch.promote_types(self.dtype, other) if self.asked else self.dtype


class _RoutedLinear(Function):
    """`routed_linear` under autograd; saves the parameters, never their stacked copies."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        output: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        call: _Call,
        *factors: Tensor,
    ) -> Tensor:
        downs, ups = _halves(factors)
        with _no_autocast(x):
            y, hidden = _forward(x, output, weight, bias, call, downs, ups)
        ctx.call = call
        ctx.save_for_backward(x, weight, *factors, *hidden)
        return y

    @staticmethod
    @once_differentiable  # a second derivative is refused rather than wrong
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        call: _Call = ctx.call
        x, weight, *rest = ctx.saved_tensors
        cut = len(rest) - len(call.groups)
        downs, ups = _halves(rest[:cut])
        needs_x, needs_output, _, _, _, *needs = ctx.needs_input_grad
        with _no_autocast(dy):
            dx, gradients = _backward(dy, x, weight, call, downs, ups, rest[cut:], needs_x, needs)
        d_output = dy.view(*x.shape[:-1], dy.shape[-1]) if needs_output else None
        return (dx, d_output, None, None, None, *gradients)


class _GatedLinear(Function):
    """`gated_linear` under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, update: Gate, passes: Gate, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gates = update, passes, dtype
        with _no_autocast(x):
            return cast(x, dtype) @ cast(weight, dtype).t()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, weight = ctx.saved_tensors
        update, passes, dtype = ctx.gates
        dx = dw = None
        with _no_autocast(dy):
            dy = cast(dy, dtype)
            if ctx.needs_input_grad[0]:
                dx = cast(gated(dy @ cast(weight, dtype), passes), x.dtype)
            if ctx.needs_input_grad[1]:
                dw = cast(gated(dy, update).t() @ cast(x, dtype), weight.dtype)
        return dx, dw, None, None, None


def _forward(
    x: Tensor,
    output: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    call: _Call,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Output y [n, outputs], and the hidden activations A x of every group."""
    x2 = x.reshape(-1, x.shape[-1])
    if output is None:
        assert weight is not None
        bias = None if bias is None else cast(bias, call.base_dtype)
        y = F.linear(cast(x2, call.base_dtype), cast(weight, call.base_dtype), bias)
        ours = True  # nobody else sees y, so it may be changed in place
    else:
        y = output.reshape(-1, output.shape[-1])
        ours = False
    result_dtype = y.dtype
    # Rounded products are summed in the wider dtype and rounded once, at the end.
    wide = call.sums(result_dtype)
    if result_dtype != wide and call.groups:
        y, ours = cast(y, wide), True
    if not call.groups and not ours:
        y = y.clone()  # a function must not hand back its input
    hidden = []
    for group, columns in zip(call.groups, call.columns, strict=True):
        down, up, alpha = stacked(group, downs, ups, call.scalings, call.dtype)
        h = cast(select_rows(x2, group.rows), call.dtype) @ down.t()
        if columns.on is not None:
            h = columns.on.on(h)
        hidden.append(h)
        if group.rows is None and wide == call.dtype and not ours:
            y = torch.addmm(y, h, up.t(), alpha=alpha)
        else:
            y = y if ours else y.clone()
            _add_product(y, group.rows, h, up.t(), alpha)
        ours = True
    return cast(y, result_dtype), hidden


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    call: _Call,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    hidden: Sequence[Tensor],
    needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dx, and the gradients of all A_k followed by those of all B_k."""
    x2 = x.reshape(-1, x.shape[-1])
    dy2 = dy.reshape(-1, dy.shape[-1])
    dx = None
    if needs_x and weight is not None:
        dx = cast(dy2, call.base_dtype) @ cast(weight, call.base_dtype)
        dx = cast(dx, call.sums(dx.dtype)) if call.groups else dx
    elif needs_x:  # autograd adds the base layer's own share, which ran outside of this function
        dx = dy2.new_zeros(x2.shape, dtype=call.sums(x.dtype))
    low = cast(dy2, call.dtype)
    gradients: list[Tensor | None] = [None] * (2 * len(downs))
    for group, columns, h in zip(call.groups, call.columns, hidden, strict=True):
        # Stacked again rather than saved: a stack per layer would be held until its backward.
        down, up, alpha = stacked(group, downs, ups, call.scalings, call.dtype)
        low_rows = select_rows(low, group.rows)
        g = low_rows @ up
        if columns.on is not None:
            g = columns.on.on(g)
        if dx is not None and columns.through:
            passed = g if columns.passes is None else columns.passes.on(g)
            _add_product(dx, group.rows, passed, down, alpha)
        learning = [group.adapters[i] for i in columns.learning]
        if any(needs[k] or needs[len(downs) + k] for k in learning):
            x_rows = cast(select_rows(x2, group.rows), call.dtype)
            _accumulate(gradients, group, call, columns, alpha, (g, x_rows), (h, low_rows))
    finished = [
        _finished(gradient, parameter) if need else None
        for gradient, parameter, need in zip(gradients, (*downs, *ups), needs, strict=True)
    ]
    return None if dx is None else cast(dx, x.dtype).view_as(x), finished


def _finished(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Dense zeros where nothing was added, so that a data-parallel reduction is complete."""
    return torch.zeros_like(parameter) if gradient is None else cast(gradient, parameter.dtype)


def _accumulate(
    gradients: list[Tensor | None],
    group: AdapterGroup,
    call: _Call,
    columns: GateColumns,
    alpha: float,
    down_sides: tuple[Tensor, Tensor],
    up_sides: tuple[Tensor, Tensor],
) -> None:
    """Add dA = s (u g)ᵀ x and dB = s ((u h)ᵀ dy)ᵀ of one group, for all that learn."""
    learning, ranks = columns.learning, columns.ranks
    g, x = down_sides
    h, dy = up_sides
    if len(learning) < len(ranks):  # no product for an adapter whose every row is gated off
        g, h = some_columns(g, ranks, learning), some_columns(h, ranks, learning)
    if columns.update is not None:
        g, h = columns.update.on(g), columns.update.on(h)
    taken = [ranks[i] for i in learning]
    d_down = _product(g.t(), x, alpha).split(taken)
    d_up = _product(h.t(), dy, alpha).split(taken)
    for i, a, b in zip(learning, d_down, d_up, strict=True):
        k = group.adapters[i]
        factor = call.scalings[k] * group.scales[i]
        # Where the factors differ, A was scaled by them: h holds them already, and g does not.
        _add(gradients, k, a if factor == alpha else a * factor)
        _add(gradients, len(gradients) // 2 + k, b.t())


def _product(left: Tensor, right: Tensor, alpha: float) -> Tensor:
    """`alpha * left @ right`, without a pass of its own for the factor."""
    if alpha == 1.0:
        return left @ right
    return torch.addmm(left.new_empty(1, 1), left, right, beta=0, alpha=alpha)


def _add_product(total: Tensor, rows: Rows, left: Tensor, right: Tensor, alpha: float) -> None:
    """In place `total[rows] += alpha * left @ right`; the other rows are not touched."""
    if isinstance(rows, Tensor):
        total.index_add_(0, rows, cast(left @ right, total.dtype), alpha=alpha)
        return
    part = total if rows is None else total[rows]  # a slice is a view, so `total` changes
    if part.dtype == left.dtype:
        part.addmm_(left, right, alpha=alpha)
    else:
        part.add_(left @ right, alpha=alpha)


def _add(gradients: list[Tensor | None], index: int, value: Tensor) -> None:
    # An adapter comes in several groups where modes share a batch.
    known = gradients[index]
    gradients[index] = value if known is None else known + value


def _halves(factors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return factors[: len(factors) // 2], factors[len(factors) // 2 :]


def _dtypes(
    x: Tensor, weight: Tensor | None, factors: Sequence[Tensor], asked: torch.dtype | None
) -> tuple[torch.dtype, torch.dtype]:
    """Dtype of the low-rank products, and of the base product where it is computed here."""
    own = factors[0].dtype if factors else x.dtype
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        low = torch.get_autocast_dtype(x.device.type)
        return asked or low, low
    return asked or own, own if weight is None else weight.dtype


def _no_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast off: the dtypes are chosen here, and mixing in its casts would break addmm."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
