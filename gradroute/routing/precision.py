"""In which dtype a routed layer computes: autocast is looked at, and then off."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def dtypes_of(
    x: Tensor, weight: Tensor | None, factors: Sequence[Tensor], asked: torch.dtype | None
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of products.

    Args:
        x: Input of the layer.
        weight: Of the base, where its product is computed with those of the adapters.
        factors: A or B of the adapters.
        asked: Of the low-rank products; None for the autocast dtype where autocast is on, else that
            of the adapters.

    Returns:
        Of the low-rank products, and of the base product.
    """
    own = factors[0].dtype if factors else x.dtype
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        low = torch.get_autocast_dtype(x.device.type)
        return asked or low, low
    return asked or own, own if weight is None else weight.dtype


def no_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast off: the dtypes are chosen here, and mixing in its casts would break addmm."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
