"""Tensors that are spread over the ranks of a run (`DTensor`), and what makes them whole."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, for which every rank must call this; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Of a whole tensor this rank's part, if the other one is sharded; else the tensor itself."""
    if not isinstance(other, DTensor):
        return tensor
    # Every rank has the whole, so that nothing needs to be sent.
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def total_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """L2 norm of some tensors together, over all ranks."""
    return whole(nn.utils.get_total_norm(tensors))


def open_lone_group() -> None:
    """Make this process a group of one, where it belongs to none; no port is opened."""
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
