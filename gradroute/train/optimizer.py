"""The optimizer of a run: a group for each adapter, its learning rate, its state as tensors."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from peft import PeftModel
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.routing.adapters import adapter_parameters
from gradroute.system.sharded import like, whole


@runtime_checkable
class AdapterSettings(Protocol):
    """What the optimizer asks of an adapter's config."""

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None takes the run's."""
        ...

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay per step, times the learning rate."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest gradient norm of this adapter alone; None does not clip."""
        ...


def build_optimizer(
    model: PeftModel,
    adapters: Mapping[str, AdapterSettings],
    learning_rate: float,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """One AdamW with one parameter group per adapter, each with its own rate and weight decay.

    Args:
        model: a routed model.
        adapters: adapter name -> settings.
        learning_rate: peak rate of the adapters that name none.
        fused: all of an adapter's weights in one kernel; None does so on CUDA and on the CPU.
    """
    parameters = adapter_parameters(model)
    if fused is None:
        fused = all(p.device.type in ("cuda", "cpu") for own in parameters.values() for p in own)
    groups = [
        {
            "params": parameters[name],
            "adapter": name,
            "peak": learning_rate if settings.learning_rate is None else settings.learning_rate,
            "weight_decay": settings.weight_decay,
            "clip": settings.clip,
        }
        for name, settings in adapters.items()
    ]
    return torch.optim.AdamW(
        groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=fused or None
    )


def schedule(step: int, max_steps: int, warmup_steps: int) -> float:
    """Factor of the peak learning rate in step `step` (0-based): linear warm-up, cosine to 0.

    A function of the global step alone, the same for every adapter, also for one that some steps
    skip.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def optimizer_tensors(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, named `<parameter>/<moment>`; see the inverse below.

    Keyed by parameter name rather than by position, so that a file can be read by itself.
    """
    return {
        f"{name}/{key}": whole(torch.as_tensor(value))
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(
    model: PeftModel, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of `optimizer_tensors` back; a parameter without any has never stepped.

    Raises:
        ConfigError: One belongs to no parameter of the model, or has another shape.
    """
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or (key != "step" and value.shape != parameter.shape):
            raise ConfigError(
                f"the saved optimizer state does not fit the model: {name} is "
                f"{list(value.shape)}; continue with the settings that it was saved with."
            )
        # A fused optimizer counts where the weights are.
        on = "cpu" if key == "step" and not optimizer.defaults["fused"] else parameter.device
        value = value.clone().to(on)
        optimizer.state[parameter][key] = value if key == "step" else like(value, parameter)
