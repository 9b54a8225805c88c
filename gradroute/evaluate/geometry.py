"""How the weight updates of two adapters lie to each other.

An adapter with factors A [rank, in], B [out, rank] and scale s adds `dW = s B A` to a weight. With
the Frobenius inner product,

    <dW_1, dW_2> = s_1 s_2 tr(A_1^T B_1^T B_2 A_2) = s_1 s_2 sum((B_1^T B_2) * (A_1 A_2^T)),

so that only products of size rank x rank are needed, never one of size out x in.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.routing.hosting import adapter_weights, lora_layers


class Factors(NamedTuple):
    """One adapter's update of one weight, `scale * B @ A`."""

    A: Float[Tensor, "rank inputs"]
    B: Float[Tensor, "outputs rank"]
    scale: float


class RandomCosines(NamedTuple):
    """Mean absolute cosine of random updates: over all draws, and the extremes of the draws."""

    mean: float
    lower: float
    upper: float
    draws: int


def adapter_factors(model: PeftModel, adapter: str) -> dict[str, Factors]:
    """The factors of one adapter, by the name of the module that it adapts.

    Raises:
        ConfigError: The model has no such adapter.
    """
    found = {
        name: Factors(*adapter_weights(layer, adapter), float(layer.scaling[adapter]))
        for name, layer in lora_layers(model.get_base_model()).items()
        if adapter in layer.lora_A
    }
    if not found:
        raise ConfigError(
            f"the model has no adapter {adapter!r} to compare; it has "
            f"{', '.join(model.peft_config) or 'none'}."
        )
    return found


def inner_product(first: Factors, second: Factors) -> float:
    """Frobenius inner product of two updates of the same weight, in float64."""
    a1, b1, a2, b2 = (part.detach().to(torch.float64) for part in (*first[:2], *second[:2]))
    return first.scale * second.scale * float(((b1.T @ b2) * (a1 @ a2.T)).sum())


def update_cosines(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> dict[str, float]:
    """Cosine of two adapters' weight updates, module by module.

    `cos = <dW_1, dW_2> / (|dW_1| |dW_2|)` with the Frobenius product. An update of zero (an adapter
    that was never trained) has no direction: its cosine is NaN.

    Args:
        first: Factors by module name.
        second: The same of another adapter; modules that only one of them adapts are left out.
    """
    cosines = {}
    for module in first:
        if module in second:
            one, two = first[module], second[module]
            norms = math.sqrt(inner_product(one, one)) * math.sqrt(inner_product(two, two))
            cosines[module] = inner_product(one, two) / norms if norms > 0 else math.nan
    return cosines


def mean_absolute(cosines: Mapping[str, float]) -> float:
    """Mean of the absolute cosines that exist; NaN if none does."""
    known = [abs(cosine) for cosine in cosines.values() if not math.isnan(cosine)]
    return sum(known) / len(known) if known else math.nan


def random_cosines(
    first: Mapping[str, Factors], second: Mapping[str, Factors], *, draws: int, seed: int
) -> RandomCosines:
    """Mean absolute cosine of updates that have nothing to do with each other.

    Every factor is replaced by one of the same shape with independent standard normal entries.

    Args:
        first: Factors by module name; only their shapes are used.
        second: The same of another adapter.
        draws: How often all modules are drawn.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    means = [
        mean_absolute(update_cosines(_random(first, generator), _random(second, generator)))
        for _ in range(draws)
    ]
    return RandomCosines(sum(means) / draws, min(means), max(means), draws)


def _random(factors: Mapping[str, Factors], generator: torch.Generator) -> dict[str, Factors]:
    return {
        name: Factors(
            torch.randn(factor.A.shape, generator=generator),
            torch.randn(factor.B.shape, generator=generator),
            1.0,
        )
        for name, factor in factors.items()
    }
