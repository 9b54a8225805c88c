"""The groups of a small batch are computed together; where an adapter is off it reaches nothing."""

import pytest
import torch
from peft import PeftModel
from routing.test_weight_cache import MODES, RANKS, run
from routing.tiny import tiny_routed
from torch import Tensor

from gradroute.routing import weight_cache
from gradroute.routing.adapters import ablated
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.routing.weight_cache import StackCache, Together


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What every layer was given at every call."""
    answers: list[object] = []
    of = StackCache.of

    def seen(*args):
        answers.append(of(*args))
        return answers[-1]

    monkeypatch.setattr(StackCache, "of", seen)
    return answers


def one_by_one(model: PeftModel) -> Tensor:
    parts = []
    for mode in MODES:
        with ablated(model, mode):
            parts.append(run(model, 1))
    return torch.cat(parts)


def test_groups_together_compute_what_each_mode_computes_alone(found):
    model = tiny_routed(RANKS).eval()
    wanted = one_by_one(model)
    assert not any(isinstance(answer, Together) for answer in found)
    with ablated(model, MODES):
        together = run(model)
    assert all(isinstance(answer, Together) for answer in found[-len(lora_layers(model)) :])
    torch.testing.assert_close(together, wanted, rtol=0, atol=1e-12)


def test_groups_of_many_positions_are_computed_one_by_one(found, monkeypatch):
    model = tiny_routed(RANKS).eval()
    monkeypatch.setattr(weight_cache, "TOGETHER", 1)
    with ablated(model, MODES):
        run(model)
    assert found and not any(isinstance(answer, Together) for answer in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_an_adapter_that_is_broken_reaches_only_the_groups_that_run_it(value, side, found):
    model = tiny_routed(RANKS).eval()
    clean = one_by_one(model)
    for layer in lora_layers(model).values():
        adapter_weights(layer, "bad")[side].data[0, 0] = value
    with ablated(model, MODES):
        broken = run(model).chunk(len(MODES))
    assert not any(isinstance(answer, Together) for answer in found)
    for mode, own, wanted in zip(MODES, broken, clean.chunk(len(MODES)), strict=True):
        if mode.scales["bad"] == 0.0:
            torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12)
        else:
            assert not own.isfinite().all()


def test_an_adapter_that_overflows_reaches_only_the_groups_that_run_it(found):
    """Weights that are finite, and products that are not: 0 times infinity would be NaN."""
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    clean = one_by_one(model)
    for layer in lora_layers(model).values():
        adapter_weights(layer, "bad")[0].data.fill_(2e38)
    with ablated(model, MODES):
        broken = run(model).chunk(len(MODES))
    assert all(isinstance(answer, Together) for answer in found[-len(lora_layers(model)) :])
    for mode, own, wanted in zip(MODES, broken, clean.chunk(len(MODES)), strict=True):
        if mode.scales["bad"] == 0.0:
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
        else:
            assert not own.isfinite().all()
