"""Files of a model's folder, checked before a library opens any of them.

An untrusted folder is data. The library that reads it takes more from it than numbers: its
files may name other files, kernels to download or another model, and the names are followed
wherever they lead. Here every name must be that of a file in the folder, and every setting that
selects code is refused, except `auto_map`, which is never followed. Nothing is imported or run,
and no weights are read.
"""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradroute.errors import ConfigError
from gradroute.system.terminal import printable
from gradroute.untrusted.gguf import NotGguf, check_gguf

MAX_SETTINGS = 16 * 2**20
"""Bytes of a JSON file of settings; those of the largest published models have 9 million."""
MAX_OTHER = 256 * 2**20
"""Bytes of any other file but weights; the largest vocabularies have 35 million."""
MAX_DEPTH = 32

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Files of weights may be large. Those that are no safetensors are never read.
_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
_SAFETENSORS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_GGUF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.gguf")
_VERSIONED = re.compile(r"(config|tokenizer)\.[0-9][0-9.]*\.json")
_TOKENIZER_CLASS = re.compile(
    r"(?!Auto|Rag)\w*Tokenizer(Fast)?|(Tokenizers|SentencePiece|Python|MistralCommon)Backend",
    re.ASCII,
)
# Code of torch and transformers themselves; any other word may name a kernel on the hub.
_OWN_CODE = (None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_SELECT_CODE = (
    "trust_remote_code",
    "custom_generate",
    "custom_pipelines",
    "use_kernels",
    "kernel_config",
    "allow_all_kernels",
)
# Readers of other weights in few bits fetch code from the hub (fp8, mxfp4), or import packages.
_PACKED = ("bitsandbytes",)
_SELECT_FILES = ("gguf_file", "init_inputs", "tokenizer_object")
# Left behind by the machine that saved a model; no reader opens what they name.
_UNREAD = ("_name_or_path", "name_or_path", "special_tokens_map_file")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)


def check_model_folder(folder: Path, name: str, gguf_file: str | None = None) -> None:
    """See that a model's folder holds a model and nothing that leads out of it.

    Args:
        folder: In Hugging Face format, or one that a GGUF file lies in.
        name: What messages call the model.
        gguf_file: The GGUF file in it that the weights are read from; None for safetensors.

    Raises:
        ConfigError: It does not; the message names the file and the setting.
    """
    folder = folder.resolve()
    try:
        names = list(check_files(folder))
        for entry in names:
            _check_file(folder, entry)
        if gguf_file is None:
            _check_safetensors(names)
        else:
            _check_gguf_file(folder, gguf_file, names)
    except RefusedFile as refused:
        raise ConfigError(f"model {name}: {printable(str(refused))}") from refused


def check_gguf_name(gguf_file: str) -> None:
    """See that a GGUF file is named as one that lies in the model's folder itself.

    Raises:
        ConfigError: It is not.
    """
    if not _GGUF.fullmatch(gguf_file):
        raise ConfigError(
            "gguf_file: the plain name of a file in the model's folder or repository is needed, "
            f"such as model.Q4_K_M.gguf, got {gguf_file!r:.80}."
        )


def _check_safetensors(names: list[str]) -> None:
    if any(entry.endswith(".safetensors") for entry in names):
        return
    if packed := [entry for entry in names if entry.endswith(".gguf")]:
        raise RefusedFile(
            f"the folder has no weights as safetensors, but GGUF files; give gguf_file={packed[0]}"
            + (f" or another of {', '.join(packed[1:6])}." if packed[1:] else ".")
        )
    raise RefusedFile(
        "the folder has no weights as safetensors. Weights in pickle files "
        "(pytorch_model.bin) are never read; save the model again as safetensors."
    )


def _check_gguf_file(folder: Path, gguf_file: str, names: list[str]) -> None:
    if gguf_file not in names:
        others = [entry for entry in names if entry.endswith(".gguf")]
        there = f"those there are {', '.join(others[:6])}" if others else "there is none"
        raise RefusedFile(f"it has no GGUF file {gguf_file}; {there}.")
    try:
        check_gguf(folder / gguf_file)
    except NotGguf as error:
        raise RefusedFile(f"{gguf_file} {error}") from error
    except OSError as error:
        raise RefusedFile(f"{gguf_file} cannot be read ({error.strerror}).") from error


def named_weights(folder: Path, name: str) -> list[str]:
    """The files of weights that a folder's settings name; they need not be there yet.

    Raises:
        ConfigError: a file of the folder is refused.
    """
    folder = folder.resolve()
    try:
        for entry in check_files(folder):
            _check_file(folder, entry)
        chosen = json_object(folder / "config.json").get("transformers_weights")
        if chosen and not chosen.endswith(".json"):
            return [chosen]
        index = folder / (chosen or INDEX)
        return _shards(index) if index.is_file() else [WEIGHTS]
    except RefusedFile as refused:
        raise ConfigError(f"model {name}: {printable(str(refused))}") from refused


class RefusedFile(ValueError):
    """A file or a setting that is not read, in words."""


def check_files(folder: Path) -> Iterator[str]:
    """The names of a folder's files, each of them a real one inside it and not too large."""
    own = [folder]
    if folder.parent.name == "snapshots":  # of the hub cache: every file is a link to a blob
        own.append(folder.parent.parent / "blobs")
    templates = folder / "additional_chat_templates"
    places = sorted(folder.iterdir()) + (sorted(templates.iterdir()) if templates.is_dir() else [])
    for place in places:
        name = str(place.relative_to(folder))
        try:
            real = place.resolve()
            inside = any(real.is_relative_to(one) for one in own)
            facts = real.stat() if inside else None
        except (OSError, RuntimeError) as error:  # the latter for links in a loop
            raise RefusedFile(f"{name} cannot be read ({error}).") from error
        if facts is None:
            raise RefusedFile(f"{name} is a link that leads out of the folder. Put the file there.")
        if stat.S_ISDIR(facts.st_mode):
            continue
        if not stat.S_ISREG(facts.st_mode):
            raise RefusedFile(f"{name} is a pipe or a device; remove it.")
        if facts.st_size > MAX_OTHER and not name.endswith(_LARGE):
            raise RefusedFile(f"{name} is larger than {MAX_OTHER:,} bytes.")
        yield name


