"""A random LoRA adapter whose update of every module is as large as that of another adapter."""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from gradroute.errors import MachineError
from gradroute.system.files import UNFINISHED, replace_folder, sync, write_failure
from gradroute.untrusted.adapter_folder import CONFIG, WEIGHTS, read_adapter


def write_random_twin(place: Path, out: Path, seed: int) -> None:
    """Write an adapter of the same modules, rank and scaling, in random directions.

    The update B A of every module has the Frobenius norm of the other adapter's. The same seed and
    adapter give the same files; what is at `out` is replaced.

    Args:
        place: Folder of the adapter.
        out: Folder of the random one; its parent is there.
        seed: Of the directions.

    Raises:
        ConfigError: The folder holds no plain LoRA adapter.
        MachineError: The disk refuses.
    """
    file = read_adapter(str(place), "random adapter")
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in file.factors.items():
        digest = hashlib.sha256(f"{seed}:random adapter:{module}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        low, high = (torch.randn(part.shape, generator=generator) for part in (down, up))
        high *= update_norm(down, up) / update_norm(low, high)
        name = next(key for key in file.tensors if key.endswith(f"{module}.lora_A.weight"))
        tensors[name], tensors[name.replace(".lora_A.", ".lora_B.")] = low, high
    temporary = out.with_name(f"{UNFINISHED}{out.name}-{os.getpid()}")
    try:
        temporary.mkdir()
        shutil.copyfile(place / CONFIG, temporary / CONFIG)
        save_file(tensors, temporary / WEIGHTS)
        for name in (CONFIG, WEIGHTS):
            sync(temporary / name)
        replace_folder(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise MachineError(f"random adapter {write_failure(out, error, size)}.") from error


def update_norm(down: Float[Tensor, "rank inputs"], up: Float[Tensor, "outputs rank"]) -> float:
    """The Frobenius norm of up @ down, in float64, without that product.

    Its square is the trace of (B^T B)(A A^T), two matrices of the rank's size.
    """
    down, up = down.double(), up.double()
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())
