"""Routing inside PEFT's LoRA layers: two levels, both exact, installed side by side.

The floor: every `lora_A[name]` and `lora_B[name]` becomes a `GatedDown` or `GatedUp`. PEFT's own
forward of any layer kind runs unchanged and calls them as modules, so dropout, quantized or
otherwise unusual base layers and sharded adapter weights work.

The fast path: a layer of exactly PEFT's `lora.Linear` becomes a `RoutedLinear`, which does all
adapters and, where the base is a plain frozen `nn.Linear`, the base product in one function. It
steps back to the floor whenever something is not plain.

Both change an object's class in place and add no parameter, so names, saving, loading, merging
and deleting stay PEFT's. docs/design/001-hosting-on-peft.md compares the alternatives.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners import lora
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.fused_kernels import check_not_fused, parents_of
from gradroute.routing.gated_factors import GatedDown, GatedFactor, GatedUp
from gradroute.routing.ops import Operands, routed_linear, routed_linears
from gradroute.routing.scopes import (
    NO_ROUTE,
    AblatedScope,
    RoutedScope,
    RoutingState,
    full_groups,
)
from gradroute.routing.siblings import Siblings, sibling_layers
from gradroute.routing.targets import is_expert, is_tied
from gradroute.routing.weight_cache import cached_linear
from gradroute.system.modules import is_hooked, is_plain


class RoutedLinear(lora.Linear):
    """PEFT's LoRA linear layer with the fast path in front of its own forward."""

    routing: RoutingState
    siblings: Siblings | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output under the scope in force; arguments as for PEFT's layer.

        Raises:
            ConfigError: The layer is in training mode and no scope is in force.
        """
        if self.disable_adapters:
            return super().forward(x, *args, **kwargs)
        scope = self.routing.scope
        if scope is None and self.training:  # else every adapter would learn from every example
            raise ConfigError(NO_ROUTE)
        if self.merged:
            if scope is not None:
                refuse_merged(self)
            return super().forward(x, *args, **kwargs)
        # Other arguments (adapter_names, say) are PEFT's to understand.
        plain = not args and not kwargs
        learns = plain and isinstance(scope, RoutedScope) and torch.is_grad_enabled()
        siblings = self.siblings if learns and not torch.compiler.is_compiling() else None
        if siblings is not None and (y := siblings.take(self, x, scope)) is not None:
            return y
        # A scope decides for all adapters; without one, PEFT's set_adapter does.
        names = self._names() if scope is not None else self.active_adapters
        weights = self._plain_weights(names) if plain else None
        if weights is None:
            return super().forward(x, *args, **kwargs)
        if scope is None:
            groups = full_groups(len(names))
        else:
            groups = scope.groups(x.shape[:-1], x.device, names)
        scalings = [self.scaling[name] for name in names]
        base = _plain_base(self.base_layer) or self.base_layer(x)
        products = self.routing.products
        if siblings is not None and isinstance(base, tuple) and self is siblings.layers[0]:
            others = self._able_siblings(siblings, names, base[0])
            own = Operands(base, *weights, scalings)
            y, *ahead = routed_linears(x, [own, *others.values()], groups, products)
            siblings.keep(x, scope, dict(zip(others, ahead, strict=True)))
            return y
        # Not while training: a loop may write through `weight.data`, which cannot be noticed.
        measured = not self.training and not torch.is_grad_enabled() and products is None
        if measured and isinstance(scope, AblatedScope):
            stacks = scope.stack_cache.of(self, *weights, scalings, groups, x.shape[:-1].numel())
            if stacks is not None:
                return cached_linear(x, base, groups, stacks)
        return routed_linear(x, base, *weights, scalings, groups, products)

    def _able_siblings(
        self, siblings: Siblings, names: Sequence[str], weight: Tensor
    ) -> dict[nn.Module, Operands]:
        """The others that read this layer's input, as far as they can be computed with it.

        Not if one would itself be computed otherwise, or if somebody waits for it to be called
        before its weights are there.
        """
        able: dict[nn.Module, Operands] = {}
        for other in siblings.layers[1:] if not is_hooked(self) else ():
            if (
                not isinstance(other, RoutedLinear)
                or other.siblings is not siblings
                or other.training != self.training
                or other.disable_adapters
                or other.merged
                or is_hooked(other)
                or other._names() != names
            ):
                continue
            weights, base = other._plain_weights(names), _plain_base(other.base_layer)
            if weights is None or base is None:
                continue
            if (base[0].dtype, base[0].device) == (weight.dtype, weight.device):
                scalings = [other.scaling[name] for name in names]
                able[other] = Operands(base, *weights, scalings)
        return able

    def _names(self) -> list[str]:
        """The adapters of this layer in the model's order."""
        own = self.lora_A
        return [name for name in self.routing.adapters if name in own]

    def _plain_weights(self, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]] | None:
        """A and B of every adapter; None where the fast path is not what PEFT would compute."""
        downs, ups = self.lora_A, self.lora_B
        weights: tuple[list[Tensor], list[Tensor]] = [], []
        for name in names:
            if name not in downs or not isinstance(down := downs[name], GatedDown):
                return None  # not on this layer, or added later and not looked at
            if self.training and not isinstance(self.lora_dropout[name], nn.Identity):
                return None  # each adapter then has an input of its own
            if is_hooked(down) or is_hooked(up := ups[name]):
                return None
            for side, part in zip(weights, (down.weight, up.weight), strict=True):
                assert isinstance(part, Tensor)
                side.append(part)
        return weights


