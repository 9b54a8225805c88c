"""The frozen base: a causal language model and its tokenizer, by name, folder or hub id.

Its weights are safetensors, or a GGUF file that is unpacked; they may be held in few bits, and a
LoRA adapter may be merged into them first. Device and dtype are chosen here.
"""

import copy
import re
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from gradroute.config.run_config import RunConfig
from gradroute.data.batches import padding_id
from gradroute.errors import ConfigError, MachineError, NumericError
from gradroute.models.files import (
    check_can_read,
    hub_snapshot,
    identity_of,
    read_model,
    read_tokenizer,
    show_logs_as_text,
)
from gradroute.models.initial_adapters import merge_start_adapter
from gradroute.models.sizes import positions_of
from gradroute.system.launcher import local_rank
from gradroute.untrusted.model_folder import check_model_folder, named_weights

EMBEDDED = "embedded"
NEEDED = {"torch": (2, 13), "transformers": (5, 23), "safetensors": (0, 8)}
"""The oldest releases that have what is used here and read untrusted files safely."""

_preloaded: dict[str, "tuple[Base, list[float]]"] = {}  # by the name in a config


@dataclass(frozen=True)
class Base:
    """A base model ready to be adapted.

    Attributes:
        model: the causal LM in evaluation mode on its device, all parameters frozen.
        tokenizer: its tokenizer.
        identity: what tells two bases apart: the hub revision, or of a local folder the sha256 of
            its weights, settings and tokenizer; and that of an adapter that was merged into it.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    identity: str

    def __str__(self) -> str:
        """Its size, how its weights are held, and where, such as `135M parameters, ...`."""
        model = self.model
        count = _short_count(model.num_parameters())
        held = str(model.dtype).removeprefix("torch.")
        if bits := packed_bits(model):
            held = f"{bits}, computed in {held},"
        return f"{count} parameters, {held} on {model.device}"

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding matrix: token ids must be below."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.shape[0]

    @property
    def positions(self) -> int | None:
        """Tokens that a row may have; None where nothing limits it."""
        return positions_of(self.model)

    @property
    def pad_id(self) -> int:
        """The token that fills short rows; always masked."""
        return padding_id(self.tokenizer, self.vocabulary)


def embedded_model() -> str:
    """The folder of the small story model that ships with gradroute, in Hugging Face format."""
    return str(files("gradroute") / "assets" / "base")


def choose_device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """A CUDA device with bfloat16 where there is one, else the processor with float32.

    It is the first device; of several processes on a machine each takes its own.
    """
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported()
        return torch.device("cuda", local_rank()), torch.bfloat16 if bf16 else torch.float32
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
    if path.is_file():
        hint = f", and gguf_file={path.name}" if path.suffix == ".gguf" else ""
        raise ConfigError(
            f"model: '{name}' is a file. Give the folder that contains it, "
            f"model={path.parent}{hint}."
        )
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_a_path:
        raise ConfigError(
            f"model: there is no folder '{name}'. Give a folder in Hugging Face format, a hub id "
            f"such as 'google/gemma-3-1b-it', or '{EMBEDDED}'."
        )
    return name


def load_base(
    name: str,
    *,
    gguf_file: str | None = None,
    quantize: str = "none",
    start_adapter: str | None = None,
    on_cpu: bool = False,
) -> Base:
    """Load and freeze the base model that a config names.

    Its folder is checked as untrusted first (see `gradroute.untrusted.model_folder`). Nothing
    in it is executed, and weights are read as safetensors or GGUF only. Of a hub model the files
    at the top of the repository are fetched, and what is loaded is that snapshot.

    Args:
        name: "embedded", a local folder in Hugging Face format, or a hub id.
        gguf_file: A GGUF file in that folder or repository; its weights are unpacked.
        quantize: "8bit" or "4bit" to hold the weights so (bitsandbytes), or "none".
        start_adapter: Folder of a LoRA adapter to merge into the weights, see
            `merge_start_adapter`.
        on_cpu: Leave it on the CPU, in the dtype that it has on the device.

    Raises:
        ConfigError: a folder that is not there, is refused or holds no whole model; an adapter
            that does not fit, or that would have to be merged into weights of few bits.
        MachineError: a hub model that is gated, unknown or out of reach; a library that is too
            old, or missing; a device that cannot do it.
        NumericError: a weight of the model or the adapter is not finite.
    """
    if name in _preloaded and not (gguf_file or start_adapter or on_cpu) and quantize == "none":
        base, sums = _preloaded[name]
        if _sums(base.model) == sums:
            return _with_own_modules(base)
    check_versions()
    device, dtype = choose_device_and_dtype()
    device = torch.device("cpu") if on_cpu else device
    check_can_read(gguf_file, quantize, device)
    source = model_source(name)
    transformers_logging.disable_progress_bar()
    show_logs_as_text()
    folder = Path(source) if Path(source).is_dir() else hub_snapshot(name, gguf_file)
    check_model_folder(folder, name, gguf_file)
    model, tokenizer = read_model(
        folder, name, gguf_file=gguf_file, quantize=quantize, device=device, dtype=dtype
    )
    model.requires_grad_(False)
    if not packed_bits(model):
        torch.nn.Module.to(model, device)
    _check_finite(model, name)
    if folder != Path(source):
        identity = f"hub revision {folder.name}" + (f", {gguf_file}" if gguf_file else "")
    else:
        identity = identity_of(folder, gguf_file)
    if start_adapter is not None:
        _check_can_merge(model, start_adapter)
        identity += f", adapter {merge_start_adapter(model, start_adapter)}"
    return Base(model.eval(), tokenizer, identity)


def _check_can_merge(model: PreTrainedModel, start_adapter: str) -> None:
    if bits := packed_bits(model):
        raise ConfigError(
            f"start_adapter: {start_adapter} cannot be merged into a base in {bits}, whose "
            "weights would be rounded again. Use quantize=none, or merge the two once, save "
            "the result as safetensors and give that as model."
        )


def preload_base(name: str) -> None:
    """Load a plain base that `load_base` then hands out, its weights shared by whoever gets it.

    For a process that others are forked from: they share the memory too, as long as nobody writes.

    Raises:
        GradrouteError: As for `load_base`.
    """
    base = load_base(name)
    _preloaded[name] = base, _sums(base.model)


def _sums(model: PreTrainedModel) -> list[float]:
    """A number for each weight, which tells whether somebody has changed it."""
    return [float(weight.sum(dtype=torch.float64)) for weight in model.parameters()]


def _with_own_modules(base: Base) -> Base:
    """The base with modules that adapters can be put on, and the same weights."""
    tensors = (*base.model.parameters(), *base.model.buffers())
    return replace(base, model=copy.deepcopy(base.model, {id(own): own for own in tensors}))


def load_base_of(config: RunConfig, *, on_cpu: bool = False) -> Base:
    """The base that a config names, with everything that it says about it; see `load_base`."""
    return load_base(
        config.model,
        gguf_file=config.gguf_file,
        quantize=config.quantize,
        start_adapter=config.start_adapter,
        on_cpu=on_cpu,
    )


def load_tokenizer(name: str, gguf_file: str | None = None) -> Tokenizer:
    """Load the tokenizer of a base model alone; its weights are neither read nor fetched.

    Args:
        name: As for `load_base`.
        gguf_file: As for `load_base`; it holds the tokenizer, and is fetched for it.

    Raises:
        ConfigError: a folder that is not there, is refused or holds no tokenizer.
        MachineError: a hub model that is gated, unknown or out of reach; a library that is missing.
    """
    check_can_read(gguf_file, "none", torch.device("cpu"))
    source = model_source(name)
    transformers_logging.disable_progress_bar()
    show_logs_as_text()
    folder = Path(source) if Path(source).is_dir() else hub_snapshot(name, gguf_file, weights=False)
    if gguf_file is None:
        named_weights(folder, name)  # checks every file of settings as untrusted
    else:
        check_model_folder(folder, name, gguf_file)
    return read_tokenizer(folder, name, gguf_file)


def packed_bits(model: PreTrainedModel) -> str:
    """How few bits a model's weights are held in, `8 bits` or `4 bits`; nothing for plain ones."""
    packed = getattr(model.config, "quantization_config", None)
    if packed is None:
        return ""
    return "4 bits" if getattr(packed, "load_in_4bit", False) else "8 bits"


def _short_count(count: int) -> str:
    """A number of parameters as it is usually written: 2.2M, 135M, 7.2B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


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


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that no loss can come from; one pass over them, at the speed of memory."""
    for key, weight in model.named_parameters():
        # A sum is finite only if all its terms are; the other way round it may overflow.
        if not weight.sum(dtype=torch.float32).isfinite() and not weight.isfinite().all():
            count = int((~weight.isfinite()).sum())
            raise NumericError(
                f"model {name}: {count} numbers of its weight {key} are not finite. Its files are "
                f"damaged, or it was saved in a dtype that its numbers overflow."
            )
