"""A model's files: fetched from the hub, checked by `untrusted`, read, and identified by hash."""

import hashlib
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.errors import ConfigError, GradrouteError, MachineError
from gradroute.system.files import sha256_of
from gradroute.system.secrets import (
    hub_token,
    redact,
    token_places,
)
from gradroute.system.terminal import first_line, safe_text
from gradroute.untrusted.model_folder import check_gguf_name, named_weights

_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")  # of a model and its tokenizer


def check_can_read(gguf_file: str | None, quantize: str, device: torch.device) -> None:
    """See that what a config asks for can be read and held here, before anything is fetched."""
    if gguf_file is not None:
        check_gguf_name(gguf_file)
        if quantize != "none":
            raise ConfigError(
                f"gguf_file and quantize={quantize} do not go together: what is read from a GGUF "
                "file is unpacked to plain numbers. Use quantize=none."
            )
        check_extra("gguf", "gguf", "reads GGUF files")
        if find_spec("kernels") is not None:
            raise MachineError(
                "the package kernels is installed, with which transformers fetches code from the "
                "hub while it reads a GGUF file, and runs it. Uninstall it (pip uninstall "
                "kernels), or give the model as safetensors."
            )
    if quantize != "none":
        check_extra("bitsandbytes", "quant", f"holds a base in {quantize}")
        if device.type != "cuda":
            raise MachineError(
                f"quantize={quantize} needs a CUDA device, and this machine has none that torch "
                "sees. Use quantize=none."
            )


def check_extra(package: str, extra: str, does: str) -> None:
    """See that the package of an extra is installed.

    Args:
        package: Its name.
        extra: The extra that installs it.
        does: What it is needed for, which follows "which".

    Raises:
        MachineError: It is not.
    """
    if find_spec(package) is None:
        raise MachineError(
            f"the package {package}, which {does}, is not installed: "
            f"pip install 'gradroute[{extra}]'."
        )


def read_model(
    folder: Path,
    name: str,
    *,
    gguf_file: str | None,
    quantize: str,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, Tokenizer]:
    """The model and its tokenizer; whatever goes wrong inside is the fault of the folder's files.

    The model comes first: that it is a causal one is known before its tokenizer is looked at.
    """
    packed = _gguf_setting() if gguf_file else _quantization(quantize, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **({} if gguf_file is None else {"gguf_file": gguf_file}),
            **({} if packed is None else {"quantization_config": packed}),
            **({} if quantize == "none" else {"device_map": {"": device}}),
        )
        model, facts = loaded
        tokenizer = _tokenizer(folder, gguf_file)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _unusable(name, gguf_file, "causal LM", error) from error
    if missing := sorted(facts["missing_keys"]):
        raise ConfigError(
            f"model {name}: its files lack {len(missing)} of its weights, such as {missing[0]}; "
            "they would be random numbers. Give the whole model."
        )
    return model, tokenizer


def read_tokenizer(folder: Path, name: str, gguf_file: str | None) -> Tokenizer:
    """The tokenizer alone; whatever goes wrong inside is the fault of the folder's files."""
    try:
        return _tokenizer(folder, gguf_file)
    except MemoryError:
        raise
    except Exception as error:
        raise _unusable(name, gguf_file, "tokenizer", error) from error


def _tokenizer(folder: Path, gguf_file: str | None) -> Tokenizer:
    return AutoTokenizer.from_pretrained(
        str(folder),
        trust_remote_code=False,
        local_files_only=True,
        **({} if gguf_file is None else {"gguf_file": gguf_file}),
    )


def _unusable(name: str, gguf_file: str | None, what: str, error: Exception) -> ConfigError:
    first = first_line(error)
    if found := re.match(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", first):
        return ConfigError(
            f"model {name}: transformers has no {what} for a {found[1]}. Give a model that writes "
            "text from text alone; of one that also takes images or sound, its language model "
            "saved in a folder of its own."
        )
    where = f"{gguf_file} is" if gguf_file else "the folder holds"
    return ConfigError(f"model {name}: {where} no usable {what} ({first}).")


def _gguf_setting() -> Any:
    """The setting with which a GGUF file is unpacked to plain numbers.

    Without it transformers looks for code on the hub that computes with packed weights. Releases
    that lack the setting always unpack.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return None
    return GgufConfig(dequantize=True)


def _quantization(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantize == "none":
        return None
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def hub_snapshot(name: str, gguf_file: str | None, *, weights: bool = True) -> Path:
    """The folder of a hub model's snapshot in the local cache, fetched where it is not there.

    Settings come first and are checked, then the weights that they name, or the GGUF file, of the
    same revision. Without `weights` the settings alone, and a GGUF file, which holds them.
    """
    token = hub_token()
    small: list[str] = [*_SETTINGS]
    below = ["*/*"]
    try:
        settings = Path(
            snapshot_download(name, token=token, allow_patterns=small, ignore_patterns=below)
        )
        if not (weights or gguf_file):
            return settings
        files = [gguf_file] if gguf_file else named_weights(settings, name)
        whole = snapshot_download(
            name,
            token=token,
            revision=settings.name,
            allow_patterns=[*small, *files],
            ignore_patterns=below,
        )
    except GradrouteError:
        raise
    except Exception as error:  # of the hub, the network or the cache
        first = redact(" ".join(str(error).split()))[:200]
        found = "one was found" if token else "none was found"
        raise MachineError(
            f"model {name} cannot be read from the hub ({first}). If it is gated, accept its terms "
            f"at https://huggingface.co/{name} and give a token; one was looked for in "
            f"{token_places()}, and {found}."
        ) from error
    return Path(whole)


def identity_of(folder: Path, gguf_file: str | None) -> str:
    """Of a folder one hash over all that is read; of a GGUF file its own, and one for the rest."""
    if gguf_file is None:
        return f"sha256 {_digest(folder, '*.safetensors', *_SETTINGS)}"
    own = f"sha256 {sha256_of(folder / gguf_file)}"
    beside = any(path for pattern in _SETTINGS for path in folder.glob(pattern))
    return f"{own}, settings sha256 {_digest(folder, *_SETTINGS)}" if beside else own


def _digest(folder: Path, *patterns: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def show_logs_as_text() -> None:
    """Names from a model's files reach the terminal in the logs of the library that reads them."""
    for handler in logging.getLogger("transformers").handlers:
        if _as_text not in handler.filters:
            handler.addFilter(_as_text)


def _as_text(record: logging.LogRecord) -> bool:
    if record.name.startswith("transformers"):
        record.msg, record.args = safe_text(record.getMessage()), ()
    return True
