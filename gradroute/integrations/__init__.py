"""Routing inside the trainers of transformers and TRL.

    RoutedTrainer        transformers.Trainer
    RoutedSFTTrainer     trl.SFTTrainer
    RoutedDPOTrainer     trl.DPOTrainer
    RoutedGRPOTrainer    trl.GRPOTrainer
    RoutedTraining       what they share, and their arguments

Each is its trainer with two things more: adapters on the base model that it is given, and a label
for each example that decides what each adapter learns from it. Names are loaded when they are first
used, so that `RoutedTrainer` needs no TRL.
"""

from typing import TYPE_CHECKING

from gradroute.errors import MachineError

if TYPE_CHECKING:
    from gradroute.integrations.dpo import RoutedDPOTrainer as RoutedDPOTrainer
    from gradroute.integrations.grpo import RoutedGRPOTrainer as RoutedGRPOTrainer
    from gradroute.integrations.plain import RoutedTrainer as RoutedTrainer
    from gradroute.integrations.routing import RoutedTraining as RoutedTraining
    from gradroute.integrations.sft import RoutedSFTTrainer as RoutedSFTTrainer

_NAMES = (
    "RoutedDPOTrainer",
    "RoutedGRPOTrainer",
    "RoutedSFTTrainer",
    "RoutedTrainer",
    "RoutedTraining",
)
_OF_THE_EXTRA = ("trl", "datasets")


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return _trainer(name)
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        raise MachineError(f"{name} needs {error.name}: pip install 'gradroute[trl]'.") from error


def _trainer(name: str) -> object:
    if name == "RoutedTraining":
        from gradroute.integrations.routing import RoutedTraining

        return RoutedTraining
    if name == "RoutedTrainer":
        from gradroute.integrations.plain import RoutedTrainer

        return RoutedTrainer
    if name == "RoutedSFTTrainer":
        from gradroute.integrations.sft import RoutedSFTTrainer

        return RoutedSFTTrainer
    if name == "RoutedDPOTrainer":
        from gradroute.integrations.dpo import RoutedDPOTrainer

        return RoutedDPOTrainer
    from gradroute.integrations.grpo import RoutedGRPOTrainer

    return RoutedGRPOTrainer


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
