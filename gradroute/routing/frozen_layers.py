"""The transformer layers below the first adapted one, whose outputs never change.

They are frozen and hold no adapter, so that their output is a function of the tokens alone: it can
be computed once and be given to the layers above as often as they need it. How a model is called
does not matter, for it is the layers themselves that are stood in for; masks, positions, norms and
head stay the model's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradroute.errors import ConfigError


class _Reached(Exception):
    """The last of the lower layers has run: what comes after it is not needed."""


@dataclass(frozen=True)
class LowerLayers:
    """The layers below the first adapted one, in order; see `frozen_check.lower_layers`.

    Attributes:
        layers: The modules, at least one.
        width: Numbers per token that leave them.
        dtype: Of these numbers.
        parts: A layer returns a tuple of so many, of which the states are the first; None where
            it returns the states themselves.
    """

    layers: tuple[nn.Module, ...]
    width: int
    dtype: torch.dtype
    parts: int | None

    def states(self, model: nn.Module, inputs: Mapping[str, Any]) -> Float[Tensor, "b t d"]:
        """What leaves the lower layers when the model is called with these inputs.

        The layers above are not run.
        """
        return states_of(run_up_to(self.layers[-1], model, inputs))

    @contextmanager
    def entering(self, states: Float[Tensor, "b t d"]) -> Iterator[None]:
        """Inside, the lower layers do not run: these states leave them.

        Keep the backward pass inside where layers are checkpointed.

        Args:
            states: Of the batch that the model is called with.

        Raises:
            ConfigError: Inside: the model is called with a batch of another shape.
        """
        # Every lower layer hands the same states on: only what leaves the last one is read.
        output = states if self.parts is None else (states, *(None,) * (self.parts - 1))

        def stand_in(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if hidden_states.shape != states.shape:
                raise ConfigError(
                    f"the states for the layers above are of shape {list(states.shape)}, but the "
                    f"model was called with a batch that has {list(hidden_states.shape)}; give it "
                    "the batch that they were computed for."
                )
            return output

        with _in_place_of(self.layers, stand_in):
            yield


@contextmanager
def _in_place_of(layers: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Run a function instead of layers; a `forward` that was put on a layer comes back after."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        setattr(layer, "forward", forward)  # noqa: B010 - a method is stood in for
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                delattr(layer, "forward")
            else:
                setattr(layer, "forward", own)  # noqa: B010


def run_up_to(layer: nn.Module, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call a model as far as one of its layers; what that returns.

    Raises:
        ConfigError: The model does not call the layer.
    """
    found: list[Any] = []

    def reached(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)
        raise _Reached  # there is no other way to end a model's forward pass from inside

    hook = layer.register_forward_hook(reached)
    try:
        model(**inputs)
    except _Reached:
        return found[0]
    finally:
        hook.remove()
    raise ConfigError(f"the model does not call its layer {type(layer).__name__}.")


def states_of(output: Any) -> Tensor:
    """The hidden states in what a transformer layer returns.

    Raises:
        ConfigError: It returns neither them nor a tuple that begins with them.
    """
    states = output[0] if isinstance(output, tuple) else output
    if not isinstance(states, Tensor) or states.dim() != 3:
        kind = list(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ConfigError(f"a layer returns {kind} rather than states [batch, time, width].")
    return states
