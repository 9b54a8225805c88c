"""Losses of target tokens are those of all logits, without the logits of all positions."""

from typing import Any

import pytest
import torch
from routing.tiny import randomise, tiny_batch
from tiny_families import FAMILIES, VOCABULARY, tiny_family
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from gradroute.data.batches import TargetGroups
from gradroute.models import lm_head
from gradroute.models.lm_head import plain_head, run_model, summed_losses, token_losses
from gradroute.routing.adapters import AdapterSpec, ablated, attach_adapters, routed
from gradroute.routing.policy import RoutingPolicy

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
POLICY = RoutingPolicy.parse("anchored", ("good", "bad"))
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]
BATCH = tiny_batch()


def with_adapters(base):
    model = attach_adapters(base, {"good": AdapterSpec(rank=3), "bad": AdapterSpec(rank=3)})
    randomise(model)
    return model.train()


def targets_of(batch):
    rows = [(row != -100).nonzero()[:, 0] for row in batch.targets]
    width = batch.targets.shape[1]
    positions = torch.cat([row * width + at for row, at in enumerate(rows)])
    sizes, numbers = tuple(len(at) for at in rows), tuple(range(len(rows)))
    return TargetGroups(positions, batch.targets.flatten()[positions], sizes, numbers, numbers)


def reference(model, batch):
    """The loss of every example from all logits, token by token, in float64."""
    logits = model(**batch.inputs, use_cache=False).logits.double()
    rows = []
    for row, targets in zip(logits, batch.targets, strict=True):
        own = [-(row[t] - row[t].logsumexp(0))[y] for t, y in enumerate(targets) if y >= 0]
        rows.append(torch.stack(own).sum())
    return torch.stack(rows)


def losses(model, inputs, targets, head):
    return summed_losses(run_model(model, inputs, head), targets, head)


def gradients(model, sums):
    (sums * torch.linspace(0.5, 2.0, len(sums), dtype=sums.dtype)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("family", "at_once"), [*((name, 0) for name in FAMILIES), ("llama", 2**22), ("gpt2", 2**22)]
)
def test_losses_and_routed_gradients_are_those_of_all_logits(family, at_once, monkeypatch):
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(lm_head, "CHUNK", 2 * VOCABULARY)  # rows of two, so that groups are cut
    model = with_adapters(tiny_family(family))
    head = plain_head(model)
    assert head is not None
    with routed(model, POLICY, LABELS):
        wanted = reference(model, BATCH)
        expected = gradients(model, wanted)
        found = losses(model, BATCH.inputs | {"use_cache": False}, targets_of(BATCH), head)
        got = gradients(model, found)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert got.keys() == expected.keys()
    scale = max(g.abs().max() for g in expected.values())
    assert max((got[n] - expected[n]).abs().max() for n in got) <= 1e-12 * scale


def test_in_float32_chunks_equal_the_plain_loss_within_rounding(monkeypatch):
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", 0)
    model = with_adapters(tiny_family("llama", dtype=torch.float32))
    with routed(model, POLICY, LABELS):
        wanted = reference(model, BATCH)
        expected = gradients(model, wanted)
        found = losses(model, BATCH.inputs, targets_of(BATCH), plain_head(model))
        got = gradients(model, found)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, rtol=1e-6)
    scale = max(g.abs().max() for g in expected.values())
    assert max((got[n] - expected[n]).abs().max() for n in got) <= 2e-6 * scale


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else (result,)
        sizes = [part.numel() for part in parts if isinstance(part, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


@pytest.mark.parametrize("whole", [False, True])
def test_no_tensor_has_the_logits_of_a_batch_nor_of_an_example(whole, monkeypatch):
    """Shown to be seen, too: the plain way makes such a tensor."""
    vocabulary = 4096
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", 0)
    monkeypatch.setattr(lm_head, "CHUNK", 2 * vocabulary)
    model = with_adapters(tiny_family("llama", vocabulary=vocabulary, dtype=torch.float32))
    head = plain_head(model)
    chunks = []
    chunked = torch.nn.functional.linear_cross_entropy

    def spy(*args, options, **kwargs):  # what it does inside is not seen by a dispatch mode
        chunks.append(options.batch_chunk_size)
        return chunked(*args, options=options, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "linear_cross_entropy", spy)
    asked = BATCH.inputs, targets_of(BATCH), None if whole else head
    with routed(model, POLICY, LABELS), Largest() as largest:
        losses(model, *asked).sum().backward()
    assert (largest.numbers == BATCH.input_ids.numel() * vocabulary) is whole
    assert whole or largest.numbers < 2 * vocabulary
    assert chunks == ([] if whole else [2] * len(LABELS))


def test_a_model_that_caps_or_scales_its_logits_keeps_its_own_way():
    capped = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=4, final_logit_softcapping=30.0))
    scaled = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))
    for base in (capped, scaled):
        model = with_adapters(base.double().eval())
        assert plain_head(model) is None
        with routed(model, POLICY, LABELS):
            found = losses(model, BATCH.inputs, targets_of(BATCH), plain_head(model))
            assert torch.allclose(found, reference(model, BATCH), rtol=1e-12)
    plain = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=1.0))
    assert plain_head(with_adapters(plain.double().eval())) is not None


def test_a_head_that_somebody_watches_or_trains_is_called_as_it_is():
    model = with_adapters(tiny_family("llama"))
    head = plain_head(model)
    assert head is not None
    seen = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert plain_head(model) is None
    with ablated(model, "full"):
        losses(model, BATCH.inputs, targets_of(BATCH), plain_head(model))
    assert seen == [(6, 6, VOCABULARY)]
    hook.remove()
    assert plain_head(model) is head
    head.weight.requires_grad_(True)
    assert plain_head(model) is None


def test_trying_the_head_leaves_model_and_noise_as_they_were():
    model = with_adapters(tiny_family("llama"))
    model.get_submodule("base_model.model.model.layers.0").eval()
    modes = [module.training for module in model.modules()]
    noise = torch.random.get_rng_state()
    head = plain_head(model)
    assert "forward" not in vars(head)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), noise)


def test_a_forward_pass_that_fails_gives_the_head_back():
    model = with_adapters(tiny_family("llama"))
    head = plain_head(model)
    with ablated(model, "full"), pytest.raises(IndexError):
        losses(model, {"input_ids": torch.tensor([[99]])}, targets_of(BATCH), head)
    assert "forward" not in vars(head)


def test_a_bfloat16_model_has_its_losses_in_float32(monkeypatch):
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", 0)
    model = with_adapters(tiny_family("llama", dtype=torch.bfloat16))
    head = plain_head(model)
    with ablated(model, "full"):
        found = losses(model, BATCH.inputs, targets_of(BATCH), head)
        wanted = reference(model, BATCH)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, rtol=1e-2)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_losses_of_tokens_are_those_of_all_logits_whatever_the_chunk(family, monkeypatch):
    monkeypatch.setattr(lm_head, "LEAST", 5)
    monkeypatch.setattr(lm_head, "IN_CACHE", 1)
    model = with_adapters(tiny_family(family))
    head = plain_head(model)
    positions, tokens, sizes, *_ = targets_of(BATCH)
    with ablated(model, "bad_ablated"):
        found = token_losses(run_model(model, BATCH.inputs, head), positions, tokens, head)
        whole = token_losses(run_model(model, BATCH.inputs, None), positions, tokens, None)
        wanted = reference(model, BATCH)
    assert torch.allclose(found, whole, rtol=1e-12)
    assert torch.allclose(torch.stack([p.sum() for p in found.split(sizes)]), wanted, rtol=1e-12)
