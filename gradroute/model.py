"""The frozen base: a causal language model and its tokenizer, by name, folder or hub id."""

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from gradroute.data.batches import padding_id
from gradroute.environment import hub_token, redacted, token_places
from gradroute.errors import ConfigError, GradrouteError, MachineError, NumericError
from gradroute.strangers import check_model_folder, named_weights
from gradroute.terminal import shown

EMBEDDED = "embedded"
NEEDED = {"torch": (2, 10), "transformers": (5, 3), "safetensors": (0, 8)}
"""The oldest releases that read files of strangers safely and write weights atomically."""

_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")  # of a model and its tokenizer


@dataclass(frozen=True)
class Base:
    """A base model ready to be adapted.

    Attributes:
        model: the causal LM in evaluation mode on its device, all parameters frozen.
        tokenizer: its tokenizer.
        identity: what tells two bases apart: the hub revision, or of a local folder the sha256 of
            its weights, settings and tokenizer.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    identity: str

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding matrix: token ids must be below."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.shape[0]

    @property
    def pad_id(self) -> int:
        """The token that fills short rows; always masked."""
        return padding_id(self.tokenizer, self.vocabulary)


def embedded_model() -> str:
    """The folder of the small story model that ships with gradroute, in Hugging Face format."""
    return str(files("gradroute") / "assets" / "base")


def choose_device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """The first CUDA device with bfloat16 where there is one, else the processor with float32."""
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported()
        return torch.device("cuda", 0), torch.bfloat16 if bf16 else torch.float32
    return torch.device("cpu"), torch.float32


def model_source(name: str) -> str:
    """Where `name` is read from: the shipped folder, an existing local folder, or a hub id.

    Raises:
        ConfigError: `name` reads like a path and there is no such folder.
    """
    if name == EMBEDDED:
        return embedded_model()
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_a_path:
        raise ConfigError(
            f"model: there is no folder '{name}'. Give a folder in Hugging Face format, a hub id "
            f"such as 'google/gemma-3-1b-it', or '{EMBEDDED}'."
        )
    return name


def load_base(name: str) -> Base:
    """Load and freeze the base model that a config names.

    Its folder is checked as a stranger's first (see `gradroute.strangers`). Nothing in it is
    executed, and weights are read as safetensors only. Of a hub model the files at the top of the
    repository are fetched, and what is loaded is that snapshot.

    Args:
        name: "embedded", a local folder in Hugging Face format, or a hub id.

    Raises:
        ConfigError: a folder that is not there, is refused or holds no whole model.
        MachineError: a hub model that is gated, unknown or out of reach; a library too old.
        NumericError: a weight of the model is not finite.
    """
    check_versions()
    source = model_source(name)
    transformers_logging.disable_progress_bar()
    _show_logs_as_text()
    folder = Path(source) if Path(source).is_dir() else _fetched(name)
    check_model_folder(folder, name)
    model, tokenizer = _read(folder, name)
    model.requires_grad_(False)
    device, _ = choose_device_and_dtype()
    torch.nn.Module.to(model, device)
    _check_finite(model, name)
    hub = folder != Path(source)
    identity = f"hub revision {folder.name}" if hub else _identity(folder)
    return Base(model.eval(), tokenizer, identity)


def check_versions() -> None:
    """See that the libraries that read and write weights are recent enough.

    Raises:
        MachineError: one is not; the message names both versions.
    """
    for package, needed in NEEDED.items():
        found = metadata.version(package)
        if tuple(int(part) for part in re.findall(r"[0-9]+", found)[:2]) < needed:
            least = ".".join(map(str, needed))
            raise MachineError(
                f"{package} {found} is installed, and {package} {least} or later is needed: "
                f"pip install '{package}>={least}'."
            )


def _read(folder: Path, name: str) -> tuple[PreTrainedModel, Tokenizer]:
    """The model and its tokenizer; whatever goes wrong inside is the fault of the folder's files.

    The model comes first: that it is a causal one is known before its tokenizer is looked at.
    """
    _, dtype = choose_device_and_dtype()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, facts = loaded
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first = redacted(str(error).strip().split("\n")[0])[:200]
        raise ConfigError(
            f"model {name}: the folder holds no usable causal LM ({first or type(error).__name__})."
        ) from error
    if missing := sorted(facts["missing_keys"]):
        raise ConfigError(
            f"model {name}: its files lack {len(missing)} of its weights, such as {missing[0]}; "
            "they would be random numbers. Give the whole model."
        )
    return model, tokenizer


def _fetched(name: str) -> Path:
    """The folder of a hub model's snapshot in the local cache, fetched where it is not there.

    Settings come first and are checked, then the weights that they name, of the same revision.
    """
    token = hub_token()
    small: list[str] = [*_SETTINGS]
    below = ["*/*"]
    try:
        settings = Path(
            snapshot_download(name, token=token, allow_patterns=small, ignore_patterns=below)
        )
        whole = snapshot_download(
            name,
            token=token,
            revision=settings.name,
            allow_patterns=[*small, *named_weights(settings, name)],
            ignore_patterns=below,
        )
    except GradrouteError:
        raise
    except Exception as error:  # of the hub, the network or the cache
        first = redacted(" ".join(str(error).split()))[:200]
        found = "one was found" if token else "none was found"
        raise MachineError(
            f"model {name} cannot be read from the hub ({first}). If it is gated, accept its terms "
            f"at https://huggingface.co/{name} and give a token; one was looked for in "
            f"{token_places()}, and {found}."
        ) from error
    return Path(whole)


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that no loss can come from; one pass over them, at the speed of memory."""
    for key, weight in model.named_parameters():
        # A sum is finite only if all its terms are; the other way round it may overflow.
        if not weight.sum(dtype=torch.float32).isfinite() and not weight.isfinite().all():
            count = int((~weight.isfinite()).sum())
            raise NumericError(
                f"model {name}: {count} numbers of its weight {key} are not finite. Its files are "
                "damaged, or it was not saved in a type that holds its numbers."
            )


def _identity(folder: Path) -> str:
    digest = hashlib.sha256()
    patterns = ("*.safetensors", *_SETTINGS)
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"sha256 {digest.hexdigest()}"


def _show_logs_as_text() -> None:
    """Names from a model's files reach the terminal in the logs of the library that reads them."""
    for handler in logging.getLogger("transformers").handlers:
        if _as_text not in handler.filters:
            handler.addFilter(_as_text)


def _as_text(record: logging.LogRecord) -> bool:
    if record.name.startswith("transformers"):
        record.msg, record.args = shown(record.getMessage()), ()
    return True
