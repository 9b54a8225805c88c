"""Estimates of a run from its own first steps: memory, time and disk space.

The steps are real ones, on real batches and with the optimizer, in memory alone. What they do not
show is added by formula, and each figure says on what ground it stands.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from peft import PeftModel

from gradroute.config.run_config import RunConfig
from gradroute.config.sections import AdapterConfig, EvaluateConfig, TrainConfig
from gradroute.data.batches import DataOrder, TokenizedExample, micro_batches
from gradroute.errors import ConfigError
from gradroute.models.checkpoint import KEPT
from gradroute.models.hidden_state_cache import needed
from gradroute.models.shared_states import shared_bytes
from gradroute.prepare import Prepared, data_order
from gradroute.routing.adapters import adapter_parameters
from gradroute.routing.frozen_check import lower_layers
from gradroute.routing.policy import RoutingPolicy, standard_modes
from gradroute.system.memory import with_smaller_batches
from gradroute.train.optimizer import build_optimizer, schedule
from gradroute.train.step import train_step

_STEPS, _SECONDS = 3, 20.0
"""Steps that are timed: so many, fewer once they have taken so long."""
_WEIGHT, _MOMENTS = 4, 8
"""Bytes of an adapter weight, always float32, and of AdamW's two moments of it."""
_LINE = 700
"""Bytes of one step's lines in metrics.jsonl and timings.jsonl; those of runs here are shorter."""
_CHARACTERS, _SAMPLE, _LOSS = 5, 300, 120
"""Bytes per token of a completion; of a sample's line besides; of a held-out example's line."""


def estimate(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    prepared: Prepared,
    config: RunConfig,
    pad_id: int,
) -> dict[str, Any]:
    """What one run takes: time, memory and room on the disk.

    The first steps are trained, so the model is of no use afterwards.

    Args:
        model: a fresh model of the run, on its device.
        rows: the tokenized training examples.
        prepared: what they were made from.
        config: of the run.
        pad_id: the padding token.

    Returns:
        `step_seconds` (median of the first `steps` steps), `hours` (whole run), `memory` (peak in
        bytes: of this process, on a GPU of what torch took there; None where the system does not
        tell), `of_memory` ("process" or "device"), `micro_batch` (examples at a time that fit),
        `smaller` (fewer than asked for), `disk` (bytes of the run's folder at most), `states`
        (bytes of the hidden states beside it that `train.reuse_frozen` keeps) and `shared` (bytes
        of those of training that runs side by side share, as far as there is room).

    Raises:
        NumericError: a loss or gradient is not finite.
        ConfigError: an adapter that the table updates cannot learn.
        MachineError: memory runs out even for one example at a time.
    """
    order = data_order(
        prepared,
        rows,
        seed=config.seed,
        front_load=config.data.front_load,
        length_window=config.train.length_window,
    )
    disk = _disk_bytes(model, prepared, config.train.max_steps, config.evaluate)
    states = _states_bytes(model, rows, order, config.train)
    width = config.data.max_length if config.train.packing else None
    found = _first_steps(
        model,
        rows,
        order,
        prepared.policy,
        adapters=config.adapters,
        settings=config.train,
        pad_id=pad_id,
        packed_into=width,
    )
    examples = config.train.max_steps * config.train.step_examples
    shared = shared_bytes(model, rows, config.train, examples)
    return {**found, "disk": disk, "states": states, "shared": shared}


