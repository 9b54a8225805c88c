"""Several LoRA adapters as one: A stacked, B side by side, `sum_k s_k B_k A_k = s [B_1 …] A`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.evaluate.geometry import Factors, saved_factors
from gradroute.models.checkpoint import Checkpoint
from gradroute.system.files import read_json


@dataclass(frozen=True)
class OneAdapter:
    """A LoRA adapter that PEFT reads, in float32.

    Attributes:
        modules: Name of the module in the base -> A [rank, in], B [out, rank].
        rank: Rows of A.
        alpha: The update is scaled by alpha / rank, as every reader does it. Several readers pass
            over `use_rslora`, so the scale of rsLoRA is folded into alpha.
        fan_in_fan_out: Whether the base stores its weights transposed (Conv1D).
    """

    modules: dict[str, tuple[Tensor, Tensor]]
    rank: int
    alpha: float
    fan_in_fan_out: bool

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def as_one(checkpoint: Checkpoint, adapters: Sequence[str]) -> OneAdapter:
    """The adapters of a verified checkpoint as one; no other adapter's files are opened.

    The factors of a single adapter are taken as they are, bit by bit. Of several, the scales are
    folded into B where they differ, which rounds once.

    Args:
        checkpoint: Verified.
        adapters: One or more names.

    Raises:
        MachineError: The checkpoint lacks one.
        ConfigError: They adapt different modules.
    """
    parts = {name: saved_factors(checkpoint, name) for name in adapters}
    described = [_described(checkpoint, name) for name in adapters]
    transposed = bool(described[0].get("fan_in_fan_out"))
    first, *others = parts.values()
    if len(adapters) == 1:
        modules = {module: (own.A, own.B) for module, own in first.items()}
        rank = described[0]["r"]
        alpha = float(described[0]["lora_alpha"])
        if described[0].get("use_rslora"):
            alpha = alpha_for(next(iter(first.values())).scale, rank)
        return OneAdapter(modules, rank, alpha, transposed)
    if any(other.keys() != first.keys() for other in others):
        raise ConfigError(
            f"the adapters {', '.join(adapters)} adapt different modules, so they cannot be one "
            "adapter of one rank; use --format merged."
        )
    rank = sum(one["r"] for one in described)
    common = _common_scale([next(iter(part.values())).scale for part in parts.values()], rank)
    modules = {
        module: _stacked([part[module] for part in parts.values()], fold=common is None)
        for module in first
    }
    alpha = float(rank) if common is None else common * rank
    return OneAdapter(modules, rank, alpha, transposed)


def alpha_for(scale: float, rank: int) -> float:
    """The alpha whose quotient by a rank is a scale, or where there is none the nearest to it.

    A product is rounded, and the quotient again; one of the product's neighbors may do better. What
    remains is under one unit in the last place of a float64, which no weight in float32 sees.
    """
    product = scale * rank
    nearby = (product, math.nextafter(product, math.inf), math.nextafter(product, 0.0))
    return min(nearby, key=lambda alpha: abs(alpha / rank - scale))


def _described(checkpoint: Checkpoint, adapter: str) -> dict[str, Any]:
    return read_json(checkpoint.path / adapter / "adapter_config.json")


def _common_scale(scales: Sequence[float], rank: int) -> float | None:
    """The scale of all, if it is one that alpha / rank gives back exactly."""
    same = len(set(scales)) == 1 and scales[0] * rank / rank == scales[0]
    return scales[0] if same else None


def _stacked(parts: Sequence[Factors], *, fold: bool) -> tuple[Tensor, Tensor]:
    ups = [part.B.double() * part.scale if fold else part.B for part in parts]
    return torch.cat([part.A for part in parts]), torch.cat(ups, dim=1).to(parts[0].B.dtype)
