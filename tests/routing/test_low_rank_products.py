"""Low-rank products in bf16: what they cost in precision, held against float64."""

import pytest
import torch
from routing.tiny import gradients_of, mean_loss, tiny_batch, tiny_routed

from gradroute.config.run_config import load_config
from gradroute.routing.adapters import low_rank_products, routed
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.routing.policy import RoutingPolicy

POLICY = RoutingPolicy.parse("anchored", ("good", "bad"))
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]


def computed(dtype, products, policy=POLICY, dropout=0.0):
    """Logits, and the gradient of every adapter weight."""
    model = tiny_routed(dtype=dtype, dropout=dropout)
    found = []
    model.lm_head.register_forward_hook(lambda module, args, output: found.append(output))
    with low_rank_products(model, products), routed(model, policy, LABELS):
        mean_loss(model, tiny_batch()).backward()
    assert all(p.dtype == dtype for p in model.parameters() if p.requires_grad)
    return found[0].detach().double(), {n: g.double() for n, g in gradients_of(model).items()}


def error(found, wanted):
    """Norm of the difference over norm, of logits and of all gradients together."""
    logits = (found[0] - wanted[0]).norm() / wanted[0].norm()
    pairs = [(found[1][name], wanted[1][name]) for name in wanted[1]]
    off = sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)
    return float(logits), float(off) ** 0.5


def test_products_in_bf16_are_within_two_percent_of_float64_and_fp32_within_a_millionth():
    oracle = computed(torch.float64, None)
    exact = error(computed(torch.float32, None), oracle)
    assert max(exact) < 1e-5
    rounded = error(computed(torch.float32, torch.bfloat16), oracle)
    assert min(rounded) > 1e-4 and max(rounded) < 0.02


def test_both_levels_of_hosting_are_as_exact_in_bf16(monkeypatch):
    from gradroute.routing import layers

    oracle = computed(torch.float64, None)
    monkeypatch.setattr(layers.RoutedLinear, "_plain_weights", lambda self, names: None)
    rounded = error(computed(torch.float32, torch.bfloat16), oracle)
    assert min(rounded) > 1e-4 and max(rounded) < 0.02


def test_the_base_is_not_rounded_and_what_an_example_may_not_change_stays_exactly_zero():
    frozen = RoutingPolicy.parse("absorb", ("good", "bad"))
    model = tiny_routed(dtype=torch.float32)
    with low_rank_products(model, torch.bfloat16), routed(model, frozen, ["bad"] * 6):
        mean_loss(model, tiny_batch()).backward()
    assert not any(bool(g.any()) for n, g in gradients_of(model).items() if ".good." in n)
    for layer in lora_layers(model).values():
        for name in layer.lora_B:
            adapter_weights(layer, name)[1].data.zero_()
    with routed(model, frozen, ["bad"] * 6):
        plain = model(**tiny_batch().inputs)
    with low_rank_products(model, torch.bfloat16), routed(model, frozen, ["bad"] * 6):
        assert torch.equal(model(**tiny_batch().inputs).logits, plain.logits)


def test_products_are_as_before_after_the_scope_and_after_an_error():
    model = tiny_routed(dtype=torch.float32).eval()
    before = model(**tiny_batch().inputs).logits
    with pytest.raises(ZeroDivisionError), low_rank_products(model, torch.bfloat16):
        assert not torch.equal(model(**tiny_batch().inputs).logits, before)
        raise ZeroDivisionError
    assert torch.equal(model(**tiny_batch().inputs).logits, before)


def test_the_setting_is_read_and_others_are_refused():
    assert load_config(None).train.low_rank_dtype == "fp32"
    assert load_config(None, ["train.low_rank_dtype=bf16"]).train.low_rank_dtype == "bf16"
    with pytest.raises(Exception, match="fp32"):
        load_config(None, ["train.low_rank_dtype=fp8"])
