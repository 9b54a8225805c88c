"""Merging: `W + s B A` rounded once, and only into weights that are nobody else's."""

from typing import Any

import pytest
import torch
from small_llama import small_llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradroute.errors import ConfigError
from gradroute.export.merging import distance_in_ulps, exact_update, merge
from gradroute.export.rank_concat import OneAdapter

NAME = "model.layers.1.mlp.up_proj"


def layer_of(model, name=NAME) -> Any:
    return model.get_submodule(name)


def adapter_for(weight, name=NAME, rank=3, transposed=False):
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = reversed(weight.shape) if transposed else weight.shape
    down = torch.randn(rank, inputs, generator=generator)
    up = torch.randn(outputs, rank, generator=generator)
    return OneAdapter({name: (down, up)}, rank, 5.0, transposed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merged_weight_is_the_nearest_number_to_the_exact_sum(dtype):
    model = small_llama()
    weight = layer_of(model).weight
    adapter = adapter_for(weight)
    down, up = (part.double() for part in adapter.modules[NAME])
    # Where the update nearly cancels the weight, a product in float32 would not do.
    weight.data[0] = -0.99 * (5 / 3 * up @ down)[0].float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge(model, adapter, dtype)
    exact = before[f"{NAME}.weight"].double() + 5 / 3 * up @ down
    merged = layer_of(model).weight
    assert merged.dtype == dtype
    assert distance_in_ulps(merged, exact) < 0.51
    up, down = up.float(), down.float()
    naive = (before[f"{NAME}.weight"] + 5 / 3 * (up @ down)).to(dtype)
    assert (distance_in_ulps(naive, exact) > 1) == (dtype == torch.float32)
    for name, tensor in model.state_dict().items():
        assert name == f"{NAME}.weight" or tensor.equal(before[name])


def test_weights_that_are_stored_transposed_get_the_update_transposed():
    torch.manual_seed(0)
    model = small_llama()
    layer = Conv1D(5, 4)
    layer_of(model, "model.layers.1.mlp").up_proj = layer
    before = layer.weight.detach().clone()
    adapter = adapter_for(before, transposed=True)
    merge(model, adapter, torch.float32)
    down, up = adapter.modules[NAME]
    torch.testing.assert_close(layer.weight.data, before + 5 / 3 * (up @ down).T)


def test_the_slow_update_is_the_product():
    adapter = adapter_for(torch.zeros(6, 4))
    down, up = adapter.modules[NAME]
    own = {f"base_model.model.{NAME}.lora_{k}.weight": t for k, t in (("A", down), ("B", up))}
    torch.testing.assert_close(
        exact_update(own, NAME, 0.7), 0.7 * up.double() @ down.double(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_unit_in_the_last_place_is_the_distance_to_the_next_number(dtype):
    numbers = torch.tensor([1.0, 1.5, 3.0, -0.3, 1000.0, 1e-3]).to(dtype)
    up = torch.nextafter(numbers, torch.full_like(numbers, torch.inf))
    assert distance_in_ulps(numbers, numbers.double()) == 0
    assert distance_in_ulps(up, numbers.double()) == 1
    assert distance_in_ulps(numbers[:1], torch.tensor([float("nan")]).double()) == float("inf")


class Linear4bit(nn.Linear):
    """Named as a library's quantized layer is."""


def test_quantized_and_tied_weights_are_refused_by_name():
    model = small_llama()
    adapter = adapter_for(layer_of(model).weight)
    layer = layer_of(model, "model.layers.1.mlp")
    layer.up_proj.__class__ = Linear4bit
    with pytest.raises(ConfigError, match=rf"{NAME} is of the kind Linear4bit.*--format peft"):
        merge(model, adapter, torch.float32)
    layer.up_proj.__class__ = nn.Linear
    layer.gate_proj.weight = layer.up_proj.weight
    with pytest.raises(
        ConfigError, match=r"up_proj, whose weight is tied to that of .*gate_proj, which"
    ):
        merge(model, adapter, torch.float32)