def routable_adapters(model: nn.Module) -> list[str]:
    """The names of the LoRA adapters of a PEFT model, in the order in which they came.

    Raises:
        ConfigError: There is none, or a layer is of a kind that cannot be routed.
    """
    layers = lora_layers(model)
    if not layers:
        raise ConfigError("the model has no LoRA adapter; make some with attach_adapters.")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for path, layer in layers.items():
        _check_layer(path, layer)
        if is_tied(base, layer.get_base_layer()):
            raise ConfigError(
                f"the adapted layer {path} is tied to the embedding, so that an adapter on it "
                "alone would untie the two when it is merged; leave it out of the targets."
            )
    return list(dict.fromkeys(name for layer in layers.values() for name in layer.lora_A))


def make_routed(model: nn.Module, adapters: Sequence[str]) -> None:
    """Turn the LoRA layers of a PEFT model into routed ones, in place.

    Args:
        model: A model of which `routable_adapters` approves.
        adapters: All its adapters, in the order in which their outputs are added.

    Raises:
        ConfigError: Another library's kernel runs in place of the layers.
    """
    state = RoutingState(adapters)
    layers = lora_layers(model)
    state.parents = parents_of(model, layers)
    check_not_fused(state.parents)
    siblings: dict[Any, Siblings] = {
        own: group for group in sibling_layers(layers) for own in group.layers
    }
    for layer in layers.values():
        # By exact type: a subclass computes something else, which the fast path would skip.
        if type(layer) in (lora.Linear, RoutedLinear):
            layer.__class__ = RoutedLinear
            setattr(layer, "routing", state)  # noqa: B010 - the class has just changed
            setattr(layer, "siblings", siblings.get(layer))  # noqa: B010
        for parts, kind in ((layer.lora_A, GatedDown), (layer.lora_B, GatedUp)):
            for name, part in parts.items():
                # In place: PEFT, the optimizer and hooks keep the objects that they hold.
                part.__class__ = kind
                setattr(part, "routing", state)  # noqa: B010
                setattr(part, "adapter", name)  # noqa: B010
                # In a tuple, so that torch does not take it for a second parameter.
                setattr(part, "routed_weight", (part.weight,))  # noqa: B010
                setattr(part, "changed_by", "")  # noqa: B010
                state.parts[name] += 1


def routed_parts(layers: Mapping[str, lora.LoraLayer]) -> Iterator[GatedFactor]:
    """A and B of every adapter of these layers that is routed."""
    for layer in layers.values():
        for part in (*layer.lora_A.values(), *layer.lora_B.values()):
            if isinstance(part, GatedFactor):
                yield part


def refuse_merged(layer: lora.LoraLayer) -> None:
    """Refuse to run a layer whose adapters are part of the base weights, where no route reaches.

    Raises:
        ConfigError: The adapters that are merged, by name.
    """
    if layer.merged:
        raise ConfigError(
            f"the adapter {', '.join(layer.merged_adapters)} is merged into the base weights, "
            "where it can be neither routed nor ablated; load the model again (unmerging is not "
            "exact)."
        )


