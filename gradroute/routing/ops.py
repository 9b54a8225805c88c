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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradroute.routing.adapter_groups import AdapterGroup, GateColumns, Rows, select_rows, stacked
from gradroute.routing.gates import cast, some_columns
from gradroute.routing.precision import dtypes_of, no_autocast

Base = (
    tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]
    | Float[Tensor, "*batch outputs"]
)
"""The frozen weight and bias of a linear layer, or its output."""


class Operands(NamedTuple):
    """What `routed_linears` takes of each layer, see `routed_linear`."""

    base: Base
    downs: Sequence[Float[Tensor, "_ inputs"]]
    ups: Sequence[Float[Tensor, "outputs _"]]
    scalings: Sequence[float]


def routed_linear(
    x: Float[Tensor, "*batch inputs"],
    base: Base,
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
    return routed_linears(x, [Operands(base, downs, ups, scalings)], groups, dtype)[0]


def routed_linears(
    x: Float[Tensor, "*batch inputs"],
    layers: Sequence[Operands],
    groups: Sequence[AdapterGroup],
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """`routed_linear` of layers that read the same input, with the same adapters on each.

    Their A are one product, and so are their shares of dA and dx; gates are applied once.

    Args:
        x: See `routed_linear`, and so for what follows.
        layers: What differs between them; their outputs may differ in width.
        groups: See there; they hold for every layer.
        dtype: See there.

    Returns:
        y of every layer.
    """
    count = len(layers)
    outputs = [None if isinstance(own.base, tuple) else own.base for own in layers]
    weights = [own.base[0] if isinstance(own.base, tuple) else None for own in layers]
    biases = [own.base[1] if isinstance(own.base, tuple) else None for own in layers]
    downs = [down for own in layers for down in own.downs]
    ups = [up for own in layers for up in own.ups]
    scalings = tuple(factor for own in layers for factor in own.scalings)
    groups = tuple(group.on_layers(count, len(layers[0].downs)) for group in groups)
    # Gates are made here and travel in `call`, so that backward has those of its own forward, even
    # if it runs after the scope has ended or under that of another batch.
    dtypes = dtypes_of(x, weights[0], downs, dtype)
    columns = tuple(
        group.columns([downs[k].shape[0] for k in group.adapters], dtypes[0], x.device)
        for group in groups
    )
    call = _Call(count, scalings, groups, columns, *dtypes, asked=dtype is not None)
    if torch.is_grad_enabled():  # without, a Function would only cost time: the output is the same
        ys = _RoutedLinears.apply(x, call, *outputs, *weights, *biases, *downs, *ups)
    else:
        with no_autocast(x):
            ys = _forward(x, (outputs, weights, biases), call, downs, ups)[0]
    # Shaped out here: a view made inside the function could not be changed in place by the model.
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]


@dataclass(frozen=True)
class _Call:
    """What one call needs besides tensors: the groups and the dtypes chosen for it."""

    layers: int  # that are computed together; the adapters of one stand beside those of the next
    scalings: tuple[float, ...]
    groups: tuple[AdapterGroup, ...]
    columns: tuple[GateColumns, ...]  # of every group
    dtype: torch.dtype  # of the low-rank products
    base_dtype: torch.dtype  # of the base product, if it is computed here
    asked: bool = False  # the dtype of the products was asked for, so sums may be wider

    def sums(self, other: torch.dtype) -> torch.dtype:
        """The dtype in which products are added to something of another dtype."""
        return torch.promote_types(self.dtype, other) if self.asked else self.dtype


class _RoutedLinears(Function):
    """`routed_linears` under autograd; saves the parameters, never their stacked copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, weights, biases = _thirds(tensors[: 3 * call.layers])
        factors = tensors[3 * call.layers :]
        with no_autocast(x):
            ys, hidden = _forward(x, (outputs, weights, biases), call, *_halves(factors))
        ctx.call = call
        ctx.save_for_backward(x, *weights, *factors, *hidden)
        return tuple(ys)

    @staticmethod
    @once_differentiable  # a second derivative is refused rather than wrong
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *dys: Tensor
    ) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        x, *rest = ctx.saved_tensors
        weights, rest = rest[: call.layers], rest[call.layers :]
        cut = len(rest) - len(call.groups)
        needs_x, _, *needs = ctx.needs_input_grad
        wanted, needs = needs[: call.layers], needs[3 * call.layers :]
        with no_autocast(x):
            dx, gradients = _backward(dys, x, weights, call, rest[:cut], rest[cut:], needs_x, needs)
        d_outputs = [
            dy.view(*x.shape[:-1], dy.shape[-1]) if need else None
            for dy, need in zip(dys, wanted, strict=True)
        ]
        return (dx, None, *d_outputs, *[None] * (2 * call.layers), *gradients)


def _forward(
    x: Tensor,
    bases: tuple[Sequence[Tensor | None], Sequence[Tensor | None], Sequence[Tensor | None]],
    call: _Call,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs y [n, outputs] of every layer, and the hidden activations A x of every group."""
    x2 = x.reshape(-1, x.shape[-1])
    ys, ours = [], []
    for base in zip(*bases, strict=True):
        y, own = _base_output(x2, *base, call)
        ys.append(y)
        ours.append(own)
    dtypes = [y.dtype for y in ys]
    for i, dtype in enumerate(dtypes):
        # Rounded products are summed in the wider dtype and rounded once, at the end.
        if dtype != call.sums(dtype) and call.groups:
            ys[i], ours[i] = cast(ys[i], call.sums(dtype)), True
        if not call.groups and not ours[i]:
            ys[i] = ys[i].clone()  # a function must not hand back its input
    hidden = []
    for group, columns in zip(call.groups, call.columns, strict=True):
        stack = stacked(group, downs, ups, call.scalings, call.dtype, call.layers)
        h = cast(select_rows(x2, group.rows), call.dtype) @ stack.down.t()
        if columns.on is not None:
            h = columns.on.on(h)
        hidden.append(h)
        for i, own in enumerate(_blocks(h, call, columns.ranks)):
            up = stack.ups[i].t()
            if group.rows is None and ys[i].dtype == call.dtype and not ours[i]:
                ys[i] = torch.addmm(ys[i], own, up, alpha=stack.alpha)
            else:
                ys[i] = ys[i] if ours[i] else ys[i].clone()
                _add_product(ys[i], group.rows, own, up, stack.alpha)
            ours[i] = True
    return [cast(y, dtype) for y, dtype in zip(ys, dtypes, strict=True)], hidden


def _base_output(
    x2: Tensor, output: Tensor | None, weight: Tensor | None, bias: Tensor | None, call: _Call
) -> tuple[Tensor, bool]:
    """The base's output [n, outputs], and whether nobody else sees it, so that it may change."""
    if output is not None:
        return output.reshape(-1, output.shape[-1]), False
    assert weight is not None
    bias = None if bias is None else cast(bias, call.base_dtype)
    return F.linear(cast(x2, call.base_dtype), cast(weight, call.base_dtype), bias), True


def _backward(
    dys: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor | None],
    call: _Call,
    factors: Sequence[Tensor],
    hidden: Sequence[Tensor],
    needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dx, and the gradients of all A_k followed by those of all B_k."""
    downs, ups = _halves(factors)
    x2 = x.reshape(-1, x.shape[-1])
    dys = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
    dx = _through_bases(dys, x2, weights, call) if needs_x else None
    lows = [cast(dy, call.dtype) for dy in dys]
    gradients: list[Tensor | None] = [None] * len(factors)
    for group, columns, h in zip(call.groups, call.columns, hidden, strict=True):
        # Stacked again rather than saved: a stack per layer would be held until its backward.
        stack = stacked(group, downs, ups, call.scalings, call.dtype, call.layers)
        low_rows = [select_rows(low, group.rows) for low in lows]
        parts = [low @ up for low, up in zip(low_rows, stack.ups, strict=True)]
        g = parts[0] if call.layers == 1 else torch.cat(parts, dim=1)
        if columns.on is not None:
            g = columns.on.on(g)
        if dx is not None and columns.through:
            passed = g if columns.passes is None else columns.passes.on(g)
            _add_product(dx, group.rows, passed, stack.down, stack.alpha)
        learning = [group.adapters[i] for i in columns.learning]
        if any(needs[k] or needs[len(downs) + k] for k in learning):
            x_rows = cast(select_rows(x2, group.rows), call.dtype)
            _accumulate(gradients, group, call, columns, stack.alpha, (g, x_rows), (h, low_rows))
    finished = [
        _finished(gradient, parameter) if need else None
        for gradient, parameter, need in zip(gradients, factors, needs, strict=True)
    ]
    return None if dx is None else cast(dx, x.dtype).view_as(x), finished


def _through_bases(
    dys: Sequence[Tensor], x2: Tensor, weights: Sequence[Tensor | None], call: _Call
) -> Tensor:
    """The part of dx that goes through the base weights.

    Autograd adds the share of bases that ran elsewhere.
    """
    dx = None
    for dy, weight in zip(dys, weights, strict=True):
        if weight is not None:
            left, right = cast(dy, call.base_dtype), cast(weight, call.base_dtype)
            dx = left @ right if dx is None else dx.addmm_(left, right)
    if dx is None:
        return dys[0].new_zeros(x2.shape, dtype=call.sums(x2.dtype))
    return cast(dx, call.sums(dx.dtype)) if call.groups else dx


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
    up_sides: tuple[Tensor, Sequence[Tensor]],
) -> None:
    """Add dA = s (u g)ᵀ x and dB = s ((u h)ᵀ dy)ᵀ of one group, for all that learn."""
    learning, ranks = columns.learning, columns.ranks
    g, x = down_sides
    h, dys = up_sides
    if len(learning) < len(ranks):  # no product for an adapter whose every row is gated off
        g, h = some_columns(g, ranks, learning), some_columns(h, ranks, learning)
    if columns.update is not None:
        g, h = columns.update.on(g), columns.update.on(h)
    taken = [ranks[i] for i in learning]
    d_downs = _product(g.t(), x, alpha).split(taken)
    of_layer = len(learning) // call.layers  # the same adapters learn on every layer
    d_ups = [
        part
        for i, (own, dy) in enumerate(zip(_blocks(h, call, taken), dys, strict=True))
        for part in _product(own.t(), dy, alpha).split(taken[i * of_layer : (i + 1) * of_layer])
    ]
    for i, a, b in zip(learning, d_downs, d_ups, strict=True):
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


def _halves(values: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _widths(call: _Call, ranks: Sequence[int]) -> list[int]:
    """The columns of each layer, of the ranks of adapters that stand side by side."""
    own = len(ranks) // call.layers
    return [sum(ranks[start : start + own]) for start in range(0, len(ranks), own)]


def _blocks(values: Tensor, call: _Call, ranks: Sequence[int]) -> Sequence[Tensor]:
    """The columns of each layer."""
    return [values] if call.layers == 1 else values.split(_widths(call, ranks), dim=1)


def _thirds(values: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    third = len(values) // 3
    return values[:third], values[third : 2 * third], values[2 * third :]
