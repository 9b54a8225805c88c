"""Routing inside the trainers of transformers and TRL.

    RoutedTrainer        transformers.Trainer
    RoutedSFTTrainer     trl.SFTTrainer
    RoutedDPOTrainer     trl.DPOTrainer
    RoutedGRPOTrainer    trl.GRPOTrainer

Each is its trainer with two things more: adapters on the base model that it is given, and a label
for each example that decides what each adapter learns from it. Names are loaded when they are first
used, so that `RoutedTrainer` needs no TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gradroute.errors import MachineError

if TYPE_CHECKING:
    from gradroute.integrations.dpo import RoutedDPOTrainer as RoutedDPOTrainer
    from gradroute.integrations.grpo import RoutedGRPOTrainer as RoutedGRPOTrainer
    from gradroute.integrations.plain import RoutedTrainer as RoutedTrainer
    from gradroute.integrations.sft import RoutedSFTTrainer as RoutedSFTTrainer

_HOMES = {
    "RoutedDPOTrainer": "dpo",
    "RoutedGRPOTrainer": "grpo",
    "RoutedSFTTrainer": "sft",
    "RoutedTrainer": "plain",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "trl":
            raise
        raise MachineError(f"{name} needs TRL: pip install 'gradroute[trl]'.") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
