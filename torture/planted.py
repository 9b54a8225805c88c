"""Numbers that are not finite, and where they are put: what `nans` does to runs."""

import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gradroute.config.run_config import RunConfig
from gradroute.data.batches import TokenizedExample
from gradroute.routing.adapters import adapter_parameters
from torture.runs import Ground

STEPS = 8
MICRO_BATCHES = 2
VALUES = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass
class Fault:
    """What is done to a run, and what must come of it.

    Attributes:
        step: in which the run must stop; None where the first number that is not finite tells.
        words: that the error must say.
        settings: of the config, `key: value`.
        forward: called with the model before the forward pass of that step's micro-batch.
        micro: the micro-batch.
        moment: called with the model and the optimizer before it acts in the step `plant_at`.
        base: a base model instead of the usual one.
        signed: a file with a number that is not finite, put into the newest checkpoint.
    """

    kind: str
    step: int | None = None
    words: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    forward: Callable[[PeftModel], object] | None = None
    micro: int = 1
    moment: Callable[[PeftModel, torch.optim.Optimizer], object] | None = None
    plant_at: int = 0
    base: Path | None = None
    signed: tuple[str, float] | None = None


@dataclass
class Watch:
    """A run's numbers from outside: the first step with one that is not finite."""

    step: int = 1
    micro: int = 0
    first: int | None = None

    def look(self, tensors: Iterator[Tensor] | list[Tensor]) -> None:
        if self.first is None and not all(bool(t.isfinite().all()) for t in tensors):
            self.first = self.step


@dataclass(frozen=True)
class Clean:
    """A run without a fault: its config, its end, and which rows its steps have."""

    config: RunConfig
    finals: Mapping[str, str]
    rows: list[list[TokenizedExample]]