def _first_steps(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    order: DataOrder,
    policy: RoutingPolicy,
    *,
    adapters: Mapping[str, AdapterConfig],
    settings: TrainConfig,
    pad_id: int,
    packed_into: int | None,
) -> dict[str, Any]:
    """Train the first steps and one of the longest examples; see `estimate`."""
    optimizer = build_optimizer(model, adapters, settings.learning_rate)
    model.train()
    updated: set[str] = set()

    def step(number: int, places: Sequence[int], size: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        began = time.perf_counter()
        parts = micro_batches([rows[at] for at in places], size, pad_id, packed_into=packed_into)
        batches = [part.to(model.device) for part in parts]
        rate = schedule(number, settings.max_steps, settings.warmup_steps)
        report = train_step(
            model, optimizer, batches, policy, loss_mean=settings.loss_mean, rate=rate
        )
        updated.update(report.updated)
        return time.perf_counter() - began  # the losses were read, so the device is done

    seconds, size = list[float](), settings.batch_size
    for number in range(min(_STEPS, settings.max_steps)):
        took, size = _fitted(step, number, order.batch(number, settings.step_examples), size)
        seconds.append(took)
        if sum(seconds) > _SECONDS:
            break
    longest = sorted(range(len(rows)), key=lambda at: len(rows[at].input_ids))[-size:]
    _, size = _fitted(step, 0, longest, min(size, len(longest)))
    idle = [own for name, own in adapter_parameters(model).items() if name not in updated]
    missing = sum(weight.numel() for own in idle for weight in own)
    peak = _peak_bytes(model.device)
    every = settings.log_gradients_every
    passes = settings.max_steps * (1 + (1 / every if every else 0))
    return {
        "step_seconds": median(seconds),
        "steps": len(seconds),
        "hours": median(seconds) * passes / 3600,
        "memory": None if peak is None else peak + missing * (_WEIGHT + _MOMENTS),
        "of_memory": "process" if model.device.type == "cpu" else "device",
        "micro_batch": size,
        "smaller": size < min(settings.batch_size, len(rows)),
    }


def _states_bytes(
    model: PeftModel, rows: Sequence[TokenizedExample], order: DataOrder, settings: TrainConfig
) -> int:
    """Bytes of the hidden states that `train.reuse_frozen` keeps for training; 0 without.

    0 also where the model cannot be run from its middle, or they would be more than
    `train.reuse_gib`: then none are kept.
    """
    if not settings.reuse_frozen:
        return 0
    places = order.visited(settings.max_steps, settings.step_examples)
    visited = [rows[at].input_ids for at in places]
    try:
        size = needed(lower_layers(model, visited), visited)
    except ConfigError:
        return 0
    return size if size <= settings.reuse_gib * 2**30 else 0


def _disk_bytes(
    model: PeftModel, prepared: Prepared, max_steps: int, wanted: EvaluateConfig
) -> int:
    """Bytes that a run's folder will take at most, from formulas: see the constants.

    Checkpoints hold every adapter and two moments of each weight; while one is written there is
    one more than are kept. To these come the lines of every step, and samples and losses of the
    evaluation under every mode.
    """
    adapters = adapter_parameters(model)
    weights = sum(p.numel() for own in adapters.values() for p in own)
    checkpoints = (KEPT + 1) * weights * (_WEIGHT + _MOMENTS)
    modes = len(wanted.modes or standard_modes(list(adapters)))
    sample = wanted.max_new_tokens * _CHARACTERS + _SAMPLE
    several = len(prepared.behaviors)
    behaving = sum(map(len, prepared.behaving.values()))
    held_out = min(len(prepared.normal), wanted.held_out)
    held_out += min(behaving, several * wanted.held_out)
    evaluation = modes * (several * wanted.prompts * sample + held_out * _LOSS)
    return checkpoints + max_steps * _LINE + evaluation


def _fitted(step: Any, number: int, places: Sequence[int], size: int) -> tuple[float, int]:
    """A step with fewer examples at a time where memory runs out, as training does it."""
    advice = (
        "Lower data.max_length or the adapters' ranks, take a smaller base model, or free memory."
    )
    return with_smaller_batches(
        lambda size: step(number, places, size), size, lambda before, after: None, advice
    )


def _peak_bytes(device: torch.device) -> int | None:
    """The most memory so far: of this process, or on a GPU of what torch has taken there.

    None where the system does not tell it of a process: Windows has no module `resource`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
