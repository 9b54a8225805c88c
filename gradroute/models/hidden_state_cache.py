"""Hidden states of a model's lower layers for each example on disk, computed once and reused.

    runs/.states/<key>/  about.json · <sha256 of the file>.safetensors …

The states of an example are computed by itself, in a batch of one without padding. So they are a
function of its tokens and of the key alone, bit for bit: whoever computed them, in whatever order,
beside whatever else. The key is a digest of all that they depend on besides; `about.json` says what
that is. A file holds digests of tokens, never a text, but hidden states can be turned back into
most of a text: the folder is as confidential as the data.

Files are written whole or not at all and are never changed, so that several processes may read and
fill a folder at a time, and a killed one loses what it had not written. What a process has taken up
stays until it ends; of the other files those that were not used for longest make room, see
`gradroute.runs.states`.
"""

import hashlib
import io
import json
import platform
import weakref
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import transformers
from jaxtyping import Float
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from gradroute.config.sections import TrainConfig
from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError, MachineError
from gradroute.models.base import Base
from gradroute.routing.frozen_check import lower_layers
from gradroute.routing.frozen_layers import LowerLayers
from gradroute.runs.folder import RunFolder
from gradroute.runs.former_names import FORMER_VALUES
from gradroute.runs.provenance import processor
from gradroute.runs.states import (
    ABOUT,
    FOLDER,
    FRESH,
    SUFFIX,
    note_use,
    open_for_reading,
    prune,
    say_other_states,
)
from gradroute.system.files import (
    format_bytes,
    free_bytes,
    nearest_existing,
    sha256_of,
    write_bytes,
    write_json,
)
from gradroute.system.memory import with_smaller_batches
from gradroute.system.modules import evaluation_mode
from gradroute.system.terminal import say

_FORMAT = "1"
_FILE = 64 * 2**20  # bytes of states in a file; what a killed process has to compute again, at most
_BESIDE = 40  # bytes of an example besides its states: digest and length
_ADVICE = "Set train.reuse_frozen=false, lower data.max_length, or free memory."

Digest = bytes


class _Location(NamedTuple):
    """Where the states of an example are: positions [start, end) of a mapped file."""

    states: Float[Tensor, "_ d"]
    start: int
    end: int