def lora_layers(model: nn.Module) -> dict[str, lora.LoraLayer]:
    """The LoRA layers of a model by their path in it, in order."""
    return {
        path: module for path, module in outer_modules(model) if isinstance(module, lora.LoraLayer)
    }


def outer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path, in order and once, but for what LoRA layers are made of.

    They are nine tenths of an adapted model, and it is walked through in every step.
    """
    seen: set[nn.Module] = set()
    ahead: list[tuple[str, nn.Module]] = [("", model)]
    while ahead:
        path, module = ahead.pop()
        if module in seen:
            continue
        seen.add(module)
        yield path, module
        if not isinstance(module, lora.LoraLayer):  # its parts are reached from the layer
            start = f"{path}." if path else ""
            own = [
                (start + name, part) for name, part in module._modules.items() if part is not None
            ]
            ahead.extend(reversed(own))


def adapter_weights(
    layer: lora.LoraLayer, name: str
) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
    """A and B of one adapter in one layer."""
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    assert isinstance(down, Tensor) and isinstance(up, Tensor)
    return down, up


@dataclass(frozen=True)
class RoutedLayers:
    """The routed layers of one model.

    Attributes:
        state: What they share.
        layers: By their path in the model, in order.
        adapters: The adapters in the model's order; those that PEFT has deleted are not there.
    """

    state: RoutingState
    layers: dict[str, lora.LoraLayer]
    adapters: tuple[str, ...]


def routed_layers(model: nn.Module) -> RoutedLayers:
    """The routed layers of a model, also when it is wrapped (data parallel, compiled).

    Raises:
        ConfigError: The model has none, or adapters that came after it was routed; named.
    """
    layers = lora_layers(model)
    state = next((part.routing for part in routed_parts(layers)), None)
    if state is None:
        gone = ", ".join(model.peft_config) if isinstance(model, PeftModel) and not layers else ""
        raise ConfigError(
            (
                f"the adapters {gone} are in no layer any more (merged or unloaded), so "
                if gone
                else ""
            )
            + "the model has no routed adapters; make it with attach_adapters(model, adapters), or "
            "hand a model that PEFT built to route_adapters(model)."
        )
    late = dict.fromkeys(
        name
        for layer in layers.values()
        for parts in (layer.lora_A, layer.lora_B, layer.lora_embedding_A)
        for name, part in parts.items()
        if not isinstance(part, GatedFactor) or part.routing is not state
    )
    if late:
        raise ConfigError(
            f"the model has adapters that came to it after it was routed ({', '.join(late)}); "
            "call route_adapters(model) again, or delete them."
        )
    held = {name for layer in layers.values() for name in layer.lora_A}
    return RoutedLayers(state, layers, tuple(name for name in state.adapters if name in held))


def _check_layer(path: str, layer: lora.LoraLayer) -> None:
    for name, variant in layer.lora_variant.items():
        raise ConfigError(
            f"adapter {name!r} of {path} uses {type(variant).__name__}, which cannot be routed: "
            "its weights act on more than A and B; use plain LoRA (use_dora=False and the like)."
        )
    if is_expert(path):
        raise ConfigError(
            f"the adapted layer {path} is an expert of a mixture, which sees tokens in an order of "
            "its own, where no label can follow; leave it out of the targets."
        )
    parts = [*layer.lora_A.values(), *layer.lora_B.values()]
    linear = parts and all(type(part) in (nn.Linear, GatedDown, GatedUp) for part in parts)
    # PEFT's convention: these kinds call A and B as modules, where others (for attention, for bare
    # parameters) use their weights in ways that the gates would not see.
    if not linear or "Linear" not in type(layer).__name__:
        raise ConfigError(
            f"the adapted layer {path} is of the kind {type(layer).__name__}, which cannot be "
            "routed; only linear layers can, so leave it out of the targets."
        )
    if any(part.bias is not None for part in parts):
        raise ConfigError(
            f"the adapters of {path} have a bias (lora_bias=True), which cannot be routed; "
            "make them without."
        )


def _plain_base(base: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a base that is nothing but these, and frozen; else None."""
    if type(base) is not nn.Linear or is_hooked(base):
        return None
    for weight in (base.weight, base.bias):
        if weight is not None and (weight.requires_grad or not is_plain(weight)):
            return None
    return base.weight, base.bias
