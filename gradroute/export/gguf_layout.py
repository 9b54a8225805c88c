"""Where llama.cpp's converters put the weights of a model: names of tensors, order of rows.

A converter belongs to a family: it renames tensors, and may permute, split or join them. The
families below are those whose adapted weights it takes as they are, or with the rows of the query
and key projections permuted (`benchmarks/readers.py` runs them in llama.cpp). Names come from the
map of the `gguf` package, which the converters use.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from gradroute.errors import ConfigError
from gradroute.routing.targets import is_tied

ARCHITECTURES = {
    "apertus": "APERTUS",
    "arcee": "ARCEE",
    "cohere": "COMMAND_R",
    "cohere2": "COHERE2",
    "ernie4_5": "ERNIE4_5",
    "exaone4": "EXAONE4",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "gemma4_text": "GEMMA4",
    "glm": "CHATGLM",
    "glm4": "GLM4",
    "gpt2": "GPT2",
    "gpt_bigcode": "STARCODER",
    "gpt_oss": "GPT_OSS",
    "granite": "GRANITE",
    "granitemoe": "GRANITE_MOE",
    "hunyuan_v1_dense": "HUNYUAN_DENSE",
    "lfm2": "LFM2",
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "mixtral": "LLAMA",
    "nemotron": "NEMOTRON",
    "olmo": "OLMO",
    "olmo2": "OLMO2",
    "olmo3": "OLMO2",
    "olmoe": "OLMOE",
    "phi": "PHI2",
    "phi3": "PHI3",
    "qwen2": "QWEN2",
    "qwen2_moe": "QWEN2MOE",
    "qwen3": "QWEN3",
    "qwen3_moe": "QWEN3MOE",
    "seed_oss": "SEED_OSS",
    "smollm3": "SMOLLM3",
    "stablelm": "STABLELM",
    "starcoder2": "STARCODER2",
}
"""`model_type` of transformers -> the architecture of GGUF that its converter writes."""
PERMUTED = ("arcee", "granite", "granitemoe", "llama", "mistral", "mixtral", "olmo", "smollm3")
"""Of these, those whose converter permutes the rows of queries and keys."""
_INSTEAD = "Use --format peft, or --format merged and llama.cpp's converter."


class Place(NamedTuple):
    """Where the update of one module stands.

    Attributes:
        name: Of the tensor that it is added to, such as `blk.0.attn_q.weight`.
        heads: Number of blocks of rows in which the two halves alternate, row by row, where the
            model has one half after the other; None for rows as they are.
    """

    name: str
    heads: int | None


def architecture_of(model: PreTrainedModel) -> str:
    """The value of `general.architecture` in a GGUF file of the model, such as `llama`.

    Raises:
        ConfigError: The converter of its family is not known here.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

    kind = model.config.model_type
    known = ARCHITECTURES.get(kind, "")
    if known not in MODEL_ARCH.__members__:
        raise ConfigError(
            f"the base is of the kind {kind!r}, and it is not known here how llama.cpp's converter "
            f"names and orders its weights; --format gguf-lora knows {', '.join(ARCHITECTURES)}. "
            f"{_INSTEAD}"
        )
    return MODEL_ARCH_NAMES[MODEL_ARCH[known]]


def places_of(model: PreTrainedModel, modules: Iterable[str]) -> dict[str, Place]:
    """Where the updates of modules stand in a LoRA file of llama.cpp.

    Args:
        model: The base.
        modules: Names of linear modules in it.

    Raises:
        ConfigError: The family is not known, or a GGUF file of it has no tensor that is the weight
            of one module alone.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    told = architecture_of(model)
    config = model.config
    names = get_tensor_name_map(
        MODEL_ARCH[ARCHITECTURES[config.model_type]], config.num_hidden_layers
    )
    found: dict[str, Place] = {}
    for module in modules:
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None or name in (place.name for place in found.values()):
            raise ConfigError(
                f"the adapter acts on {module}, and a GGUF file of a {told} model has no tensor "
                f"that holds the weight of this module alone (it is joined with others, split, or "
                f"unknown), so llama.cpp could not add the update. {_INSTEAD} Or train without it "
                "(targets=attention)."
            )
        if is_tied(model, model.get_submodule(module)):
            raise ConfigError(
                f"the adapter acts on {module}, whose weight is that of the embeddings: a GGUF "
                f"file of the model holds it once, as embeddings, so no update can be added to the "
                f"head alone. {_INSTEAD}"
            )
        found[module] = Place(name, _heads(model, module))
    return found


def check_base_file(path: Path, architecture: str, sizes: Mapping[str, tuple[int, int]]) -> None:
    """See that the GGUF file that a run was trained on has the tensors that updates are added to.

    Args:
        path: The file.
        architecture: The one that the adapter will name.
        sizes: Name of a tensor -> its rows and columns.

    Raises:
        ConfigError: It has another architecture, or a tensor is not there or of another shape.
    """
    from gguf import GGUFReader

    base = GGUFReader(path)
    field = base.get_field("general.architecture")
    own = field.contents() if field else None
    shapes = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in base.tensors}
    other = [name for name, size in sizes.items() if shapes.get(name) != size]
    if own != architecture or other:
        what = f"no tensor {other[0]} of the shape {sizes[other[0]]}" if other else f"kind {own}"
        raise ConfigError(
            f"the base's own file {path.name} has {what}, which the adapter is for, so llama.cpp "
            f"could not use the two together. {_INSTEAD}"
        )


def in_place(weight: Tensor, place: Place) -> Tensor:
    """A weight, or B of an update, with its rows in the order of a GGUF file.

    Args:
        weight: [rows, columns].
        place: Where it goes.
    """
    if place.heads is None:
        return weight
    halves = weight.reshape(place.heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def from_place(weight: Tensor, place: Place) -> Tensor:
    """The other way round: rows in the order of the model."""
    if place.heads is None:
        return weight
    pairs = weight.reshape(place.heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _heads(model: PreTrainedModel, module: str) -> int | None:
    if model.config.model_type not in PERMUTED:
        return None
    own = model.config.num_attention_heads
    if module.endswith(".q_proj"):
        return own
    return (model.config.num_key_value_heads or own) if module.endswith(".k_proj") else None
