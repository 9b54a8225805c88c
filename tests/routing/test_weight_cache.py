"""Stacked weights that a scope keeps are those that it would make, bit for bit, at every call."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from routing.tiny import adapter_weights_of, tiny_batch, tiny_routed
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.routing import weight_cache
from gradroute.routing.adapters import ablated, adapter_state, load_adapter_state, route_adapters
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.routing.policy import AblationMode, standard_modes
from gradroute.routing.weight_cache import StackCache

PAIR = ("good", "bad")
MODES = (*standard_modes(PAIR), AblationMode.parse("good=0.3,bad=-1", PAIR))
RANKS = {"good": 3, "bad": 2}


def run(model: PeftModel, copies: int = len(MODES)) -> Tensor:
    inputs = {k: v.repeat(copies, 1) for k, v in tiny_batch(rows=2).inputs.items()}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def made_anew(model: PeftModel) -> Tensor:
    with pytest.MonkeyPatch.context() as patch, ablated(model, MODES):
        patch.setattr(StackCache, "of", lambda *args: None)
        return run(model)


@pytest.fixture(autouse=True)
def group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all groups together no bit is promised; see `test_together`."""
    monkeypatch.setattr(weight_cache, "TOGETHER", 0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every stack that a scope made to keep."""
    calls: list[int] = []

    def counted(*args):
        calls.append(1)
        return original(*args)

    original = weight_cache.stacked
    monkeypatch.setattr(weight_cache, "stacked", counted)
    return calls


@pytest.mark.parametrize("base", ["plain", "called"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_kept_weights_change_no_bit_and_are_made_once(dtype, base, made):
    model = tiny_routed(RANKS, dtype=dtype).eval()
    if base == "called":  # as a quantized one is
        for layer in lora_layers(model).values():
            layer.base_layer.register_forward_hook(lambda *args: None)
    wanted = made_anew(model)
    assert not made
    with ablated(model, MODES):
        assert torch.equal(run(model), wanted)
        once = len(made)
        assert torch.equal(run(model), wanted)
    assert len(made) == once == 6 * len(lora_layers(model))  # `base` needs none, all have one


def test_float32_adapters_on_a_bfloat16_base_are_kept_without_changing_a_bit():
    model = tiny_routed(RANKS, dtype=torch.bfloat16).eval()
    for pairs in adapter_weights_of(model).values():
        for weights in pairs.values():
            for weight in weights:
                weight.data = weight.data.float()
    wanted = made_anew(model)
    with ablated(model, MODES):
        assert torch.equal(run(model), wanted)
        assert torch.equal(run(model), wanted)


def in_place(model: PeftModel) -> None:
    with torch.no_grad():
        for a, b in adapter_weights_of(model)["good"].values():
            a.mul_(1.5)
            b.add_(0.1)


def loaded(model: PeftModel) -> None:
    state = {name: tensor * 2 for name, tensor in adapter_state(model, "bad").items()}
    load_adapter_state(model, "bad", state)


def replaced(model: PeftModel) -> None:
    for layer in lora_layers(model).values():
        down, _ = adapter_weights(layer, "good")
        layer.lora_A["good"].weight = torch.nn.Parameter(down.detach() + 1)


def moved(model: PeftModel) -> None:
    model.to(torch.float64)


def rescaled(model: PeftModel) -> None:
    for layer in lora_layers(model).values():
        layer.scaling["bad"] = 0.7


def deleted(model: PeftModel) -> None:
    for layer in lora_layers(model).values():
        layer.delete_adapter("bad")


@pytest.mark.parametrize("change", [in_place, loaded, replaced, moved, rescaled, deleted])
def test_what_is_changed_inside_a_scope_is_seen_at_the_next_call(change: Callable):
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    with ablated(model, MODES):
        before = run(model)
        change(model)
        after = run(model)
        assert torch.equal(run(model), after)
    route_adapters(model)
    with pytest.MonkeyPatch.context() as patch, ablated(model, [mode_of(model, m) for m in MODES]):
        patch.setattr(StackCache, "of", lambda *args: None)
        assert torch.equal(run(model), after)
    assert not torch.equal(after, before.to(after.dtype))


def mode_of(model: PeftModel, mode: AblationMode) -> AblationMode:
    held = next(iter(lora_layers(model).values())).lora_A
    return AblationMode(mode.name, {name: mode.scales[name] for name in PAIR if name in held})


def test_a_hook_that_comes_inside_a_scope_is_called():
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    with ablated(model, MODES):
        wanted, seen = run(model), []
        layer = next(iter(lora_layers(model).values()))
        layer.lora_A["good"].register_forward_hook(lambda *args: seen.append(1))
        torch.testing.assert_close(run(model), wanted)
    assert seen


def test_an_ablated_adapter_full_of_nan_is_not_in_what_is_kept():
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    with ablated(model, "bad_ablated"):
        wanted = run(model, 1)
        for weights in adapter_weights_of(model)["bad"].values():
            for weight in weights:
                weight.data.fill_(torch.nan)
        assert torch.equal(run(model, 1), wanted)


def test_inference_mode_and_autocast_inside_a_scope_have_their_own():
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    wanted = made_anew(model)
    with ablated(model, MODES):
        with torch.inference_mode():
            assert torch.equal(run(model), wanted)
        assert torch.equal(run(model), wanted)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = run(model)
        assert torch.equal(run(model), wanted)
    assert not torch.equal(low, wanted)


def test_weights_made_in_inference_mode_are_stacked_anew(made):
    with torch.inference_mode():
        model = tiny_routed(RANKS, dtype=torch.float32).eval()
        with ablated(model, MODES):
            assert torch.equal(run(model), run(model))
    assert not made


def test_without_room_nothing_is_kept_and_nothing_changes(monkeypatch, made):
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    wanted = made_anew(model)
    monkeypatch.setattr(weight_cache, "MAX_CACHE_BYTES", 0)
    with ablated(model, MODES):
        assert torch.equal(run(model), wanted)
        once = len(made)
        assert torch.equal(run(model), wanted)
    assert len(made) == 2 * once


def test_with_gradients_and_in_training_mode_nothing_is_kept(made):
    model = tiny_routed(RANKS, dtype=torch.float32)
    with ablated(model, "full"):
        run(model, 1)
        model.eval()
        model(**tiny_batch().inputs)
    assert not made


def test_groups_of_any_size_equal_modes_one_by_one():
    model = tiny_routed(RANKS, dtype=torch.float32).eval()
    inputs = tiny_batch(rows=6).inputs
    modes, rows = [*MODES[:4]], [3, 0, 1, 2]
    with torch.no_grad():
        with ablated(model, modes, rows):
            found = model(**inputs, use_cache=False).logits
        start = 0
        for mode, count in zip(modes, rows, strict=True):
            with ablated(model, mode):
                wanted = model(**inputs, use_cache=False).logits[start : start + count]
            torch.testing.assert_close(found[start : start + count], wanted, rtol=1e-5, atol=1e-5)
            start += count


@pytest.mark.parametrize("rows", [[1, 2], [0, 0, 0], [-1, 2, 3]])
def test_groups_that_do_not_fit_the_modes_are_refused(rows):
    model = tiny_routed(RANKS).eval()
    with pytest.raises(ConfigError, match="do not fit 3 ablation"), ablated(model, MODES[:3], rows):
        pass


def test_a_batch_of_other_rows_than_the_groups_is_refused():
    model = tiny_routed(RANKS).eval()
    with (
        ablated(model, MODES[:2], [3, 2]),
        pytest.raises(ConfigError, match=r"groups have 3, 2 rows"),
    ):
        run(model, 3)