class HiddenStateCache:
    """The states of examples under one key.

    Args:
        folder: Of all keys, such as `runs/.states`.
        model: The routed model; its adapters do not matter.
        base: What tells its base apart from others, how it is held included.
        rows: Token ids of some examples, which the model is tried on, see `lower_layers`.
        say: Where a line for the user goes.

    Raises:
        ConfigError: The model has no lower layers that can be run by themselves.
    """

    def __init__(
        self,
        folder: Path,
        model: PeftModel,
        base: Mapping[str, str],
        rows: Sequence[Sequence[int]],
        say: Callable[[str], None],
    ):
        self._model, self._say = model, say
        self._lower = lower_layers(model, rows)
        self._about = about_states(model, self._lower, base)
        text = json.dumps(self._about, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._held: dict[Digest, _Location] = {}
        self._taken: dict[str, io.BufferedReader] = {}  # open, so that nobody removes them
        weakref.finalize(self, _close_all, self._taken)

    def needed(self, rows: Sequence[Sequence[int]]) -> int:
        """Bytes that the states of these examples take, kept already or not."""
        return needed(self._lower, rows)

    def fill(self, rows: Sequence[Sequence[int]]) -> None:
        """Compute and keep what is not kept yet; whoever is stopped goes on after the last file.

        Args:
            rows: Token ids of the examples.

        Raises:
            MachineError: The disk refuses or has too little room, or memory runs out.
        """
        wanted = {_digest(row): row for row in rows}
        missing = self._missing(wanted)
        if not missing:
            return
        size = self.needed(list(missing.values()))
        self._check_room(size)
        self._say(
            f"the {len(self._lower.layers)} layers below the adapters are computed once for "
            f"{len(missing)} of {len(wanted)} examples: {format_bytes(size)} in {self.folder}."
        )
        say_other_states(self.folder, self._about, self._say)
        write_json(self.folder / ABOUT, self._about)
        with evaluation_mode(self._model), torch.no_grad():
            while missing:
                some = self._next(missing)
                self._write({digest: self._compute(row) for digest, row in some.items()})
                missing = self._missing(missing)  # others may have been at it too
                if not missing.keys().isdisjoint(some):
                    raise MachineError(
                        f"{self.folder}: a file of hidden states that was just written is missing, "
                        f"or reads back with other contents. Check the disk, or set "
                        "train.reuse_frozen=false."
                    )

    def of(self, rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "_ d"]]:
        """The states of examples that `fill` has kept, mapped from the disk."""
        found = [self._held[_digest(row)] for row in rows]
        return [held.states[held.start : held.end] for held in found]

    def _next(self, missing: Mapping[Digest, Sequence[int]]) -> dict[Digest, Sequence[int]]:
        """The examples of the next file."""
        some: dict[Digest, Sequence[int]] = {}
        size = 0
        for digest, row in missing.items():
            some[digest] = row
            size += self.needed([row])
            if size >= _FILE:
                break
        return some

    def _compute(self, row: Sequence[int]) -> Float[Tensor, "_ d"]:
        ids = torch.tensor([row], device=self._model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        states, _ = with_smaller_batches(
            lambda size: self._lower.states(self._model, inputs)[0].cpu(),
            1,
            lambda before, after: None,
            _ADVICE,
        )
        return states

    def _write(self, states: Mapping[Digest, Float[Tensor, "_ d"]]) -> None:
        digests = torch.frombuffer(bytearray(b"".join(states)), dtype=torch.uint8)
        lengths = torch.tensor([len(own) for own in states.values()])
        content = save(
            {
                "digests": digests.reshape(len(states), -1),
                "lengths": lengths,
                "states": torch.cat(list(states.values())),
            }
        )
        name = hashlib.sha256(content).hexdigest()
        write_bytes(self.folder / f"{name}{SUFFIX}", content)

    def _missing(self, wanted: Mapping[Digest, Sequence[int]]) -> dict[Digest, Sequence[int]]:
        """The examples among these that no file holds; files are looked at where they may."""
        missing = {digest: row for digest, row in wanted.items() if digest not in self._held}
        if missing:
            self._look(missing)
        return {digest: row for digest, row in missing.items() if digest not in self._held}

    def _look(self, missing: Collection[Digest]) -> None:
        """Take up the files that hold some of these examples; remove what is no good."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name not in self._taken:
                self._take_up(path, missing)

    def _take_up(self, path: Path, missing: Collection[Digest]) -> None:
        try:
            file = open_for_reading(path)
        except OSError as error:
            raise MachineError(f"{path} cannot be read: {error.strerror or error}.") from error
        if file is None:  # another process is removing it
            return
        found = _read(path, self._lower, missing)
        if found:
            self._taken[path.name] = file
            note_use(path)
            for digest, held in found.items():
                self._held.setdefault(digest, held)
            return
        file.close()
        if found is None:
            self._say(f"{path} is damaged; it is removed, and its states are computed again.")
            _discard(path)

    def _check_room(self, size: int) -> None:
        """Refuse before hours of work what the disk has no room for."""
        free = free_bytes(nearest_existing(self.folder))
        if free is not None and free < size:
            raise MachineError(
                f"{self.folder} needs {format_bytes(size)} for hidden states, and "
                f"{format_bytes(free)} are "
                "free. Make room, choose another folder with --runs, or set "
                "train.reuse_frozen=false."
            )


def open_state_cache(
    folder: RunFolder,
    settings: TrainConfig,
    base: Base,
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    *,
    quantize: str,
) -> HiddenStateCache | None:
    """The states of examples where `train.reuse_frozen` asks for them; all of them are kept then.

    Whether they are reused is a function of the config, the examples and the base alone: not of
    what is on the disk already, nor of the room that it has. A run that was stopped, or that finds
    another's states, computes the same bits.

    Args:
        folder: The run; its states are kept beside it.
        settings: Of its training.
        base: Its base.
        model: The routed model on its device.
        rows: All examples that will be asked for.
        quantize: How the base's weights are held, as the config says it.

    Returns:
        None where they are not asked for, where the model cannot be run from its middle, or where
        they would take more than `train.reuse_gib`; why is said.

    Raises:
        MachineError: The disk refuses or has too little room, or memory runs out.
    """
    if not settings.reuse_frozen or not rows:
        return None

    def tell(text: str) -> None:
        say(f"{folder.name}: {text}")

    place = folder.path.resolve().parent / FOLDER
    identity = identity_of_base(base, quantize)
    tokens = [row.input_ids for row in rows]
    try:
        kept = HiddenStateCache(place, model, identity, tokens, tell)
    except ConfigError as error:
        tell(f"train.reuse_frozen has no effect: {error}.")
        return None
    size = kept.needed(tokens)
    if size > settings.reuse_gib * 2**30:
        tell(
            f"train.reuse_frozen has no effect: the hidden states of {len(rows)} examples take "
            f"{size / 2**30:.2f} GiB, and train.reuse_gib is {settings.reuse_gib:g}."
        )
        return None
    kept.fill(tokens)
    prune([place], int(settings.reuse_gib * 2**30), unused_for=FRESH)
    return kept


def needed(lower: LowerLayers, rows: Sequence[Sequence[int]]) -> int:
    """Bytes that the states of these examples take on the disk; each counts once."""
    tokens = {_digest(row): len(row) for row in rows}
    return sum(tokens.values()) * lower.width * lower.dtype.itemsize + len(tokens) * _BESIDE


def identity_of_base(base: Base, quantize: str) -> dict[str, str]:
    """What tells a base apart from others, with how its weights are held, as the config says it.

    It has the former value of `quantize`, so that states computed before are found.
    """
    former = {current: value for value, current in FORMER_VALUES.items()}
    return {"identity": base.identity, "quantize": former.get(quantize, quantize)}


def about_states(model: PeftModel, lower: LowerLayers, base: Mapping[str, str]) -> dict[str, Any]:
    """All that states depend on besides tokens: the key of their folder."""
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    if model.device.type == "cuda":
        place = f"cuda, {torch.cuda.get_device_name(model.device)}"
    else:
        place = f"{model.device.type}, {platform.machine()} {processor()}"
        place += f", {torch.backends.cpu.get_cpu_capability()}"
    return {
        "format": _FORMAT,
        "base": dict(base),
        "model": type(inner).__name__,
        "attention": str(inner.config.get_text_config()._attn_implementation),
        "layers": len(lower.layers),
        "width": lower.width,
        "dtype": str(lower.dtype),
        "place": place,
        "threads": torch.get_num_threads(),  # a product may be summed in another order
        "precision": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _digest(row: Sequence[int]) -> Digest:
    return hashlib.sha256(array("q", row).tobytes()).digest()


def _read(
    path: Path, lower: LowerLayers, missing: Collection[Digest]
) -> dict[Digest, _Location] | None:
    """What a file holds, its states mapped; nothing if it has none of the examples.

    Its name is the digest of its content, which is looked at before anything of it is used.

    Returns:
        None if it is not as it was written.

    Raises:
        MachineError: It cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            digests, lengths = file.get_tensor("digests"), file.get_tensor("lengths")
            keys = [bytes(own) for own in digests.tolist()]
            if not any(key in missing for key in keys):
                return {}
            states = file.get_tensor("states")
        if sha256_of(path) != path.stem:
            return None
    except FileNotFoundError:  # another process saw that it is damaged
        return {}
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror or error}.") from error
    except safetensors.SafetensorError:
        return None
    ends: list[int] = lengths.cumsum(0).tolist()
    if states.shape != (ends[-1], lower.width) or len(keys) != len(ends):
        return None
    return {
        key: _Location(states, start, end)
        for key, start, end in zip(keys, [0, *ends[:-1]], ends, strict=True)
    }


def _close_all(files: Mapping[str, io.BufferedReader]) -> None:
    for file in files.values():
        file.close()


def _discard(path: Path) -> None:
    """Remove a file that another process may remove too.

    Raises:
        MachineError: The disk refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"{path} cannot be removed: {error.strerror or error}.") from error
