"""What a routed trainer saves beside transformers' files, and reads when it goes on.

    checkpoint-20/  good/ bad/ trainer_state.json optimizer.pt …      transformers' own
                    gradroute/step-000020/                            a checkpoint, see
                                                                      `models.checkpoint`

transformers resumes the first adapter alone, and leaves the others loaded, frozen and off. Adapters
and moments are therefore read from the checkpoint here, whose files are verified safetensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from gradroute.errors import MachineError
from gradroute.models.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_optimizer_tensors,
    save_checkpoint,
)
from gradroute.models.checkpoint import load_adapters as load_adapters
from gradroute.system.files import read_json, write_json
from gradroute.train.optimizer import load_optimizer_state, optimizer_tensors

_FOLDER = "gradroute"
_STATE = "state.json"


def write_routed(
    folder: Path,
    step: int,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    policy: Mapping[str, Any],
    state: Mapping[str, int],
) -> None:
    """Write adapters, moments and counters into a checkpoint folder of transformers."""
    place = folder / _FOLDER
    place.mkdir(exist_ok=True)
    save_checkpoint(
        place,
        step,
        model,
        optimizer_tensors(model, optimizer),
        config_text="",
        policy=policy,
    )
    write_json(place / _STATE, dict(state))


def saved_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint that `write_routed` wrote.

    Raises:
        MachineError: There is none, or it is damaged.
    """
    found = latest_checkpoint(folder / _FOLDER) if (folder / _FOLDER).is_dir() else None
    if found is None:
        raise MachineError(
            f"{folder} holds no routed adapters ({_FOLDER}/): it was not saved by a routed "
            "trainer. Start anew, or name a checkpoint that was."
        )
    return found


def load_moments(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Read the optimizer's moments; an adapter that has never stepped has none."""
    load_optimizer_state(model, optimizer, load_optimizer_tensors(saved_checkpoint(folder)))


def saved_state(folder: Path) -> dict[str, int]:
    """The counters that `write_routed` wrote."""
    return read_json(folder / _FOLDER / _STATE)
