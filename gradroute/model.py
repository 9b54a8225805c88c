"""The frozen base: a causal language model and its tokenizer, by name, folder or hub id."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from gradroute.data.batches import padding_id
from gradroute.environment import hub_token, redacted, token_places
from gradroute.errors import ConfigError, MachineError

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Base:
    """A base model ready to be adapted.

    Attributes:
        model: the causal LM in evaluation mode on its device, all parameters frozen.
        tokenizer: its tokenizer.
        identity: what tells two bases apart: the sha256 of the local weights, or the hub revision.
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
        return padding_id(self.tokenizer)


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

    Nothing from the model's folder is executed (`trust_remote_code` is never true) and weights
    are read as safetensors only.

    Args:
        name: "embedded", a local folder in Hugging Face format, or a hub id.

    Raises:
        ConfigError: a folder that is not there or holds no model.
        MachineError: a hub model that is gated, unknown or out of reach.
    """
    source = model_source(name)
    device, dtype = choose_device_and_dtype()
    token = None if Path(source).is_dir() else hub_token()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, token=token, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source, token=token, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _unreadable(name, source, error) from error
    model.requires_grad_(False)
    torch.nn.Module.to(model, device)
    return Base(model.eval(), tokenizer, _identity(source, model))


def _identity(source: str, model: PreTrainedModel) -> str:
    folder = Path(source)
    if not folder.is_dir():
        return f"hub revision {model.config._commit_hash}"
    digest = hashlib.sha256()
    for weights in sorted(folder.glob("*.safetensors")):
        with weights.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"sha256 {digest.hexdigest()}"


def _unreadable(name: str, source: str, error: Exception) -> ConfigError | MachineError:
    first = redacted(str(error).strip().split("\n")[0])[:200]
    if Path(source).is_dir():
        return ConfigError(f"model {name}: the folder holds no usable causal LM ({first}).")
    found = "one was found" if hub_token() else "none was found"
    return MachineError(
        f"model {name} cannot be read from the hub ({first}). If it is gated, accept its terms at "
        f"https://huggingface.co/{name} and give a token; one was looked for in {token_places()}, "
        f"and {found}."
    )
