"""Transfers between the CPU and another device, and the waits for them.

A GPU works behind the CPU's back. Where the CPU asks it for a number it waits until all that was
asked before is done, and the GPU stands idle until it is told what comes next. So what is sent is
sent without waiting, and what must be known is asked for at once.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; to CUDA without waiting for what that is doing.

    By way of pinned memory, which PyTorch keeps until the copy is done.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of each tensor, flattened, for one wait in all.

    Args:
        tensors: At least one; of any floating types, which a wider one holds exactly.
    """
    wide = reduce(torch.promote_types, (one.dtype for one in tensors))
    device = tensors[0].device
    flat = torch.cat([one.detach().reshape(-1).to(device, wide) for one in tensors])
    numbers = flat.tolist()
    found, at = [], 0
    for one in tensors:
        found.append(numbers[at : at + one.numel()])
        at += one.numel()
    return found