def _check_file(folder: Path, entry: str) -> None:
    if entry == "adapter_config.json":
        raise RefusedFile(
            "the folder holds an adapter (adapter_config.json), which names a base model of its "
            "own. Merge the two, and give the folder of the result."
        )
    if entry.endswith(".index.json"):
        _shards(folder / entry)
    elif entry == "special_tokens_map.json":
        for key in json_object(folder / entry):
            # Whatever stands here goes to the tokenizer, before the settings of its own file.
            if not key.endswith(("_token", "_tokens")):
                raise RefusedFile(f"{entry}: {key} is not a special token; remove it.")
    elif entry == "tokenizer_config.json":
        _check_settings(folder, entry, tokenizer=True)
    elif entry in ("config.json", "generation_config.json") or _VERSIONED.fullmatch(entry):
        _check_settings(folder, entry, tokenizer=False)


def _check_settings(folder: Path, entry: str, *, tokenizer: bool) -> None:
    if entry.startswith("tokenizer."):
        return  # a vocabulary; it has no settings that name anything
    for place, key, value in _walk(json_object(folder / entry)):
        fault = _fault(key, value) or (_tokenizer_fault(key, value) if tokenizer else "")
        if fault:
            raise RefusedFile(f"{entry}: {place} {fault}")


def _fault(key: str, value: Any) -> str:
    """What is wrong with a setting, or nothing."""
    if value is None:
        return ""
    if key.endswith("_implementation_internal"):
        return "is a private setting that selects code; remove it."
    if key.endswith("_implementation"):
        chosen = list(value.values()) if isinstance(value, dict) else [value]
        if any(one not in _OWN_CODE for one in chosen):
            return (
                f"selects code: {', '.join(map(str, _OWN_CODE[1:]))} are read, not {value!r:.80}."
            )
    if key in _SELECT_CODE and value:
        return "selects code; remove it."
    if key == "transformers_weights" and not _is_safetensors(value, ".index.json"):
        return f"must be the plain name of a safetensors file, got {value!r:.80}."
    if key in ("configuration_files", "fast_tokenizer_files"):
        names = value if isinstance(value, list) else [value]
        if not all(_VERSIONED.fullmatch(str(one)) for one in names):
            return f"must be plain names such as config.5.0.0.json, got {value!r:.80}."
    if key == "quant_method" and value not in _PACKED:
        return (
            f"is {value!r:.80}, which is not supported; the supported quantized weights are those "
            f"of {', '.join(_PACKED)}."
        )
    if key == "tokenizer_class" and not _TOKENIZER_CLASS.fullmatch(str(value)):
        return f"must be a tokenizer, got {value!r:.80}."
    return ""


def _tokenizer_fault(key: str, value: Any) -> str:
    """What is wrong with a setting of a tokenizer, or nothing."""
    if value is None:
        return ""
    if (key in _SELECT_FILES and value) or (key in ("vocab", "merges") and isinstance(value, str)):
        return "selects a file; remove it."
    if key.endswith("_kwargs") and any(isinstance(inner, str) for *_, inner in _walk(value)):
        return "may not contain texts, which a tokenizer can take for file names; remove it."
    names_file = re.search(r"_(file|path|dir|folder)$", key) and key not in _UNREAD
    if names_file and str(value) not in TOKENIZER_FILES:
        return f"must be the plain name of a tokenizer's file, got {value!r:.80}."
    return ""


def _walk(value: Any, place: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every key at any depth: where it stands, the key, its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{key}" if place else key
            yield here, key, inner
            if key != "auto_map":  # names code that nobody is asked to run
                yield from _walk(inner, here)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{place}[{index}]")


def _shards(path: Path) -> list[str]:
    """The files that an index of weights names."""
    parts = json_object(path).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise RefusedFile(f"{path.name} has no weight_map.")
    for part in parts.values():
        if not _is_safetensors(part):
            raise RefusedFile(
                f"{path.name} must name safetensors files in the folder, got {part!r:.80}."
            )
    return sorted(set(parts.values()))


def _is_safetensors(name: Any, more: str = "") -> bool:
    return _SAFETENSORS.fullmatch(str(name).removesuffix(more)) is not None


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object, read strictly but for Infinity, which stands in published settings."""
    try:
        if path.stat().st_size > MAX_SETTINGS:
            raise RefusedFile(f"{path.name} is larger than {MAX_SETTINGS:,} bytes.")
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text, object_pairs_hook=_no_duplicates)
        _check_depth(value)
    except RefusedFile:
        raise
    except OSError as error:
        raise RefusedFile(f"{path.name} cannot be read ({error.strerror}).") from error
    except RecursionError as error:
        raise RefusedFile(f"{path.name} is nested deeper than {MAX_DEPTH} levels.") from error
    except ValueError as error:
        raise RefusedFile(f"{path.name} is no strict JSON ({str(error)[:100]}).") from error
    if not isinstance(value, dict):
        raise RefusedFile(f"{path.name} holds no JSON object.")
    return value


def _check_depth(value: Any, depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, depth + 1)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found
