"""What leaves a model's lower layers for whole batches, shared by the runs of a grid.

Runs of one seed train on the same batches in the same order, whatever their labels, and all runs of
a base are measured on the same held-out texts. What the layers below the adapters compute of such a
batch is kept on disk by the run that is first, as the model computed it: the same rows side by side
with the same padding. So a run that takes it computes the same bits as one that does not, which the
states of `hidden_state_cache`, one example at a time, are equal to but for rounding.

A run takes part where the folder `.states` is beside it or its folder (`begin_sharing`), on a CPU.
Nothing but its time depends on what is in there: what is missing, damaged or removed is computed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gradroute.config.run_config import RunConfig
from gradroute.config.sections import TrainConfig
from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError, MachineError
from gradroute.models.base import Base
from gradroute.models.hidden_state_cache import about_states, identity_of_base
from gradroute.routing.frozen_check import lower_layers, take_states_from
from gradroute.routing.frozen_layers import LowerLayers
from gradroute.runs.folder import RunFolder
from gradroute.runs.states import (
    ABOUT,
    FOLDER,
    FRESH,
    SUFFIX,
    prune,
    reading,
    say_other_states,
    write_quickly,
)
from gradroute.system.files import format_bytes, free_bytes, write_json
from gradroute.system.terminal import say

_AT_ONCE = 2**28  # bytes that room is made for at a time: others write there too
_INPUTS = ("input_ids", "attention_mask", "position_ids")


class SharedStates:
    """A source of states for `run_upper_layers`: from the disk, else computed and kept there.

    Args:
        place: The folder of all keys.
        lower: The layers below the adapters.
        about: What their states depend on besides the batch.
        limit: Bytes that the folder of all keys may take.
        tell: Says a line to the user.
    """

    def __init__(
        self,
        place: Path,
        lower: LowerLayers,
        about: Mapping[str, Any],
        limit: int,
        tell: Callable[[str], None],
    ):
        self.lower = lower
        self._about, self._limit, self._tell = {**about, "kind": "batches"}, limit, tell
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self._place, self.folder = place, place / key[:32]
        self._room = 0
        self._reads = self._writes = True
        self._compared = False
        say_other_states(self.folder, self._about, tell)

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Float[Tensor, "b t d"]:
        """What leaves the lower layers when the model is called with these inputs, bit for bit."""
        path = self.folder / f"{_name(inputs, model.training)}{SUFFIX}"
        kept = self._read(path) if self._reads else None
        if kept is not None and self._compared:
            return kept
        states = self.lower.states(model, inputs).detach()
        if kept is None:
            self._write(path, states)
            return states
        # Once: who can tell what a library does otherwise on another day?
        self._compared = True
        if not torch.equal(kept, states):
            self._reads = self._writes = False
            self._tell(
                f"hidden states in {self.folder} are other bits than this process computes; they "
                "are not used. Remove that folder."
            )
        return states

    def _read(self, path: Path) -> Float[Tensor, "b t d"] | None:
        """The states in a file; None where there is none, or it is damaged."""
        try:
            with reading(path) as file:
                if file is None:
                    return None
                found = load(file.read())
            states = found["states"]
            # A copy, for where memory begins may change how a product is rounded.
            states, whole = states.clone(), _digest(states) == bytes(found["sha256"].tolist())
            if whole and states.dtype == self.lower.dtype:
                return states
        except (SafetensorError, KeyError):
            pass
        except OSError as error:
            self._reads = False
            self._tell(f"{path} cannot be read ({error.strerror or error}); the run goes on.")
            return None
        self._tell(f"{path} is damaged; its states are computed again.")
        return None

    def _write(self, path: Path, states: Float[Tensor, "b t d"]) -> None:
        if not self._writes:
            return
        digest = torch.tensor(list(_digest(states)), dtype=torch.uint8)
        content = save({"states": states.contiguous(), "sha256": digest})
        if len(content) > self._room:
            self._make_room()
        if len(content) > self._room:
            self._stop_writing(f"{self._place} is full ({format_bytes(self._limit)})")
            return
        if not (self.folder / ABOUT).is_file():
            try:
                write_json(self.folder / ABOUT, self._about)
            except MachineError as error:
                self._stop_writing(str(error).rstrip("."))
                return
        if why := write_quickly(path, content):
            self._stop_writing(why)
            return
        self._room -= len(content)

    def _stop_writing(self, why: str) -> None:
        self._writes = False
        self._tell(f"hidden states are not kept for other runs any more: {why}.")

    def _make_room(self) -> None:
        """Make room, but not at the cost of what the other runs of a grid use now."""
        wanted = min(_AT_ONCE, self._limit)
        left = prune([self._place], self._limit - wanted, unused_for=FRESH).left
        self._room = min(wanted, self._limit - left)


def share_states(
    folder: RunFolder,
    config: RunConfig,
    base: Base,
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    *,
    examples: int | None = None,
) -> None:
    """Have a model take the states of its lower layers from what runs share, where they do.

    Nothing that is computed depends on it. It does nothing on a GPU, whose kernels may sum in
    another order each time, and under `train.reuse_frozen`, which has states of its own.

    Args:
        folder: The run.
        config: Of the run.
        base: Its base.
        model: The model, on its device.
        rows: Examples that will be run.
        examples: How many of them in all, padding and repetitions included; each once if None.
    """
    train = config.train
    # That of a recovery lies in the folder of its run.
    above = (one / FOLDER for one in folder.path.resolve().parents[:2])
    place = next((one for one in above if one.is_dir()), None)
    if place is None or (found := _sharable(model, rows, train, examples or len(rows))) is None:
        return

    def tell(text: str) -> None:
        say(f"{folder.name}: {text}")

    lower, size = found
    limit, free = int(train.reuse_gib * 2**30), free_bytes(place)
    if size > limit or (free is not None and 2 * size > free):
        tell(
            f"its hidden states are not shared with other runs: they take up to "
            f"{format_bytes(size)}; train.reuse_gib is {train.reuse_gib:g}"
            + ("." if free is None else f", and {format_bytes(free)} of the disk are free.")
        )
        return
    about = about_states(model, lower, identity_of_base(base, config.quantize))
    take_states_from(model, SharedStates(place, lower, about, limit, tell))


def shared_bytes(
    model: PeftModel, rows: Sequence[TokenizedExample], train: TrainConfig, examples: int
) -> int:
    """Bytes of the states that a run shares with others, at most; 0 where it shares none.

    Args:
        model: The model, on its device.
        rows: Examples that will be run.
        train: How.
        examples: How many of them in all, padding and repetitions included.
    """
    found = _sharable(model, rows, train, examples)
    size = 0 if found is None else found[1]
    return size if size <= train.reuse_gib * 2**30 else 0


def _sharable(
    model: PeftModel, rows: Sequence[TokenizedExample], train: TrainConfig, examples: int
) -> tuple[LowerLayers, int] | None:
    """The layers whose states can be shared, and the most that these take; None without such."""
    if train.reuse_frozen or not rows or not train.reuse_gib or model.device.type != "cpu":
        return None
    tokens = [row.input_ids for row in rows]
    try:
        lower = lower_layers(model, tokens)
    except ConfigError:  # nobody has asked for this model, so nothing is said
        return None
    return lower, examples * max(map(len, tokens)) * lower.width * lower.dtype.itemsize


def _name(inputs: Mapping[str, Any], training: bool) -> str:
    """The digest of all that the states of a batch depend on besides the model."""
    digest = hashlib.sha256(b"training" if training else b"")
    for key in _INPUTS:
        if (tensor := inputs.get(key)) is not None:
            digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _digest(states: Tensor) -> bytes:
    return hashlib.sha256(states.contiguous().view(torch.uint8).numpy().data).digest()
