"""The face of the integrations: loaded on demand, and what is missing is named."""

import builtins
import sys
from typing import Any

import pytest

from gradroute import integrations
from gradroute.errors import MachineError


@pytest.mark.parametrize(
    ("missing", "trainer"),
    [("trl", "RoutedSFTTrainer"), ("trl", "RoutedDPOTrainer"), ("trl", "RoutedGRPOTrainer")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    missing: str, trainer: str, monkeypatch: pytest.MonkeyPatch
):
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return found(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("gradroute.integrations.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError, match=rf"{trainer} needs {missing}: pip install 'gradroute"):
        getattr(integrations, trainer)


def test_an_unknown_name_is_no_attribute_and_every_trainer_is_listed():
    with pytest.raises(AttributeError, match="RoutedKTOTrainer"):
        integrations.RoutedKTOTrainer  # pyright: ignore  # noqa: B018
    assert {"RoutedTrainer", "RoutedSFTTrainer"} < set(dir(integrations))
