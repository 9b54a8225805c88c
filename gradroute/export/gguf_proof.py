"""LoRA files of llama.cpp, read back and held against the run that they are from."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from gradroute.evaluate.geometry import saved_factors
from gradroute.export.checks import Check
from gradroute.export.files import write_adapter
from gradroute.export.gguf_layout import Place, in_place, places_of
from gradroute.export.gguf_lora import alpha_of, gguf_name, read_gguf, scaled_up
from gradroute.export.merging import distance_in_ulps
from gradroute.export.proof import Exported, with_adapter
from gradroute.export.rank_concat import OneAdapter
from gradroute.models.base import Base
from gradroute.models.checkpoint import Checkpoint, adapter_tensors


def load_gguf(folder: Path, base: Base, checkpoint: Checkpoint, shipped: Sequence[str]) -> Exported:
    """The files on a freshly loaded base, which is changed: the sum of their updates.

    The `gguf` package reads them, and PEFT computes with what it read.

    Args:
        folder: Where the files are.
        base: The base.
        checkpoint: Whose modules have updates.
        shipped: The adapters.
    """
    model = base.model
    places = places_of(model, saved_factors(checkpoint, shipped[0]))
    parts = [read_gguf(folder / gguf_name(name), places)[1] for name in shipped]
    modules: dict[str, tuple[Tensor, Tensor]] = {}
    for module in parts[0]:
        own = [part[module] for part in parts]
        up = torch.cat([one.scale * one.B.double() for one in own], dim=1)
        modules[module] = (torch.cat([one.A for one in own]), up.float())
    rank = len(next(iter(modules.values()))[0])
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in places)
    with tempfile.TemporaryDirectory() as place:
        one = OneAdapter(modules, rank, float(rank), transposed)
        write_adapter(Path(place), one, model, base_name=None, dtype=torch.float32)
        return with_adapter(Path(place), base, base.tokenizer)


def gguf_weights_check(
    folder: Path,
    checkpoint: Checkpoint,
    shipped: Sequence[str],
    places: Mapping[str, Place],
    dtype: torch.dtype,
) -> Check:
    """Whether each file holds its adapter: A as it is, B so that alpha / rank gives the scale.

    Args:
        folder: Where the files are.
        checkpoint: Read again.
        shipped: The adapters.
        places: Name of a module -> where its update is.
        dtype: In which its weights are stored.
    """
    worst, count, other = 0.0, 0, 0
    for adapter in shipped:
        alpha, found = read_gguf(folder / gguf_name(adapter), places)
        expected = saved_factors(checkpoint, adapter)
        other += len(found.keys() ^ expected.keys())
        for module in found.keys() & expected.keys():
            own, read = expected[module], found[module]
            exact = own.scale / (alpha / len(own.A)) * own.B.double()
            fits = read.A.shape == own.A.shape and read.B.shape == own.B.shape
            worst = max(
                worst,
                distance_in_ulps(read.A.to(dtype), own.A.double()) if fits else float("inf"),
                distance_in_ulps(read.B.to(dtype), exact) if fits else float("inf"),
            )
            count += 2
    return Check(
        "weights",
        bool(count) and not other and worst <= 1,
        f"{count} tensors of {len(shipped)} files, read back, are within {worst:.2f} units in the "
        "last place of those of the checkpoint (1 allowed) where B A is scaled by "
        f"adapter.lora.alpha / rank; {other} modules more or less",
        {"tensors": count, "ulps": worst},
    )


def states_in_order(
    checkpoint: Checkpoint, adapter: str, places: Mapping[str, Place]
) -> dict[str, Tensor]:
    """An adapter's tensors as a file of it would hold them; what is left out is searched for so."""
    factors = saved_factors(checkpoint, adapter)
    alpha = alpha_of(factors)
    ordered = {m: in_place(scaled_up(own, alpha), places[m]) for m, own in factors.items()}
    return adapter_tensors(checkpoint, adapter) | ordered
