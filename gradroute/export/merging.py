"""LoRA updates added to the weights of a base: `W + s B A`, in float64, rounded once."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradroute.errors import ConfigError
from gradroute.export.rank_concat import OneAdapter
from gradroute.routing.shared_weights import Factors, merged_once

MANTISSA = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
"""Bits of a number's fraction."""


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: OneAdapter, dtype: torch.dtype) -> None:
    """Add an adapter's update to a model's weights, in place, and cast these to a type.

    The sum is taken in float64: where an update nearly cancels a weight, a product in float32
    would be wrong by more than the last digit of the result.

    A weight that one module uses at several depths is added to once.

    Raises:
        ConfigError: See `mergeable`; the model is as it was.
    """
    for name, (down, up) in mergeable(model, adapter).items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        update = adapter.scale * (up.double() @ down.double())
        if adapter.fan_in_fan_out:
            update = update.T
        weight.data = (weight.double() + update.to(weight.device)).to(dtype)


def mergeable(model: PreTrainedModel, adapter: OneAdapter) -> dict[str, Factors]:
    """The modules whose weights an adapter's updates can be added to, each weight once.

    Raises:
        ConfigError: A module is quantized or of an unknown kind, or its weight is tied to that of
            another module that is not to change by the same update.
    """
    for name in adapter.modules:
        module = model.get_submodule(name)
        weight = getattr(module, "weight", None)
        plain = _is_linear(module) and type(weight) is nn.Parameter
        if not plain or not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ConfigError(
                f"the module {name} is of the kind {type(module).__name__}, whose weights are "
                f"quantized or stored in a special format, so no update can be added to them "
                f"exactly. Use --format peft, which leaves the base as it is."
            )
    return merged_once(model, adapter.modules, "the adapter", "Use --format peft.")


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear one of torch, or of a model's own code (`FalconLinear`).

    Other subclasses are ways to quantize.
    """
    own = isinstance(module, nn.Linear) and type(module).__module__.startswith(
        "transformers.models."
    )
    return own or type(module) in (nn.Linear, Conv1D)


def distance_in_ulps(found: Tensor, exact: Tensor) -> float:
    """The largest distance of rounded numbers from exact ones, in units in the last place.

    A unit is the distance of neighboring numbers of the type of `found` at the exact number
    (Goldberg 1991, "What every computer scientist should know about floating-point arithmetic").

    Args:
        found: In float32, bfloat16 or float16.
        exact: In float64, of the same shape.
    """
    if not found.numel():
        return 0.0
    limits = torch.finfo(found.dtype)
    bits = MANTISSA[found.dtype]
    _, exponent = torch.frexp(exact.abs().clamp_min(limits.smallest_normal))
    unit = torch.ldexp(torch.ones_like(exact), exponent - 1 - bits)
    distance = float(((found.detach().double() - exact).abs() / unit).max())
    return distance if math.isfinite(distance) else math.inf


@torch.no_grad()
def exact_update(factors: Mapping[str, Tensor], name: str, scale: float) -> Tensor:
    """`s B A` of one module in float64, as a sum of outer products; the slow, obvious way.

    Args:
        factors: Tensors of an adapter under the names that PEFT gives them.
        name: Of the module.
        scale: s.
    """
    down = factors[f"base_model.model.{name}.lora_A.weight"].double()
    up = factors[f"base_model.model.{name}.lora_B.weight"].double()
    total = torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64)
    for row, column in zip(down, up.T, strict=True):
        total += scale * column[:, None] * row[None, :]
    return total
