"""A base in few bits is called as a module; gradients are those of the weights it stands for."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit
from oracles import routed_reference
from peft import PeftModel
from peft.utils.integrations import dequantize_bnb_weight
from routing.tiny import (
    adapter_weights_of,
    largest_error,
    mean_loss,
    randomise,
    scalings_of,
    tiny_batch,
)
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gradroute.routing.adapters import AdapterSpec, ablated, attach_adapters, routed
from gradroute.routing.policy import RoutingPolicy

LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]
SPECS = {"good": AdapterSpec(rank=3, alpha=2.0), "bad": AdapterSpec(rank=2)}
FP32 = 2e-5  # relative to the largest gradient


class Int8Linear(nn.Linear):
    """As the layers of other libraries: linear by class, its weight in whole numbers."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.plain())

    def plain(self) -> Tensor:
        scale = self.scale
        assert isinstance(scale, Tensor)
        return self.weight * scale


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=24, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def in_4bit(linear: nn.Linear) -> nn.Module:
    packed = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32,
        quant_type="nf4",
    )  # fmt: skip
    packed.load_state_dict({"weight": linear.weight.detach()})
    packed.to("cpu")
    packed.support_avx512bf16_for_cpu = False  # or it packs its weights anew in evaluation
    return packed


def plain_weight(module: Any) -> Tensor:
    if isinstance(module, Int8Linear):
        return module.plain()
    return dequantize_bnb_weight(module.weight)


def quantized(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with linear layers in few bits, and the float64 model that it stands for."""
    make = {"int8": Int8Linear, "nf4": in_4bit}[kind]
    packed, plain = llama(), llama()
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                few = make(module)
                parent, _, child = name.rpartition(".")
                setattr(packed.get_submodule(parent), child, few)
                module.weight.copy_(plain_weight(few))
    if kind == "nf4":
        packed.is_loaded_in_4bit = True  # pyright: ignore - as transformers marks it
    for tensor in (*plain.parameters(), *plain.buffers()):
        tensor.data = tensor.data.double()
    return packed.requires_grad_(False), plain.eval()


def routed_model(packed: PreTrainedModel) -> PeftModel:
    model = attach_adapters(packed, SPECS, layers="all")
    randomise(model, std=0.1)
    return model


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_routed_gradients_are_those_of_the_dequantized_weights(
    kind: str, record_testsuite_property: Any
):
    packed, plain = quantized(kind)
    model = routed_model(packed)
    batch, policy = tiny_batch(), RoutingPolicy.parse("anchored", list(SPECS))
    with routed(model.train(), policy, LABELS):
        loss = mean_loss(model, batch)
        loss.backward()
    weights = {
        name: {path: (a.double(), b.double()) for path, (a, b) in modules.items()}
        for name, modules in adapter_weights_of(model).items()
    }
    names = [[label] * batch.input_ids.shape[1] for label in LABELS]
    reference = routed_reference(
        plain, weights, scalings_of(model), policy.to_plain(), batch.input_ids,
        batch.attention_mask, batch.targets, names,
    )  # fmt: skip
    largest = max(
        float(g.abs().max()) for m in reference.gradients.values() for p in m.values() for g in p
    )
    assert abs(loss.item() - reference.loss.item()) < 1e-5
    error = largest_error(model, reference.gradients)
    record_testsuite_property(f"error {kind}", error / largest)
    assert 0 < error < FP32 * largest


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_ablated_adapter_on_a_base_in_few_bits_was_never_there(kind: str):
    packed, _ = quantized(kind)
    alone = attach_adapters(copy.deepcopy(packed), {"good": SPECS["good"]}, layers="all").eval()
    model = attach_adapters(packed, SPECS, layers="all").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".bad." in name:
                weight.fill_(torch.nan)
        batch = tiny_batch()
        with ablated(model, "bad_ablated"):
            found = model(**batch.inputs, use_cache=False).logits
        assert torch.equal(found, alone(**batch.inputs, use_cache=False).logits)
