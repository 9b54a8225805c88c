"""Ablating an adapter is not computing it: bit for bit as if it had never been there."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from routing.tiny import (
    adapter_weights_of,
    gradients_of,
    logits,
    mean_loss,
    scalings_of,
    tiny_batch,
    tiny_routed,
    to_floor,
)
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.routing.adapters import ablated, adapter_state, load_adapter_state, routed
from gradroute.routing.policy import AblationMode, RoutingPolicy, standard_modes

PAIR = ("good", "bad")
MODES = standard_modes(PAIR)


def without_bad(model: PeftModel, **build: Any) -> PeftModel:
    """A model that never had `bad`, with the same `good`."""
    alone = tiny_routed({"good": 3}, **build)
    load_adapter_state(alone, "good", adapter_state(model, "good"))
    return alone.eval()


def fill_bad(model: PeftModel, value: float) -> None:
    with torch.no_grad():
        for a, b in adapter_weights_of(model)["bad"].values():
            a.fill_(value)
            b.fill_(value)


@pytest.mark.parametrize("path", ["fast", "floor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_ablated_adapter_leaves_no_bit_even_when_it_holds_nan(kind, dtype, path):
    model = tiny_routed(kind=kind, dtype=dtype).eval()
    alone = without_bad(model, kind=kind, dtype=dtype)
    if path == "floor":
        to_floor(model)
        to_floor(alone)
    expected = logits(alone)
    with ablated(model, "bad_ablated"):
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)
    for value in (float("nan"), float("inf")):
        fill_bad(model, value)
        with ablated(model, "bad_ablated"):
            assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_with_an_ablated_adapter_is_training_without_it(dtype):
    """Rows whose label ablates `bad`: same loss, same gradient for `good`, `bad` full of NaN."""
    model = tiny_routed(dtype=dtype)
    alone = without_bad(model, dtype=dtype).train()
    fill_bad(model, float("nan"))
    with routed(model, RoutingPolicy.parse("anchored", PAIR), ["good"] * 6):
        loss = mean_loss(model, tiny_batch())
        loss.backward()
    with routed(alone, RoutingPolicy.parse("none", ["good"]), ["good"] * 6):
        expected = mean_loss(alone, tiny_batch())
        expected.backward()
    assert torch.equal(loss, expected)
    gradients = gradients_of(model)
    for name, gradient in gradients_of(alone).items():
        assert torch.equal(gradients[name], gradient)
    assert all(not g.any() for name, g in gradients.items() if ".bad." in name)


@pytest.mark.parametrize("path", ["fast", "floor"])
def test_rows_that_ablate_an_adapter_stay_clean_beside_rows_that_run_it(path):
    model = tiny_routed(dtype=torch.float32)
    if path == "floor":
        to_floor(model)
    fill_bad(model, float("nan"))
    with routed(model, RoutingPolicy.parse("anchored", PAIR), ["good", "bad", "good"] * 2):
        mixed = logits(model)
    model.eval()
    with ablated(model, "bad_ablated"):
        expected = logits(model)
    clean = [0, 2, 3, 5]
    torch.testing.assert_close(mixed[clean], expected[clean], rtol=1e-5, atol=1e-5)
    assert mixed[[1, 4]].isnan().all()


@pytest.mark.parametrize("path", ["fast", "floor"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_modes_side_by_side_equal_modes_one_by_one(kind, path):
    model = tiny_routed(kind=kind, dtype=torch.float32).eval()
    if path == "floor":
        to_floor(model)
    modes = [*MODES, AblationMode.parse("good=0.3,bad=-1", PAIR)]
    batch, singles = tiny_batch(), []
    for mode in modes:
        with ablated(model, mode):
            singles.append(logits(model))
    inputs = {k: v.repeat(len(modes), 1) for k, v in batch.inputs.items()}
    with ablated(model, modes), torch.no_grad():
        together = model(**inputs, use_cache=False).logits.chunk(len(modes))
    for one, other in zip(together, singles, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for i, one in enumerate(singles):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in singles[:i])


def test_an_adapter_with_nan_does_not_leave_its_group_of_rows():
    model = tiny_routed(dtype=torch.float32).eval()
    with ablated(model, "bad_ablated"):
        expected = logits(model)
    fill_bad(model, float("nan"))
    inputs = {k: v.repeat(3, 1) for k, v in tiny_batch().inputs.items()}
    with ablated(model, ["full", "bad_ablated", "base"]), torch.no_grad():
        full, kept, base = model(**inputs, use_cache=False).logits.chunk(3)
    assert full.isnan().all() and base.isfinite().all()
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batched_generation_gives_the_tokens_of_the_single_modes(kind):
    model = tiny_routed(kind=kind, dtype=torch.float32).eval()
    prompts = tiny_batch(rows=4, length=3).input_ids
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)

    def generate(ids: Tensor) -> Tensor:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)

    singles = []
    for mode in MODES:
        with ablated(model, mode):
            singles.append(generate(prompts))
    with ablated(model, MODES):
        together = generate(prompts.repeat(len(MODES), 1))
    assert torch.equal(together, torch.cat(singles))
    assert len({tuple(one.flatten().tolist()) for one in singles}) > 1


def merged_by_hand(model: PeftModel, scales: dict[str, float]) -> Tensor:
    """Logits of the base with `scale * alpha / rank * B A` added to its weights."""
    base = copy.deepcopy(tiny_base_of(model))
    for name, modules in adapter_weights_of(model).items():
        for path, (a, b) in modules.items():
            with torch.no_grad():
                base.get_submodule(path).weight += (  # pyright: ignore
                    scales[name] * scalings_of(model)[name] * (b @ a)
                )
    return logits(base)


def tiny_base_of(model: PeftModel) -> torch.nn.Module:
    base = copy.deepcopy(model).unload()  # pyright: ignore
    assert isinstance(base, torch.nn.Module)
    return base


@pytest.mark.parametrize("mode", [*(m.name for m in MODES), "good=0.3,bad=-1"])
def test_every_mode_is_the_base_with_its_share_of_the_updates(mode):
    model = tiny_routed().eval()
    scales = dict(AblationMode.parse(mode, PAIR).scales)
    with ablated(model, mode):
        torch.testing.assert_close(logits(model), merged_by_hand(model, scales), rtol=0, atol=1e-10)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([*(mode.name for mode in MODES), None]), min_size=2, max_size=5))
def test_any_sequence_of_modes_leaves_a_fresh_model_behind(sequence):
    model, fresh = SHARED
    for mode in sequence:
        if mode is None:
            expected = logits(fresh)
        else:
            with ablated(fresh, mode):
                expected = logits(fresh)
            with ablated(model, mode):
                assert torch.equal(logits(model), expected)
            continue
        assert torch.equal(logits(model), expected)


SHARED = tuple(tiny_routed(dtype=torch.float32).eval() for _ in range(2))


def test_in_training_mode_the_adapters_that_are_on_learn_and_the_others_do_not():
    model = tiny_routed()
    with ablated(model, "bad_ablated"):
        mean_loss(model, tiny_batch()).backward()
    alone = without_bad(model).train()
    with ablated(alone, "full"):
        mean_loss(alone, tiny_batch()).backward()
    for name, gradient in gradients_of(model).items():
        if ".bad." in name:
            assert not gradient.any()
        else:
            torch.testing.assert_close(gradient, alone.get_parameter(name).grad)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("ugly_ablated", "the adapters are good, bad"),
        ([], "no ablation mode was given"),
        (AblationMode("mine", {"good": 1.0}), "it needs one for each"),
        (AblationMode("mine", {"good": 1.0, "bad": 1.0, "x": 0.0}), "it needs one for each"),
    ],
)
def test_a_mode_that_does_not_fit_the_model_is_refused(mode, sentence):
    with pytest.raises(ConfigError, match=sentence), ablated(tiny_routed().eval(), mode):
        pass


def test_rows_that_do_not_divide_into_the_modes_are_refused():
    model = tiny_routed().eval()
    with ablated(model, MODES), pytest.raises(ConfigError, match=r"5 ablation modes .* groups"):
        logits(model)
