"""The runs of a playground and their models; what they need is compared with what is free first.

Runs on one base share its weights, each in modules of its own, which its adapters change.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.behaviors import Behavior, get_behaviors
from gradroute.errors import MachineError
from gradroute.models.base import Base, choose_device_and_dtype, load_base_of, model_source
from gradroute.models.checkpoint import Checkpoint, load_adapters
from gradroute.models.files import hub_snapshot
from gradroute.models.trained import attach, finished_checkpoint
from gradroute.runs.folder import RunFolder, distinct_names
from gradroute.system.files import format_bytes
from gradroute.system.memory import available_bytes
from gradroute.untrusted.model_folder import named_weights

BESIDE = 1.2
"""What is needed for each byte of weights: keys, values and logits come on top."""
_BITS = {"4bit": 0.55, "8bit": 1.05}  # bytes of a weight, its scales included


@dataclass(frozen=True)
class Played:
    """A run with its model.

    Attributes:
        name: What the page calls it.
        folder: The run.
        config: Its configuration.
        step: Of the checkpoint.
        base: The base model and its tokenizer.
        model: The base with the run's adapters.
        behaviors: Label -> behavior.
    """

    name: str
    folder: RunFolder
    config: RunConfig
    step: int
    base: Base
    model: PeftModel
    behaviors: Mapping[str, Behavior]

    @property
    def adapters(self) -> tuple[str, ...]:
        """The run's adapters."""
        return tuple(self.config.adapters)


def load_runs(folders: Sequence[RunFolder]) -> dict[str, Played]:
    """Load runs, by name in their order.

    Raises:
        ConfigError: One run is named twice, or two runs of one name have one seed.
        MachineError: A run has no finished checkpoint, or there is too little memory.
        GradrouteError: Whatever else keeps a model from being loaded.
    """
    configs = [load_config(folder.config) for folder in folders]
    steps = [
        finished_checkpoint(folder, config.train.max_steps)
        for folder, config in zip(folders, configs, strict=True)
    ]
    names = distinct_names(folders, [config.seed for config in configs])
    by_base: dict[tuple[str, ...], list[int]] = {}
    for at, config in enumerate(configs):
        by_base.setdefault(_base_key(config), []).append(at)
    check_memory([configs[places[0]] for places in by_base.values()])
    found: dict[int, Played] = {}
    for places in by_base.values():
        base = load_base_of(configs[places[0]])
        bases = [base, *(_sharing(base) for _ in places[1:])]  # before adapters change the modules
        for at, own in zip(places, bases, strict=True):
            found[at] = _played(names[at], folders[at], configs[at], steps[at], own)
    return {names[at]: found[at] for at in range(len(folders))}


def check_memory(configs: Sequence[RunConfig]) -> None:
    """See that there is memory for a model of each base.

    Args:
        configs: One of each base.

    Raises:
        MachineError: There is too little by estimate.
    """
    device, _ = choose_device_and_dtype()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    sizes = [bytes_of_base(config) for config in configs]
    needed = int(BESIDE * sum(sizes))
    if free is not None and needed > free:
        told = ", ".join(
            f"{format_bytes(size)} for {config.model}"
            for size, config in zip(sizes, configs, strict=True)
        )
        where = "on the GPU" if device.type == "cuda" else "in memory"
        raise MachineError(
            f"about {format_bytes(needed)} are needed {where} ({told}, and a share for what is "
            f"computed), and {format_bytes(free)} are free. Open fewer runs of different bases, or "
            "free memory."
        )


def bytes_of_base(config: RunConfig) -> int:
    """About how many bytes the weights of a run's base take when they are loaded.

    Counted from the headers of its safetensors files; of a GGUF file its size, which is less.
    """
    source = model_source(config.model)
    local = Path(source).is_dir()
    folder = Path(source) if local else hub_snapshot(config.model, config.gguf_file)
    if config.gguf_file is not None:
        return (folder / config.gguf_file).stat().st_size
    _, dtype = choose_device_and_dtype()
    count = 0
    try:
        for name in named_weights(folder, config.model):
            with safe_open(folder / name, framework="pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):  # what loads it says what is wrong with it
        return 0
    return int(count * _BITS.get(config.quantize, dtype.itemsize))


def _base_key(config: RunConfig) -> tuple[str, ...]:
    """What decides which base a run stands on."""
    parts = (config.gguf_file, config.quantize, config.start_adapter)
    return (model_source(config.model), *map(str, parts))


def _sharing(base: Base) -> Base:
    """The same base in modules of its own, with the same tensors."""
    tensors = [*base.model.parameters(), *base.model.buffers()]
    model = copy.deepcopy(base.model, {id(tensor): tensor for tensor in tensors})
    return Base(model, base.tokenizer, base.identity)


def _played(
    name: str, folder: RunFolder, config: RunConfig, checkpoint: Checkpoint, base: Base
) -> Played:
    model = attach(base.model, config)
    load_adapters(checkpoint, model)
    behaviors = get_behaviors(config.behaviors)
    return Played(name, folder, config, checkpoint.step, base, model.eval(), behaviors)
