"""A LoRA adapter as a GGUF file that llama.cpp adds to a base of its own: written, and read back.

A file has one `adapter.lora.alpha`, and llama.cpp scales B A of each tensor by alpha / rank, in
float32, with the rank of that tensor; alpha 0 means that it does not scale at all
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.h). What that cannot say is
folded into B: the scale of rsLoRA, ranks and alphas that differ by module, a sum of two adapters.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradroute.evaluate.geometry import Factors
from gradroute.export.gguf_layout import Place, from_place, in_place
from gradroute.export.rank_concat import alpha_for

DOWN, UP = ".lora_a", ".lora_b"
"""What follows the name of a base's tensor: A [rank, in] and B [out, rank]."""


def gguf_name(adapter: str) -> str:
    """Name of the file of an adapter."""
    return f"{adapter}.gguf"


def write_gguf(
    path: Path,
    factors: Mapping[str, Factors],
    places: Mapping[str, Place],
    *,
    architecture: str,
    dtype: torch.dtype,
) -> None:
    """Write one adapter as llama.cpp reads it.

    Args:
        path: Of the file.
        factors: Name of a module -> its update.
        places: Name of a module -> where its update goes.
        architecture: Of the base, as its GGUF file names it.
        dtype: Of the weights: float32, float16 or bfloat16.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.constants import Keys
    from gguf.quants import quantize

    kind, file_type = {
        torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    }[dtype]
    alpha = alpha_of(factors)
    writer = GGUFWriter(str(path), architecture)
    writer.add_type("adapter")
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(file_type)
    for module, own in factors.items():
        place = places[module]
        for suffix, tensor in ((DOWN, own.A), (UP, in_place(scaled_up(own, alpha), place))):
            # Rounded by torch, to the nearest; what is left for the library changes no number.
            values = tensor.to(dtype).float().contiguous().numpy()
            writer.add_tensor(place.name + suffix, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def alpha_of(factors: Mapping[str, Factors]) -> float:
    """The alpha that a file gets: one that leaves B of the first module as it is, or its rank."""
    first = next(iter(factors.values()))
    rank = len(first.A)
    alpha = alpha_for(first.scale, rank)
    exact = float(np.float32(alpha)) == alpha and alpha / rank == first.scale
    return alpha if exact and alpha > 0 else float(rank)


def read_gguf(path: Path, places: Mapping[str, Place]) -> tuple[float, dict[str, Factors]]:
    """Read an adapter as llama.cpp does, with rows in the order of the model.

    Args:
        path: Of the file.
        places: Name of a module -> where its update is.

    Returns:
        Its alpha, and by module A [rank, in] and B [out, rank], in float32, with the scale alpha /
        rank. A tensor that belongs to none of the places is under its own name.
    """
    from gguf import GGUFReader
    from gguf.constants import Keys
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    field = reader.get_field(Keys.Adapter.LORA_ALPHA)
    alpha = float(field.contents()) if field else 0.0
    tensors = {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    modules = {place.name: module for module, place in places.items()}
    found: dict[str, Factors] = {}
    for name in dict.fromkeys(key.removesuffix(DOWN).removesuffix(UP) for key in tensors):
        module = modules.get(name, name)
        down, up = tensors[name + DOWN], tensors[name + UP]
        up = from_place(up, places[module]) if module in places else up
        found[module] = Factors(down, up, alpha / len(down) if alpha else 1.0)
    return alpha, found


def gguf_names(path: Path) -> list[str]:
    """The names of the settings and tensors of a file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return [*reader.fields, *(tensor.name for tensor in reader.tensors)]


def scaled_up(own: Factors, alpha: float) -> Tensor:
    """B times what alpha / rank does not say, in float64; as it is where there is nothing.

    Args:
        own: The update.
        alpha: Of the file.
    """
    ratio = own.scale / (alpha / len(own.A))
    return own.B if ratio == 1 else ratio * own.B.double()
