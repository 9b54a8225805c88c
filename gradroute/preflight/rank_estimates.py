"""What one rank of several takes: memory per strategy, and time, from the estimate of one process.

The weights are counted, not guessed. What else a device's measured peak holds (activations) is
taken for proportional to the examples of a forward pass; what else a process holds, for the same.
"""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from gradroute.config.run_config import RunConfig
from gradroute.errors import GradrouteError
from gradroute.routing.adapters import adapter_parameters
from gradroute.routing.targets import transformer_layers
from gradroute.system.ranks import Ranks
from gradroute.train.parallel import strategy_of

ADAPTER = 16
"""Bytes of an adapter weight in training: itself, its gradient and two moments, in float32."""
GATHERED = 2
"""Decoder layers that fsdp2 holds whole at a time: the one that computes, and the next."""


def estimate_of_ranks(
    model: PeftModel, config: RunConfig, one: Mapping[str, Any], size: int
) -> dict[str, Any]:
    """Memory and time of one of so many ranks.

    Args:
        model: Of the run, with its adapters, whole.
        config: Of the run.
        one: From `train.estimates.estimate`, on one process.
        size: How many ranks.

    Returns:
        `ranks`; `examples` of a step on each; `at_once`, those of a forward pass; `step_seconds`
        without communication; `sent`, bytes of gradients that each gives to the sum of a step;
        `memory`: strategy -> bytes of one rank, None where the peak of one process is not known;
        `refused`: strategy -> why it cannot be had.

    Raises:
        ConfigError: So many ranks cannot share a step.
    """
    auto = config.train.model_copy(update={"parallel": "auto"})
    ranks = Ranks(size=size)
    strategy_of(config.model_copy(update={"train": auto}), ranks, audit=False)
    base = model.get_base_model()
    adapters = sum(p.numel() for own in adapter_parameters(model).values() for p in own)
    own = {id(p) for group in adapter_parameters(model).values() for p in group}
    layers = [base.get_submodule(name) for name in transformer_layers(base)]
    sizes = [
        sum(p.numel() * p.element_size() for p in layer.parameters() if id(p) not in own)
        for layer in layers
    ]
    whole = sum(p.numel() * p.element_size() for p in base.parameters() if id(p) not in own)
    examples = config.train.step_examples // size
    at_once = min(config.train.batch_size, examples, one["micro_batch"])
    memory: dict[str, int | None] = {"ddp": None, "fsdp2": None}
    if one["memory"] is not None:
        rest = max(0, one["memory"] - whole - ADAPTER * adapters)
        if one["of_memory"] == "device":
            rest = rest * at_once // one["micro_batch"]
        memory["ddp"] = whole + ADAPTER * adapters + rest
        sharded = (sum(sizes) + ADAPTER * adapters) // size
        held = min(len(sizes), GATHERED) * max(sizes, default=0)
        memory["fsdp2"] = whole - sum(sizes) + sharded + held + rest
    refused = {}
    for strategy in memory:
        changed = config.train.model_copy(update={"parallel": strategy})
        try:
            strategy_of(config.model_copy(update={"train": changed}), ranks, audit=False)
        except GradrouteError as error:
            refused[strategy] = str(error)
    return {
        "ranks": size,
        "examples": examples,
        "at_once": at_once,
        "step_seconds": one["step_seconds"] / size,
        "sent": 4 * adapters,
        "memory": memory,
        "refused": refused,
    }
