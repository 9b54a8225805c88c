"""Checkpoints: self-describing folders, complete or absent.

    step-000350/  good/{adapter_config.json, adapter_model.safetensors}   PEFT's own format
                  bad/…
                  optimizer.safetensors · state.json · config.yaml · policy.json · manifest.json

It is written to a temporary folder, made durable and renamed; older ones go when it has been read
back. `manifest.json` holds the sha256 of every other file and is written last: a folder without a
manifest, or whose files differ from it, is no checkpoint. Weights and moments are safetensors and
finite, all else is JSON or YAML; no pickle.
"""

import errno
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradroute.errors import ConfigError, MachineError, NumericError
from gradroute.routing.adapters import adapter_state, load_adapter_state
from gradroute.system.files import (
    UNFINISHED,
    clear_unfinished,
    free_bytes,
    remove,
    replace_folder,
    sha256_of,
    sync,
    write_failure,
)

FORMAT = 1
KEPT = 2
"""How many checkpoints of a run are kept: the newest, and one to fall back on."""
LARGEST_MANIFEST = 1 << 20
"""Bytes of a manifest that are read; a whole one has some hundred."""

_STEP = re.compile(r"step-([0-9]{6,12})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and the number of optimizer steps it stands for."""

    path: Path
    step: int

    @property
    def identity(self) -> str:
        """A hash of everything that it holds: two checkpoints with the same one are the same."""
        return sha256_of(self.path / "manifest.json")

    @property
    def micro_batch(self) -> int | None:
        """Examples of a forward pass at that time; None where that is `train.batch_size`."""
        return _read_json(self.path / "state.json").get("micro_batch")

    @property
    def config(self) -> Path:
        """The configuration that it was trained under."""
        return self.path / "config.yaml"


def save_checkpoint(
    folder: Path,
    step: int,
    model: PeftModel,
    optimizer_state: Mapping[str, Tensor],
    *,
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    config_text: str,
    policy: Mapping[str, Any],
    micro_batch: int | None = None,
) -> Checkpoint:
    """Write `folder/step-<step>` atomically; an existing checkpoint of this step is replaced.

    Afterwards the older ones go, but for one that verifies (`KEPT`).

    Args:
        folder: the run's checkpoint folder; made if missing, but not the run's folder.
        step: optimizer steps done.
        model: the routed model whose adapters are saved, each in a folder of its own.
        optimizer_state: flat name -> tensor, see `gradroute.train.optimizer.optimizer_tensors`.
        weights: adapter -> its weights by name, where the caller has put them together; None reads
            them from the model.
        config_text: the resolved config as YAML.
        policy: the routing table as plain data.
        micro_batch: examples of a forward pass, where memory has made that fewer than
            `train.batch_size`.

    Raises:
        NumericError: a weight or moment is not finite; nothing is written.
        MachineError: the disk refuses or has too little room; older checkpoints are untouched.
    """
    final = folder / _name(step)
    temporary = folder / f"{UNFINISHED}{final.name}-{os.getpid()}"
    adapters = weights or {name: adapter_state(model, name) for name in model.peft_config}
    needed = _size(final, {**adapters, "optimizer": optimizer_state})
    try:
        _make_room(folder, needed)
        temporary.mkdir()
        for name, state in adapters.items():
            _write_adapter(temporary / name, model, name, state)
        save_file(_contiguous(optimizer_state), temporary / "optimizer.safetensors")
        _write_json(temporary / "state.json", {"step": step, "micro_batch": micro_batch})
        _write_json(temporary / "policy.json", policy)
        (temporary / "config.yaml").write_text(config_text, encoding="utf-8")
        manifest = {"format": FORMAT, "step": step, "sha256": _digests(temporary)}
        _write_json(temporary / "manifest.json", manifest)
        _sync_tree(temporary)
        replace_folder(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MachineError(
            f"checkpoint {write_failure(final, error, needed)}. Earlier ones are untouched; when "
            "the "
            "disk takes it, the same command goes on from the last of them."
        ) from error
    saved = Checkpoint(final, step)
    _check_reads_back(saved)
    _remove_older(folder, step)
    return saved


def _check_reads_back(saved: Checkpoint) -> None:
    if trouble := _damage(saved):
        raise MachineError(
            f"checkpoint {saved.path} does not read back as it was written: {trouble} Earlier "
            "checkpoints are untouched; look at the disk before the same command goes on from them."
        )


def _make_room(folder: Path, needed: int) -> None:
    """Make the folder if it is not there, and see that so many bytes can be written in it."""
    if not folder.is_dir():
        folder.mkdir()
        sync(folder.parent)
    clear_unfinished(folder)
    if (free := free_bytes(folder)) is not None and free < needed:
        raise OSError(errno.ENOSPC, "too little room")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files match its manifest; None where none was ever written.

    A damaged one is passed over with a warning and the next older one is taken.

    Raises:
        MachineError: checkpoints are there and every one of them is damaged.
    """
    found = _checkpoint_folders(folder)
    for candidate in found:
        trouble = _damage(candidate)
        if trouble is None:
            return candidate
        if not os.path.lexists(candidate.path):  # its writer had newer ones while it was read
            return latest_checkpoint(folder)
        warnings.warn(f"checkpoint {candidate.path} is skipped: {trouble}", stacklevel=2)
    if found:
        raise MachineError(
            f"every checkpoint under {folder} is damaged. Restore one from a copy, or start anew "
            "with --if-exists new."
        )
    return None


def load_adapters(checkpoint: Checkpoint, model: PeftModel) -> None:
    """Read every adapter of `model` from a verified checkpoint, in place.

    Raises:
        MachineError: an adapter is missing or unreadable.
        ConfigError: its tensors do not fit the model, or the model lacks an adapter of it.
        NumericError: a weight is not finite.
    """
    held = sorted(path.name for path in checkpoint.path.iterdir() if path.is_dir())
    if unknown := [name for name in held if name not in model.peft_config]:
        raise ConfigError(
            f"checkpoint {checkpoint.path} holds the adapters {', '.join(held)}; the model has no "
            f"adapter {', '.join(unknown)}. Give the config the adapters that it was trained with."
        )
    read = {name: adapter_tensors(checkpoint, name) for name in model.peft_config}
    for name, tensors in read.items():
        try:
            load_adapter_state(model, name, tensors)
        except ConfigError as error:
            raise ConfigError(f"checkpoint {checkpoint.path}: {error}") from error


def adapter_tensors(checkpoint: Checkpoint, adapter: str) -> dict[str, Tensor]:
    """The weights of one adapter of a verified checkpoint, under the names that PEFT gives them.

    Raises:
        MachineError: the adapter is missing or unreadable.
        NumericError: a weight is not finite.
    """
    weights = checkpoint.path / adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise MachineError(f"checkpoint {checkpoint.path} holds no adapter '{adapter}'.")
    return _load(weights)


def load_optimizer_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The optimizer's moments and step counts of a verified checkpoint, by name.

    Raises:
        MachineError: the file is unreadable.
        NumericError: a moment is not finite.
    """
    return _load(checkpoint.path / "optimizer.safetensors")


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MachineError(f"{path} cannot be read: {error}.") from error
    if name := _first_not_finite(tensors):
        raise NumericError(
            f"{path} holds numbers that are not finite, the first in {name}. It cannot be used; "
            f"remove {path.parent} to go on from an earlier checkpoint."
        )
    return tensors


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            return name
    return None


def _size(final: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes that a checkpoint needs on disk, generously.

    Those of its tensors, half a kilobyte for the name and shape of each, and 64 KiB for all else.

    Raises:
        NumericError: a tensor is not finite.
    """
    for part, tensors in parts.items():
        if name := _first_not_finite(tensors):
            raise NumericError(
                f"checkpoint {final} would hold numbers that are not finite: {part}, {name}. It is "
                "not written, and earlier ones are untouched. Lower the learning rate and start "
                "again with --if-exists new."
            )
    own = [t.numel() * t.element_size() + 512 for part in parts.values() for t in part.values()]
    return sum(own) + (64 << 10)


def _remove_older(folder: Path, step: int) -> None:
    """Remove the checkpoints before `step` but for the newest that verify, `KEPT` with its own.

    What cannot be removed is said; nothing depends on it.
    """
    good = 1
    for old in _checkpoint_folders(folder):
        if old.step >= step:
            continue
        if good < KEPT:
            good += _damage(old) is None
            continue
        rubbish = folder / f"{UNFINISHED}old-{old.path.name}"
        try:
            # Renamed first: a kill in between leaves what is seen to be rubbish.
            os.replace(old.path, rubbish)
            remove(rubbish)
        except OSError as error:
            warnings.warn(f"old checkpoint {old.path} cannot be removed: {error}", stacklevel=3)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _checkpoint_folders(folder: Path) -> list[Checkpoint]:
    """Whatever is named as checkpoints are, newest first, verified or not."""
    named = [(path, _STEP.fullmatch(path.name)) for path in folder.glob("step-*")]
    found = [Checkpoint(path, int(match[1])) for path, match in named if match]
    found = [one for one in found if one.path.name == _name(one.step)]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def _write_adapter(
    folder: Path, model: PeftModel, adapter: str, state: Mapping[str, Tensor]
) -> None:
    folder.mkdir()
    save_file(_contiguous(state), folder / "adapter_model.safetensors")
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


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON object; ValueError where the file holds anything else."""
    with path.open("rb") as file:
        content = file.read(LARGEST_MANIFEST + 1)
    if len(content) > LARGEST_MANIFEST:
        raise ValueError(f"{path.name} is larger than {LARGEST_MANIFEST} bytes")
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    return value


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in _files(folder)}


def _files(folder: Path, *, inner: bool = True) -> list[Path]:
    """The files of a folder and of the folders in it, in order of name.

    Raises:
        ValueError: there is anything else, which a checkpoint has not.
    """
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found.append(path)
        elif stat.S_ISDIR(mode) and inner and (own := _files(path, inner=False)):
            found += own
        else:
            raise ValueError(f"{path.name} is neither a file nor an adapter's folder")
    return found


def _damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint; None if its files are those that its manifest names."""
    folder = checkpoint.path
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return "it is no folder."
        # Before anything is read: what is no plain file may never end.
        found = _digests(folder)
        if found.pop("manifest.json", None) is None:
            return "it has no manifest.json."
        manifest = _read_json(folder / "manifest.json")
        expected = manifest.get("sha256")
        if manifest.get("format") != FORMAT:
            return f"its format is {manifest.get('format')!r:.40}; this version reads {FORMAT}."
        if not isinstance(expected, dict):
            return "its manifest names no files."
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                return f"{name} is missing."
            if name not in expected:
                return f"{name} does not belong to it."
            if expected[name] != found[name]:
                return f"{name} differs from the manifest."
        return _wrong_state(checkpoint.step, manifest, _read_json(folder / "state.json"))
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})."


def _wrong_state(step: int, manifest: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
    for said in (manifest.get("step"), state.get("step")):
        if said != step:
            return f"it is of step {said!r:.40}."
    size = state.get("micro_batch")
    if size is not None and (type(size) is not int or size < 1):
        return f"its micro_batch is {size!r:.40}."
    return None


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
