"""A LoRA adapter in a folder of PEFT, checked as untrusted, then read.

adapter_config.json        rank, alpha; everything that plain LoRA has not is refused by name
adapter_model.safetensors  A and B of every module, and nothing else
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gradroute.errors import ConfigError, NumericError
from gradroute.routing.plain_lora import CHANGE_THE_BASE
from gradroute.system.files import sha256_of
from gradroute.system.terminal import printable
from gradroute.untrusted.model_folder import RefusedFile, check_files, json_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")
# Settings of PEFT that make an adapter more than a product of A and B, or change its base.
_MORE_THAN_LORA = {
    "use_dora": "a DoRA magnitude",
    "lora_bias": "a bias in the adapter (lora_bias)",
    "modules_to_save": "whole modules trained beside the adapter (modules_to_save)",
    "trainable_token_indices": "trained rows of the embedding (trainable_token_indices)",
    "layer_replication": "repeated layers (layer_replication)",
    "target_parameters": "adapters on bare parameters (target_parameters)",
    "rank_pattern": "a rank of its own for some modules (rank_pattern)",
    "alpha_pattern": "an alpha of its own for some modules (alpha_pattern)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors (use_bdlora)",
    "alora_invocation_tokens": "activation by tokens (alora_invocation_tokens)",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter as it was saved.

    Attributes:
        rank: of every module.
        scaling: factor on its output, alpha / rank or (rsLoRA) alpha / sqrt(rank).
        tensors: A [rank, inputs] and B [outputs, rank] under the names that PEFT gives them,
            `base_model.model.<module>.lora_A.weight`.
        identity: sha256 of its two files.
    """

    rank: int
    scaling: float
    tensors: Mapping[str, Tensor]
    identity: str

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Module -> (A, B)."""
        down, up = _PARTS
        names = [key.removesuffix(down) for key in self.tensors if key.endswith(down)]
        return {
            name.removeprefix(_PREFIX): (self.tensors[name + down], self.tensors[name + up])
            for name in names
        }


def read_adapter(place: str, key: str) -> AdapterFile:
    """Read an adapter from a folder that may be untrusted; nothing in it is executed.

    Args:
        place: The folder.
        key: The setting that names it, for messages.

    Raises:
        ConfigError: There is no such folder, it holds no plain LoRA adapter, or its tensors do not
            fit each other.
        NumericError: A weight is not finite.
    """
    told = f"{key}: {place}"
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{told}: there is no such folder. Give the folder of a LoRA adapter, with {CONFIG} "
            f"and {WEIGHTS} in it."
        )
    folder = folder.resolve()
    try:
        rank, scaling = _check_config(folder)
        tensors = load_file(folder / WEIGHTS)
        _check_tensors(tensors, rank)
    except RefusedFile as refused:
        raise ConfigError(f"{told}: {printable(str(refused))}") from refused
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{told}: {WEIGHTS} cannot be read ({error}).") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NumericError(f"{told}: numbers of its {printable(name)} are not finite.")
    return AdapterFile(rank, scaling, tensors, _identity(folder))


def _check_config(folder: Path) -> tuple[int, float]:
    """Rank and scaling of a folder that holds a plain LoRA adapter."""
    names = set(check_files(folder))
    if CONFIG not in names:
        raise RefusedFile(f"the folder holds no LoRA adapter: it has no {CONFIG}.")
    if WEIGHTS not in names:
        raise RefusedFile(
            f"the folder has no {WEIGHTS}. Weights in pickle files (adapter_model.bin) are never "
            "read; save the adapter again as safetensors."
        )
    settings = json_object(folder / CONFIG)
    if settings.get("peft_type") != "LORA":
        raise RefusedFile(
            f"the adapter is of the kind {settings.get('peft_type')!r:.40}; only LoRA is read."
        )
    if fault := _fault(settings):
        raise RefusedFile(
            f"the adapter has {fault}, which A and B do not include. Only plain LoRA is read."
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha", 0)
    if type(rank) is not int or rank < 1 or not _is_positive(alpha):
        raise RefusedFile(f"{CONFIG} must have a rank r and a lora_alpha above 0.")
    divisor = rank**0.5 if settings.get("use_rslora") else rank
    return rank, alpha / divisor


def _fault(settings: Mapping[str, Any]) -> str:
    """What an adapter has besides A and B, or nothing."""
    for setting, what in _MORE_THAN_LORA.items():
        if settings.get(setting):
            return what
    if (bias := settings.get("bias", "none")) != "none":
        return f"trained biases of the base (bias: {bias!r:.40})"
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGE_THE_BASE):
        return f"a base of its own (init_lora_weights: {begun!r:.40})"
    return ""


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < float("inf")


def _check_tensors(tensors: Mapping[str, Tensor], rank: int) -> None:
    unknown = [k for k in tensors if not (k.startswith(_PREFIX) and k.endswith(_PARTS))]
    if unknown:
        raise RefusedFile(
            f"{len(unknown)} of its tensors are not an A or B of a LoRA adapter, such as "
            f"{unknown[0]}."
        )
    if not tensors:
        raise RefusedFile(f"{WEIGHTS} holds no tensors.")
    for key, tensor in tensors.items():
        side = _PARTS.index(next(part for part in _PARTS if key.endswith(part)))
        other = key.removesuffix(_PARTS[side]) + _PARTS[1 - side]
        if other not in tensors:
            raise RefusedFile(f"it has {key} without {other}.")
        if tensor.dim() != 2 or not tensor.is_floating_point() or tensor.shape[side] != rank:
            raise RefusedFile(
                f"{key} is {list(tensor.shape)} ({tensor.dtype}), and the rank of its {CONFIG} is "
                f"{rank}."
            )


def _identity(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(bytes.fromhex(sha256_of(folder / name)))
    return f"sha256 {digest.hexdigest()}"
