"""The files of an export: a PEFT adapter's or a whole model's, with the tokenizer's.

Nothing here sees an adapter that is left out.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.errors import ConfigError
from gradroute.export.older_readers import (
    only_for_new_readers,
    tokenizer_with_older_names,
    with_older_names,
)
from gradroute.export.rank_concat import OneAdapter
from gradroute.system.files import read_json, write_json
from gradroute.system.terminal import say
from gradroute.untrusted.model_folder import TOKENIZER_FILES

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = re.compile(
    r"config\.json|generation_config\.json|model\.safetensors(\.index\.json)?"
    r"|model-[0-9]{5}-of-[0-9]{5}\.safetensors"
)
TOKEN_FILES = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
LARGEST_SHARD = "5GB"

# What the machine that saved a file left in it, and what names code; no reader of ours needs it.
_NOT_WRITTEN = (
    "_name_or_path",
    "name_or_path",
    "auto_map",
    "special_tokens_map_file",
    "custom_generate",
    "is_local",
    "local_files_only",
)
_LAYER = re.compile(r"(?:^|.*?\.)([^.]+)\.([0-9]+)\.")
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def write_adapter(
    folder: Path,
    adapter: OneAdapter,
    base: nn.Module,
    *,
    base_name: str | None,
    dtype: torch.dtype,
) -> None:
    """Write one adapter as plain PEFT and servers read it, at the root of a folder.

    Args:
        folder: There, and empty.
        adapter: What is written.
        base: The model that it belongs to.
        base_name: Name of the base on the hub; None where it has none. Never a path.
        dtype: Of the weights.
    """
    tensors = {}
    for module, (down, up) in adapter.modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down.to(dtype).contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = up.to(dtype).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = _lora_config(adapter, base).to_dict()
    described["base_model_name_or_path"] = base_name
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in described.items()}
    _write_settings(folder / "adapter_config.json", plain)


def write_model(folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Write a model as plain transformers reads it; its weights are cast in place.

    A weight that the model holds in another type than its own on purpose stays in it.

    Args:
        folder: There, and empty.
        model: What is written.
        dtype: Of the weights.
    """
    own = model.dtype
    for weight in model.parameters():
        if weight.dtype == own:
            weight.data = weight.data.to(dtype)
    _saveable(model)
    model.save_pretrained(folder, max_shard_size=LARGEST_SHARD)
    config = read_json(folder / "config.json") | {"dtype": _TYPES[dtype]}
    written = with_older_names(config)
    if only_for_new_readers(written):
        say(
            "the rotary positions of this model differ by kind of layer in a way that the settings "
            "of transformers before version 5 cannot express: earlier readers would compute "
            "another model."
        )
    _write_settings(folder / "config.json", written)
    if (folder / "generation_config.json").is_file():
        _write_settings(
            folder / "generation_config.json", read_json(folder / "generation_config.json")
        )


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer's files into a folder; those of other names are not kept."""
    before = {path.name for path in folder.iterdir()}
    several = isinstance(tokenizer.chat_template, dict)
    tokenizer.save_pretrained(folder, save_jinja_files=not several)
    for path in folder.iterdir():
        if path.name not in before and path.name not in TOKEN_FILES:
            raise ConfigError(
                f"the tokenizer of the base model saves a file {path.name}, which an export may "
                f"not contain. Use a base with a tokenizer of transformers' own."
            )
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name)
            if name == "tokenizer_config.json":
                settings = tokenizer_with_older_names(settings, tokenizer)
            _write_settings(folder / name, settings)


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    kept = {key: settings[key] for key in sorted(settings) if key not in _NOT_WRITTEN}
    json.dumps(kept, allow_nan=False)  # write_json would make a null of it
    write_json(path, kept)


def _saveable(model: PreTrainedModel) -> None:
    """Generation settings that their own class refuses to save are left out but for tokens."""
    own = model.generation_config
    if own is None:
        return
    try:
        own.validate(strict=True)
    except ValueError:
        say(
            "the generation settings of the base contradict each other; the export keeps only "
            "their special tokens."
        )
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )


def _lora_config(adapter: OneAdapter, base: nn.Module) -> LoraConfig:
    names = [name for name, _ in base.named_modules()]
    modules = list(adapter.modules)
    for targets, layers, pattern in (_short(modules), (modules, None, None)):
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=_whole(adapter.alpha),  # pyright: ignore[reportArgumentType]
            fan_in_fan_out=adapter.fan_in_fan_out,
            inference_mode=True,
            task_type=TaskType.CAUSAL_LM,
            target_modules=targets,
            layers_to_transform=layers,
            layers_pattern=pattern,
        )
        hit = {name for name in names if check_target_module_exists(config, name)}
        if hit == set(modules):
            _check_read_as_given(config, base)
            return config
    raise ConfigError(
        "the adapted modules have names that PEFT cannot tell from those of other modules, so it "
        "could not load the adapter. Use --format merged."
    )


def _check_read_as_given(config: LoraConfig, base: nn.Module) -> None:
    """Refuse targets that PEFT reads as something else when it loads them.

    In many mixtures it takes `gate_proj`, `up_proj` and `down_proj` for those of experts, though
    it is a dense or shared MLP that has the adapter.
    """
    read = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(read, base, None)
    except ValueError:
        read.target_parameters = ["some"]
    if read.target_parameters:
        raise ConfigError(
            f"PEFT reads the targets {', '.join(sorted(config.target_modules or []))} of a "
            f"{type(base).__name__} as its experts, so that it would load another adapter. Use "
            "--format merged, or train with targets=attention."
        )


def _short(modules: Sequence[str]) -> tuple[list[str], list[int] | None, str | None]:
    """Last parts of names, numbers of layers and the name of their list: what servers expect.

    They may hit other modules as well, or not all of these.
    """
    last = sorted({name.rsplit(".", 1)[-1] for name in modules})
    found = [match for name in modules if (match := _LAYER.match(name))]
    lists = {match[1] for match in found}
    if len(lists) != 1:
        return last, None, None
    return last, sorted({int(match[2]) for match in found}), lists.pop()


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number
