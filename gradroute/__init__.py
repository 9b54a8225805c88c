"""Gradient routing with LoRA adapters: localize a behavior in one adapter, then leave it out.

    attach_adapters   put named LoRA adapters on a model
    routed            within it, a label decides what each adapter learns
    ablated           within it, a mode decides which adapters are computed
    apply_updates     step the optimizer, and leave alone the adapters that nobody updates

Names are loaded when they are first used, so that `import gradroute` does not load torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradroute.config.run_config import RunConfig as RunConfig
    from gradroute.config.run_config import load_config as load_config
    from gradroute.data.examples import Example as Example
    from gradroute.data.reading import read_examples as read_examples
    from gradroute.errors import ConfigError as ConfigError
    from gradroute.errors import DataError as DataError
    from gradroute.errors import GradrouteError as GradrouteError
    from gradroute.errors import Interrupted as Interrupted
    from gradroute.errors import MachineError as MachineError
    from gradroute.errors import NumericError as NumericError
    from gradroute.models.base import embedded_model as embedded_model
    from gradroute.routing.adapters import AdapterSpec as AdapterSpec
    from gradroute.routing.adapters import ablated as ablated
    from gradroute.routing.adapters import adapter_parameters as adapter_parameters
    from gradroute.routing.adapters import adapter_state as adapter_state
    from gradroute.routing.adapters import attach_adapters as attach_adapters
    from gradroute.routing.adapters import load_adapter_state as load_adapter_state
    from gradroute.routing.adapters import route_adapters as route_adapters
    from gradroute.routing.adapters import routed as routed
    from gradroute.routing.policy import NAMED_POLICIES as NAMED_POLICIES
    from gradroute.routing.policy import AblationMode as AblationMode
    from gradroute.routing.policy import Route as Route
    from gradroute.routing.policy import RoutingPolicy as RoutingPolicy
    from gradroute.routing.policy import standard_modes as standard_modes
    from gradroute.train.updates import apply_updates as apply_updates

    __version__: str

_HOMES = {
    "gradroute.config.run_config": ("RunConfig", "load_config"),
    "gradroute.data.examples": ("Example",),
    "gradroute.data.reading": ("read_examples",),
    "gradroute.errors": (
        "ConfigError",
        "DataError",
        "GradrouteError",
        "Interrupted",
        "MachineError",
        "NumericError",
    ),
    "gradroute.models.base": ("embedded_model",),
    "gradroute.routing.adapters": (
        "AdapterSpec",
        "ablated",
        "adapter_parameters",
        "adapter_state",
        "attach_adapters",
        "load_adapter_state",
        "route_adapters",
        "routed",
    ),
    "gradroute.routing.policy": (
        "NAMED_POLICIES",
        "AblationMode",
        "Route",
        "RoutingPolicy",
        "standard_modes",
    ),
    "gradroute.train.updates": ("apply_updates",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether a user could act on what bitsandbytes logs as PEFT imports it.

    It tells everybody that one of its kernels for 4 bits on a CPU would have to be fetched.
    """
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_use)


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("importlib.metadata").version("gradroute")
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'gradroute' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, "__version__"})
