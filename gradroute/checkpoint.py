"""A checkpoint is one self-describing folder, complete or not there at all.

    step-000350/  good/{adapter_config.json, adapter_model.safetensors}   PEFT's own format
                  bad/…
                  optimizer.safetensors · state.json · config.yaml · policy.json · manifest.json

It is written to a temporary folder, made durable and renamed. `manifest.json` holds the sha256 of
every other file and is written last: a folder without a manifest, or whose files differ from it,
is no checkpoint. Weights and moments are safetensors, all else is JSON or YAML; no pickle.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradroute.errors import MachineError
from gradroute.files import sync
from gradroute.routing.adapters import adapter_state, load_adapter_state

FORMAT = 1
KEPT = 2
"""How many checkpoints of a run are kept: the newest, and one to fall back on."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and the number of optimizer steps it stands for."""

    path: Path
    step: int

    @property
    def identity(self) -> str:
        """A hash of everything that it holds: two checkpoints with the same one are the same."""
        return _sha256(self.path / "manifest.json")


def save_checkpoint(
    folder: Path,
    step: int,
    model: PeftModel,
    optimizer_state: Mapping[str, Tensor],
    *,
    config_text: str,
    policy: Mapping[str, Any],
) -> Checkpoint:
    """Write `folder/step-<step>` atomically; an existing checkpoint of this step is replaced.

    Of the older ones all but the newest are removed afterwards (`KEPT`).

    Args:
        folder: the run's checkpoint folder; made if missing.
        step: optimizer steps done.
        model: the routed model whose adapters are saved, each in a folder of its own.
        optimizer_state: flat name -> tensor, see `gradroute.train.step.optimizer_tensors`.
        config_text: the resolved config as YAML.
        policy: the routing table as plain data.

    Raises:
        MachineError: the disk refuses; older checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".tmp-*"):
            shutil.rmtree(stale)
        temporary.mkdir()
        for adapter in model.peft_config:
            _write_adapter(temporary / adapter, model, adapter)
        save_file(_contiguous(optimizer_state), temporary / "optimizer.safetensors")
        _write_json(temporary / "state.json", {"step": step})
        _write_json(temporary / "policy.json", policy)
        (temporary / "config.yaml").write_text(config_text, encoding="utf-8")
        manifest = {"format": FORMAT, "step": step, "sha256": _digests(temporary)}
        _write_json(temporary / "manifest.json", manifest)
        _sync_tree(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync(folder)
        for old in _written(folder)[KEPT:]:
            shutil.rmtree(old.path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MachineError(
            f"cannot write checkpoint {final}: {error}. Earlier checkpoints are untouched; free "
            "the disk and run the same command again."
        ) from error
    return Checkpoint(final, step)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files match its manifest; None where none was ever written.

    A damaged one is passed over with a warning and the next older one is taken.

    Raises:
        MachineError: checkpoints are there and every one of them is damaged.
    """
    found = _written(folder)
    for candidate in found:
        trouble = _damage(candidate.path)
        if trouble is None:
            return candidate
        warnings.warn(f"checkpoint {candidate.path} is passed over: {trouble}", stacklevel=2)
    if found:
        raise MachineError(
            f"every checkpoint under {folder} is damaged. Restore one from a copy, or start anew "
            "with --if-exists new."
        )
    return None


def _written(folder: Path) -> list[Checkpoint]:
    """Folders named as checkpoints are, newest first, verified or not."""
    named = [(path, re.fullmatch(r"step-(\d+)", path.name)) for path in folder.glob("step-*")]
    found = [Checkpoint(path, int(match[1])) for path, match in named if match]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def load_adapters(checkpoint: Checkpoint, model: PeftModel) -> None:
    """Read every adapter of `model` from a verified checkpoint, in place.

    Raises:
        MachineError: an adapter is missing.
        ConfigError: its tensors do not fit the model.
    """
    for adapter in model.peft_config:
        load_adapter_state(model, adapter, adapter_tensors(checkpoint, adapter))


def adapter_tensors(checkpoint: Checkpoint, adapter: str) -> dict[str, Tensor]:
    """The weights of one adapter of a verified checkpoint, under the names that PEFT gives them.

    Raises:
        MachineError: the adapter is missing.
    """
    weights = checkpoint.path / adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise MachineError(f"checkpoint {checkpoint.path} holds no adapter '{adapter}'.")
    return load_file(weights)


def load_optimizer_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The optimizer's moments and step counts of a verified checkpoint, by name."""
    return load_file(checkpoint.path / "optimizer.safetensors")


def _write_adapter(folder: Path, model: PeftModel, adapter: str) -> None:
    folder.mkdir()
    save_file(_contiguous(adapter_state(model, adapter)), folder / "adapter_model.safetensors")
    described = model.peft_config[adapter].to_dict()
    # The base is named by the run's config; a path of this machine has no place in the file.
    described["base_model_name_or_path"] = None
    described["inference_mode"] = True
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in described.items()}
    _write_json(folder / "adapter_config.json", plain)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damage(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        expected = dict(manifest["sha256"])
        found = {k: v for k, v in _digests(folder).items() if k != "manifest.json"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})."
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing."
        if name not in expected:
            return f"{name} does not belong to it."
        if expected[name] != found[name]:
            return f"{name} differs from the manifest."
    return None


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
