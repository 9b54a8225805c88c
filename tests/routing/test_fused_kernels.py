"""Kernels of other libraries that pass adapters by are refused, before and after routing."""

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
from routing.tiny import tiny_base, tiny_routed
from torch import nn

from gradroute.errors import ConfigError
from gradroute.routing.adapters import AdapterSpec, ablated, attach_adapters, routed
from gradroute.routing.policy import RoutingPolicy


def kernel(library: str, name: str) -> Callable[..., Any]:
    """A function as the library names its own."""

    def run(self: nn.Module, x: Any) -> Any:
        return x

    run.__module__, run.__name__ = f"{library}.kernels.lora", name
    return run


@pytest.mark.parametrize(
    ("library", "name", "place", "child", "cure"),
    [
        ("axolotl", "apply_lora_mlp_swiglu", "forward", "mlp", "lora_mlp_kernel"),
        ("axolotl", "apply_lora_qkv", "apply_qkv", "self_attn", "lora_qkv_kernel"),
        ("unsloth", "apply_lora_o", "apply_o", "self_attn", "with transformers"),
    ],
)
def test_a_fused_kernel_is_named_with_its_library_and_what_to_change(
    library: str, name: str, place: str, child: str, cure: str
):
    model = tiny_routed()
    module = model.get_base_model().get_submodule(f"model.layers.1.{child}")
    setattr(module, place, functools.partial(kernel(library, name), module))
    message = rf"layers\.1\.{child} runs {name} of {library}.*{cure}"
    policy = RoutingPolicy.parse("anchored", ["good", "bad"])
    with pytest.raises(ConfigError, match=message), routed(model, policy, ["bad"]):
        pass
    with pytest.raises(ConfigError, match=message), ablated(model, "full"):
        pass


def test_a_base_that_comes_patched_is_refused_before_adapters_are_attached():
    base = tiny_base()
    mlp = base.get_submodule("model.layers.0.mlp")
    mlp.forward = types.MethodType(kernel("axolotl", "apply_lora_mlp_swiglu"), mlp)
    with pytest.raises(ConfigError, match="apply_lora_mlp_swiglu of axolotl"):
        attach_adapters(base, {"good": AdapterSpec(2), "bad": AdapterSpec(2)}, layers="all")


def test_what_calls_the_projections_passes():
    model = tiny_routed()
    mlp = model.get_base_model().get_submodule("model.layers.1.mlp")
    original = mlp.forward
    mlp.forward = lambda x: original(x)
    attention = model.get_base_model().get_submodule("model.layers.1.self_attn")
    unfused = types.MethodType(kernel("axolotl", "original_apply_qkv"), attention)
    setattr(attention, "apply_qkv", unfused)  # noqa: B010
    with ablated(model, "full"):
        pass
