"""Weights that several modules share, and the effect of a merge into one of these modules.

An update may be added to a weight once, where every module that uses the weight is to change by
it. That is so for one module that a model calls at several depths. It is not so for modules of
their own that were given the same tensor (tied weights): each has an adapter of its own, or none,
and no single weight stands for both.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.layers import lora_layers

Factors = tuple[Tensor, Tensor]
"""A [rank, in] and B [out, rank] of one module."""


class _User(NamedTuple):
    """A place of a model that uses a weight.

    Attributes:
        slot: The module that holds the place and the name in it; two paths to one place (a block
            that is called at several depths) have the same.
        path: The first path to the place.
        weight: What is used there.
    """

    slot: tuple[int, str]
    path: str
    weight: Tensor


def merged_once(
    model: nn.Module, modules: Mapping[str, Factors], told: str, instead: str
) -> dict[str, Factors]:
    """The modules whose weights an adapter's updates are added to, each weight once.

    Args:
        model: A base without adapters.
        modules: Path of a linear module -> its factors. A module that has several paths may come
            under each of them, with the same factors, as PEFT saves it.
        told: Begins the sentence that refuses, such as `start_adapter: FOLDER`.
        instead: What to do then, a sentence.

    Returns:
        Those of `modules` that are to be merged.

    Raises:
        ConfigError: A weight is shared by modules that are not all to change by the same update.
    """
    chosen: dict[tuple[int, str], tuple[str, Factors]] = {}
    for name, factors in modules.items():
        slot = _slot(model, name)
        known, own = chosen.setdefault(slot, (name, factors))
        if not _equal(factors, own):
            raise ConfigError(
                f"{told} has one update of {known} and another of {name}, which are one module. "
                f"{instead}"
            )
    beside = _sharing(model)
    once: dict[int, tuple[str, Factors]] = {}
    for slot, (name, factors) in chosen.items():
        own = _weight(model.get_submodule(name))
        for user in beside[id(own)]:
            if user.slot == slot:
                continue
            other = chosen.get(user.slot)
            if other is None or user.weight is not own or not _equal(factors, other[1]):
                what = "would change with it" if other is None else "has another update"
                raise ConfigError(
                    f"{told} changes {name}, whose weight is tied to that of {user.path}, which "
                    f"{what}. {instead}"
                )
        once.setdefault(id(own), (name, factors))
    return dict(once.values())


def unshare(model: nn.Module) -> list[str]:
    """Give every adapted module whose weight is used elsewhere a copy of its own, in place.

    Afterwards each adapter can be merged by itself, and the model computes what it did.

    Args:
        model: A model with LoRA layers, on its device.

    Returns:
        The paths of the modules that had to be copied.
    """
    beside = _sharing(model)
    copied = []
    for path, layer in lora_layers(model).items():
        base = layer.get_base_layer()
        if any(user.slot[0] != id(layer) for user in beside[id(_weight(base))]):
            layer.base_layer = copy.deepcopy(base)
            copied.append(path)
    return copied


def _sharing(model: nn.Module) -> dict[int, list[_User]]:
    """Id of a weight -> every place that uses some of its memory, its own among them."""
    spans = [(_span(user.weight), user) for user in _users(model)]
    found: dict[int, list[_User]] = {}
    together: list[_User] = []
    until = ("", 0)
    for (device, start, end), user in sorted(spans, key=lambda pair: pair[0]):
        if (device, start) >= until:
            together = []
        until = max(until, (device, end))
        together.append(user)
        found[id(user.weight)] = together
    return found


def _users(model: nn.Module) -> list[_User]:
    """Every place of every weight, once; LoRA layers show what they are made of."""
    places = [
        _User((0, name), name, weight)
        for name, weight in model._parameters.items()
        if weight is not None
    ]
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        for name, part in module._modules.items():
            own = () if part is None else part._parameters.values()
            places += [_User((id(module), name), start + name, w) for w in own if w is not None]
    return places


def _slot(model: nn.Module, name: str) -> tuple[int, str]:
    above, _, last = name.rpartition(".")
    return id(model.get_submodule(above)), last


def _equal(one: Factors, other: Factors) -> bool:
    return one is other or all(map(torch.equal, one, other))


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _span(weight: Tensor) -> tuple[str, int, int]:
    """The device of a tensor, the address of its first byte and the one behind its last."""
    if weight.is_meta or not weight.numel():
        return f"none {id(weight)}", 0, 1
    far = sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
    start = weight.data_ptr()
    return str(weight.device), start, start + (far + 1) * weight.element_size()
