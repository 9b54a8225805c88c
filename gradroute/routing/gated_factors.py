"""One factor of an adapter by itself: PEFT's own forward calls these as modules.

What `ops` does for whole layers is done here for A or B of one adapter, with the same gates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradroute.errors import ConfigError
from gradroute.routing.adapter_groups import AdapterGroup, select_rows
from gradroute.routing.gates import Gate, cast, gated
from gradroute.routing.precision import dtypes_of, no_autocast
from gradroute.routing.scopes import NO_ROUTE, RoutingState


class GatedFactor(nn.Linear):
    """A or B of one adapter, with the gates of the scope in force on its gradients."""

    routing: RoutingState
    adapter: str
    routed_weight: tuple[Tensor]
    changed_by: str

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The product with the weight at the positions where the adapter is on, 0 elsewhere.

        Raises:
            ConfigError: The module is in training mode and no scope is in force.
        """
        groups = _own_groups(self, input)
        if groups is None:  # evaluation without a scope is PEFT's own
            return super().forward(input)
        return _gated_forward(self, input, groups)


class GatedDown(GatedFactor):
    """`lora_A` of one adapter: x -> A x; gates its own gradient and the one to x."""


class GatedUp(GatedFactor):
    """`lora_B` of one adapter: h -> B h times the mode's scale.

    Gates its own gradient; the one to h is whole, `GatedDown` gates it.
    """


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
    dtype = dtypes_of(x, None, (weight,), dtype)[0]
    return _GatedLinear.apply(x, weight, update, passes, dtype)


class _GatedLinear(Function):
    """`gated_linear` under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, update: Gate, passes: Gate, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gates = update, passes, dtype
        with no_autocast(x):
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
        with no_autocast(dy):
            dy = cast(dy, dtype)
            if ctx.needs_input_grad[0]:
                dx = cast(gated(dy @ cast(weight, dtype), passes), x.dtype)
            if ctx.needs_input_grad[1]:
                dw = cast(gated(dy, update).t() @ cast(x, dtype), weight.dtype)
        return dx, dw, None, None, None


def _own_groups(module: GatedFactor, x: Tensor) -> tuple[AdapterGroup, ...] | None:
    """The groups of this module's adapter alone; None where nothing is in force."""
    scope = module.routing.scope
    if scope is None:
        if module.training:
            raise ConfigError(NO_ROUTE)
        return None
    return scope.groups(x.shape[:-1], x.device, (module.adapter,))


def _gated_forward(
    module: GatedFactor, x: Float[Tensor, "*batch inputs"], groups: Sequence[AdapterGroup]
) -> Float[Tensor, "*batch outputs"]:
    """The product x Wᵀ at the rows of the groups, 0 elsewhere.

    A gates the gradient to its input, B multiplies by the mode's scale.
    """
    weight, is_up = module.weight, isinstance(module, GatedUp)
    x2 = x.reshape(-1, x.shape[-1])
    # An empty product keeps the parameter in the graph: an adapter that is off everywhere gets
    # zeros for a gradient, so that a data-parallel reduction is complete.
    groups = groups or (AdapterGroup((0,), slice(0, 0), (1.0,), (1.0,), (True,)),)
    results = []
    for group in groups:
        rows = select_rows(x2, group.rows)
        through = True if is_up else group.passes[0]
        result = gated_linear(rows, weight, group.update[0], through, module.routing.products)
        results.append(result * group.scales[0] if is_up and group.scales[0] != 1.0 else result)
    if len(groups) == 1 and groups[0].rows is None:  # all positions, in order
        return results[0].view(*x.shape[:-1], -1)
    positions = torch.arange(len(x2), device=x.device)
    y = results[0].new_zeros(len(x2), len(weight))
    for group, result in zip(groups, results, strict=True):
        y = y.index_copy(0, select_rows(positions, group.rows), result)
    return y.view(*x.shape[:-1], -1)
