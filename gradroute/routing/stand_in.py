"""Other weights in the place of an adapter's, for a forward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.adapters import adapter_parameters, adapter_state


@contextmanager
def standing_in(model: nn.Module, name: str, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, an adapter computes with other weights, also of another rank; then with its own.

    Nothing is copied. The adapter's parameters, their gradients and what an optimizer keeps of them
    stay as they are. Run no backward pass inside.

    Args:
        model: A routed model.
        name: The adapter.
        state: A and B of every module that has it, named as by `adapter_state`, on its device.

    Raises:
        ConfigError: The modules are others than the adapter's.
    """
    own = adapter_state(model, name)
    if own.keys() != state.keys():
        strange = sorted(own.keys() ^ state.keys())
        raise ConfigError(
            f"weights for the adapter {name!r} were given for other modules than it has: "
            f"{len(strange)} tensors differ, such as {strange[0]}. Give both the same targets and "
            "layers."
        )
    # Both go through the layers in order, A before B.
    parameters = dict(zip(own, adapter_parameters(model)[name], strict=True))
    kept = {key: parameter.data for key, parameter in parameters.items()}
    try:
        for key, parameter in parameters.items():
            parameter.data = state[key]
        yield
    finally:
        for key, parameter in parameters.items():
            parameter.data = kept[key]
