"""The layers of a model below its adapters, and a check that it computes the same without them.

A model whose upper layers read anything else than the states that leave the lower ones (keys and
values that they share, say) would be silently wrong. So no model is trusted: each is tried, on
real tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners import lora
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.contexts import ablated
from gradroute.routing.frozen_layers import LowerLayers, run_up_to, states_of
from gradroute.routing.layers import routed_layers
from gradroute.routing.targets import transformer_layers
from gradroute.system.memory import is_out_of_memory
from gradroute.system.modules import modes_restored
from gradroute.system.terminal import first_line

_LONGEST = 64  # tokens of an example that the model is tried on
# Largest difference that is rounding, over the largest number. A model that reads what it should
# not differs by far more.
_CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}
_CLOSE_OTHERWISE = 0.05

Source = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""Gives what leaves a model's lower layers when it is called with these inputs, [b, t, d]."""

_sources: WeakKeyDictionary[nn.Module, Source] = WeakKeyDictionary()

_TROUBLE = (TypeError, ValueError, RuntimeError, LookupError, AttributeError)
"""What a model may raise whose upper layers need more than states."""


def lower_layers(model: PeftModel, rows: Sequence[Sequence[int]]) -> LowerLayers:
    """The layers below the first adapted one, if their states are all that the others need.

    The model is tried once and the answer kept with it: on two rows, the layers above must compute
    from the states of each row by itself what the whole model computes of both side by side; and
    the states must be the same in training, without any noise. Weights, gradients, training mode
    and random state stay as they are.

    Args:
        model: A routed model on its device.
        rows: Token ids of examples, at least one; of the shortest and the longest the beginning is
            tried.

    Raises:
        ConfigError: There is no such layer, or the model computes something else; the message is
            half a sentence that says why.
    """
    state = routed_layers(model).state
    if state.lower is None:
        try:
            state.lower = _compare_states(model, rows)
        except ConfigError as error:
            state.lower = str(error)
    if isinstance(state.lower, str):
        raise ConfigError(state.lower)
    return state.lower


def take_states_from(model: nn.Module, source: Source) -> None:
    """Have a model that `lower_layers` has approved of take its states from a source from now on.

    Args:
        model: The model.
        source: Must give the bits that the model would compute, and hold no reference to it.
    """
    _sources[model] = source


def lower_states(
    model: nn.Module, lower: LowerLayers, inputs: Mapping[str, Any]
) -> Float[Tensor, "b t d"]:
    """What leaves the lower layers for these inputs: from the model's source, or computed."""
    source = _sources.get(model)
    return lower.states(model, inputs) if source is None else source(model, inputs)


@contextmanager
def run_upper_layers(
    model: nn.Module,
    states: Float[Tensor, "b t d"] | None,
    inputs: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Run the layers above with these states; with None, the whole model or what a source gives.

    Args:
        model: A model that `lower_layers` has approved of.
        states: What leaves the lower layers for the batch that the model is called with; at
            padding any finite number.
        inputs: What the model is called with; without them no source is asked.

    Raises:
        ConfigError: `lower_layers` has not been called, or refused; inside, the batch is another.
    """
    if states is None and inputs is not None and (source := _sources.get(model)) is not None:
        states = source(model, inputs)
    if states is None:
        yield
        return
    lower = routed_layers(model).state.lower
    if not isinstance(lower, LowerLayers):
        raise ConfigError("states were given to a model whose lower layers nobody has looked at.")
    with lower.entering(states):
        yield


def _compare_states(model: PeftModel, rows: Sequence[Sequence[int]]) -> LowerLayers:
    layers = _below_adapters(model)
    ordered = sorted(rows, key=len)
    tried = [list(ordered[at][:_LONGEST]) for at in (0, -1)]
    kind = type(model.get_base_model()).__name__
    try:
        with (
            modes_restored(model),
            torch.random.fork_rng(devices=_devices(model)),
            ablated(model, "full"),
        ):
            return _equal_without(model, layers, tried)
    except ConfigError as error:
        raise ConfigError(f"in the model {kind} {error}") from error
    except _TROUBLE as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the model {kind} cannot be run from its middle ({first_line(error)})"
        ) from error


def _below_adapters(model: PeftModel) -> tuple[nn.Module, ...]:
    """The transformer layers below the first one with an adapter."""
    base = model.get_base_model()
    layers = [base.get_submodule(name) for name in transformer_layers(base)]
    adapted = [
        at
        for at, layer in enumerate(layers)
        if any(isinstance(module, lora.LoraLayer) for module in layer.modules())
    ]
    if not adapted:
        raise ConfigError("no transformer layer has an adapter")
    if adapted[0] == 0:
        raise ConfigError(
            "the first transformer layer has an adapter, so there are no frozen layers below it"
        )
    return tuple(layers[: adapted[0]])


def _equal_without(
    model: PeftModel, layers: tuple[nn.Module, ...], rows: Sequence[list[int]]
) -> LowerLayers:
    # A short row beside a long one, so that padding is tried too.
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    both = _inputs(model, ids, mask)
    model.train()
    output = run_up_to(layers[-1], model, both)
    noisy = states_of(output)
    if noisy.requires_grad:
        raise ConfigError("there are trainable weights below the first adapted layer")
    # Some families return (states, …) from a layer; the stand-in must return as many parts.
    parts = len(output) if isinstance(output, tuple) else None
    lower = LowerLayers(layers, noisy.shape[-1], noisy.dtype, parts)
    model.eval()
    with torch.no_grad():
        quiet = lower.states(model, both)
        _check_close(quiet, noisy, mask, "the lower layers draw noise in training (dropout)")
        whole = model(**both).logits
        kept = torch.zeros_like(quiet)
        for at, row in enumerate(rows):
            alone = torch.tensor([row])
            states = lower.states(model, _inputs(model, alone, torch.ones_like(alone)))
            kept[at, : len(row)] = states[0]
        with lower.entering(kept):
            split = model(**both).logits
    _check_close(split, whole, mask, "upper layers read more than the states of the lower ones")
    return lower


def _inputs(model: PeftModel, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    device = model.device
    # A cache would be filled by the lower layers, which are not to run.
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}


def _check_close(one: Tensor, other: Tensor, mask: Tensor, otherwise: str) -> None:
    """Refuse what differs at a token by more than rounding."""
    here = mask.bool().to(one.device)
    first, second = one[here].double(), other[here].double()
    apart = float((first - second).abs().max() / second.abs().max())
    # Not `apart > …`: NaN is refused too.
    if not apart <= _CLOSE.get(one.dtype, _CLOSE_OTHERWISE):
        raise ConfigError(f"{otherwise}: a difference of {apart:.2g} of the largest number")


def _devices(model: PeftModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