@contextmanager
def planted(fault: Fault) -> Iterator[Watch]:
    """Plant the fault in whatever model trains meanwhile, and watch its numbers."""
    watch = Watch()
    seen: list[PeftModel] = []

    def before(module: nn.Module, args: Any) -> None:
        if isinstance(module, PeftModel) and module.training:
            seen[:] = [module]
            watch.micro += 1
            if fault.forward and (watch.step, watch.micro) == (fault.step or 1, fault.micro):
                fault.forward(module)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, PeftModel) and module.training:
            watch.look([output.logits.detach()])

    def acts(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if fault.moment and watch.step == fault.plant_at:
            fault.moment(seen[0], optimizer)

    def acted(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        watch.look([p.detach() for own in adapter_parameters(seen[0]).values() for p in own])
        watch.step, watch.micro = watch.step + 1, 0

    handles = [
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after),
        register_optimizer_step_pre_hook(acts),
        register_optimizer_step_post_hook(acted),
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _put(tensor: Tensor, draw: random.Random, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[draw.randrange(tensor.numel())] = value


def _value(draw: random.Random) -> tuple[str, float]:
    return draw.choice(list(VALUES.items()))


def _before(
    draw: random.Random, kind: str, words: tuple[str, ...], plant: Callable[[PeftModel], object]
) -> Fault:
    """A fault that is planted before the forward pass of some micro-batch of some step."""
    step, micro = draw.randint(1, STEPS), draw.randint(1, MICRO_BATCHES)
    return Fault(kind, step=step, words=words, forward=plant, micro=micro)


def _weight(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    name, (said, value) = draw.choice(["good", "bad"]), _value(draw)

    def plant(model: PeftModel) -> None:
        _put(draw.choice(adapter_parameters(model)[name]), draw, value)

    return _before(draw, f"{said} in a weight", (f"'{name}'",), plant)


def _base_weight(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    said, value = _value(draw)

    def plant(model: PeftModel) -> None:
        parts = [n for n, _ in model.named_parameters() if ".layers." in n and "lora_" not in n]
        _put(model.get_parameter(draw.choice(parts)), draw, value)

    return _before(draw, f"{said} in a base weight", ("base",), plant)


def _gradient(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    name, (said, value) = draw.choice(["good", "bad"]), _value(draw)

    def plant(model: PeftModel) -> None:
        weight = draw.choice(adapter_parameters(model)[name])
        hook = weight.register_hook(lambda gradient: (hook.remove(), gradient * value)[1])

    return _before(draw, f"{said} in a gradient", (f"adapter '{name}'", "gradient"), plant)


def _moment(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    name, (said, value) = draw.choice(["good", "bad"]), _value(draw)
    fault = Fault(f"{said} in a moment", words=(f"'{name}'",))
    fault.plant_at = fault.step = draw.randint(2, STEPS)
    fault.moment = _moments(draw, name, "exp_avg", value)
    return fault


def _second_moment(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    """Infinity here makes the update 0, so that no weight tells: the next save must."""
    name, every = draw.choice(["good", "bad"]), clean.config.train.save_every
    fault = Fault("inf in a second moment", words=("optimizer", f".{name}."))
    fault.plant_at = draw.randint(2, STEPS)
    fault.step = min(STEPS, (fault.plant_at + every - 1) // every * every)
    fault.moment = _moments(draw, name, "exp_avg_sq", math.inf)
    return fault


def _moments(
    draw: random.Random, name: str, key: str, value: float
) -> Callable[[PeftModel, torch.optim.Optimizer], object]:
    def plant(model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
        weight = draw.choice(adapter_parameters(model)[name])
        _put(optimizer.state[weight][key], draw, value)

    return plant


def _row(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    """A token that one row alone has gets an embedding that overflows in the first layer."""
    counts = Counter(t for rows in clean.rows for row in rows for t in set(row.input_ids))
    choices = [
        (number, row.id, token)
        for number, rows in enumerate(clean.rows, start=1)
        for row in rows
        for token in row.input_ids[:-1]
        if counts[token] == 1
    ]
    step, name, token = draw.choice(choices)

    def plant(model: PeftModel) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = math.inf  # pyright: ignore

    fault = Fault("a row that overflows", step=step, words=(f"1 example ({name})",))
    fault.forward = plant
    return fault


def _settings(key: str, value: float, kind: str, word: str = "'NAME'") -> Callable[..., Fault]:
    def make(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
        name = draw.choice(["good", "bad"])
        words = (word.replace("NAME", name),)
        return Fault(kind, settings={key.replace("NAME", name): value}, words=words)

    return make


def _base_file(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    said, value = _value(draw)
    folder = ground.folder / f"base-{draw.randrange(10**9)}"
    shutil.copytree(ground.base, folder)
    tensors = load_file(folder / "model.safetensors")
    _put(tensors[draw.choice(sorted(tensors))], draw, value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Fault(f"{said} in the base's file", base=folder)


def _checkpoint_file(draw: random.Random, clean: Clean, ground: Ground) -> Fault:
    file = draw.choice(["good/adapter_model", "bad/adapter_model", "optimizer"])
    said, value = _value(draw)
    fault = Fault(f"{said} in a checkpoint's {file.split('/')[-1]}", words=("finite",))
    fault.signed = (f"{file}.safetensors", value)
    return fault


KINDS: Mapping[str, Callable[[random.Random, Clean, Ground], Fault]] = {
    "weight": _weight,
    "gradient": _gradient,
    "moment": _moment,
    "second moment": _second_moment,
    "row": _row,
    "base weight": _base_weight,
    "learning rate": _settings(
        "adapters.NAME.learning_rate", 1e38, "learning rate 1e38", "learning rate"
    ),
    "scale": _settings("adapters.NAME.alpha", 1e38, "scale 1e38"),
    "weight decay": _settings("adapters.NAME.weight_decay", 1e38, "weight decay 1e38"),
    "base file": _base_file,
    "checkpoint file": _checkpoint_file,
}
