"""The checks of a proof fail where they must."""

import pytest
import torch
from small_llama import small_llama

from gradroute.export.parity import (
    NEW,
    adapter_weights_check,
    as_stored_check,
    coarsest,
    continued,
    logits_check,
    merged_weights_check,
    probe_rows,
)

NAME = "layers.0.q_proj"
KEY = f"base_model.model.{NAME}"


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 4


def test_equal_logits_pass_and_larger_differences_than_rounding_do_not():
    expected = logits(2, 5, 30)
    allowed = 1e-5 * expected.abs().max()
    assert logits_check(expected, expected, torch.float32).passed
    for share, passes in ((0.9, True), (1.1, False)):
        found = expected.clone()
        found[1, 2, 3] += share * allowed
        assert logits_check(expected, found, torch.float32).passed == passes
    found = expected + 0.01 * expected.abs().max()
    assert logits_check(expected, found, torch.bfloat16).passed
    found[0, 0, 0] = float("nan")
    assert not logits_check(expected, found, torch.bfloat16).passed


def test_a_token_may_differ_only_where_the_margin_is_within_twice_the_difference():
    expected = torch.zeros(1, 1, 4)
    expected[..., 0], expected[..., 1] = 10.0, 9.9
    close, far = expected.clone(), expected.clone()
    close[..., 0] = 9.85
    check = logits_check(expected, close, torch.bfloat16)
    assert check.passed and check.numbers["tokens_differ"] == 1
    assert check.numbers["tokens_differ_beyond_margin"] == 0
    far[..., 0], far[..., 1] = 9.94, 9.95
    check = logits_check(expected, far, torch.bfloat16)
    assert check.numbers["tokens_differ"] == 1 and check.passed
    expected[..., 1] = 9.0  # now decided, and no rounding turns it
    far = expected.clone()
    far[..., 0], far[..., 1] = 9.0 - 1e-3, 9.0
    check = logits_check(expected, far, torch.bfloat16)
    assert not check.passed


def test_a_model_that_computes_in_its_own_type_must_be_finite_and_choose_the_same_tokens():
    expected = torch.zeros(1, 1, 4)
    expected[..., 0] = 10.0
    off = expected + 1.0
    assert as_stored_check(expected, off, torch.float16).passed
    assert not logits_check(expected, off, torch.float16).passed
    off[..., 1] = float("inf")
    assert not as_stored_check(expected, off, torch.float16).passed
    off[..., 1] = float("nan")
    assert not as_stored_check(expected, off, torch.float16).passed


def merged():
    generator = torch.Generator().manual_seed(0)
    base = {f"{NAME}.weight": torch.randn(6, 5, generator=generator), "norm": torch.ones(5)}
    own = {
        f"{KEY}.lora_A.weight": torch.randn(2, 5, generator=generator),
        f"{KEY}.lora_B.weight": torch.randn(6, 2, generator=generator),
    }
    update = own[f"{KEY}.lora_B.weight"].double() @ own[f"{KEY}.lora_A.weight"].double()
    exact = base[f"{NAME}.weight"].double() + 0.5 * update
    return base, own, {f"{NAME}.weight": exact.float(), "norm": torch.ones(5)}


def test_merged_weights_are_held_to_a_unit_in_the_last_place_and_others_to_equality():
    base, own, found = merged()

    def passed():
        return merged_weights_check(found, base, [(own, 0.5)], transposed=False).passed

    assert passed()
    weight = found[f"{NAME}.weight"]
    far = torch.full_like(weight, torch.inf)
    weight.copy_(torch.nextafter(torch.nextafter(weight, far), far))
    assert not passed()
    base, own, found = merged()
    found["norm"] = found["norm"] + 1e-7
    assert not passed()
    base, own, found = merged()
    found["more"] = torch.ones(1)
    base["more"] = torch.ones(1)
    assert passed()
    del base["norm"]
    base["norm2"] = torch.ones(5)
    found["norm2"] = found.pop("norm")
    assert passed()
    del found["more"]
    assert not passed()


def test_a_second_adapter_in_merged_weights_is_seen():
    base, own, found = merged()
    other = {key: tensor + 1e-3 for key, tensor in own.items()}
    check = merged_weights_check(found, base, [(own, 0.5), (other, 0.5)], transposed=False)
    assert not check.passed


def test_an_exported_adapter_is_the_kept_ones_and_nothing_else():
    _, own, _ = merged()
    half = {"lora_alpha": 1, "r": 2}

    def passed(found, *kept, **changed):
        return adapter_weights_check(found, half | changed, kept).passed

    assert passed(own, (own, 0.5))
    assert not passed(own, (own, 0.5), lora_alpha=0.5)
    assert not passed(own | {"more": torch.ones(1)}, (own, 0.5))
    assert not passed(dict(list(own.items())[:1]), (own, 0.5))
    wider = {
        key: torch.cat([tensor, tensor], 0 if "_A." in key else 1) for key, tensor in own.items()
    }
    assert passed(wider, (own, 0.5), (own, 0.5))
    assert not passed(wider, (own, 0.5))


@pytest.mark.parametrize(
    "setting",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"a": 3}},
        {"rank_pattern": {"a": 3}},
    ],
)
def test_an_exported_adapter_whose_scale_readers_may_read_differently_fails(setting):
    _, own, _ = merged()
    described = {"lora_alpha": 1, "r": 2, **setting}
    check = adapter_weights_check(own, described, [(own, 0.5)])
    assert not check.passed and next(iter(setting)) in check.text


def test_rows_stay_within_the_vocabulary_and_positions_and_end_in_the_models_own_tokens():
    model = small_llama()
    rows = probe_rows(model, [[5] * 99, [7]])
    longer, found = continued(model, rows)
    assert rows.max() < 64 and longer.shape == (5, rows.shape[1] + NEW)
    assert longer.shape[1] <= model.config.max_position_embeddings
    assert (rows[-1] == 5).all()
    at = rows.shape[1] - 1
    assert found[:, at:-1].argmax(-1).equal(longer[:, at + 1 :])


@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16])
def test_the_coarser_type_decides_what_is_allowed(other):
    assert coarsest(torch.float32, other) == other
