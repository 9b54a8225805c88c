"""Which modules get adapters: by place and by name in every family, and what is left out."""

import pytest
import torch
from tiny_families import FAMILIES, tiny_family
from torch import nn

from gradroute.errors import ConfigError
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.routing.targets import describe_targets, find_targets

GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
SELF = {f"self_attn.{name}_proj" for name in "qkvo"}
NEOX = {"attention.query_key_value", "attention.dense"}
HALVES = {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}
ATTENTION = dict.fromkeys(FAMILIES, SELF) | {
    "phi3": {"self_attn.qkv_proj", "self_attn.o_proj"},
    "gpt2": {"attn.c_attn", "attn.c_proj"},
    "gpt-neox": NEOX,
    "opt": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"},
    "falcon": {"self_attention.query_key_value", "self_attention.dense"},
}
MLP = dict.fromkeys(FAMILIES, GATED) | {
    "phi3": {"mlp.gate_up_proj", "mlp.down_proj"},
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
    "gpt-neox": HALVES,
    "opt": {"fc1", "fc2"},
    "falcon": HALVES,
    "mixtral": set(),
    "qwen3-moe": set(),
}


def inner(names: list[str]) -> set[str]:
    """Names within their layer, which is the second of two everywhere."""
    assert all(".1." in name for name in names)
    return {name.partition(".1.")[2] for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_found_by_where_a_module_stands(family: str):
    model = tiny_family(family, dtype=torch.float32)
    assert inner(find_targets(model, "attention", "last-half")) == ATTENTION[family]
    assert inner(find_targets(model, "all-linear", "last-half")) == ATTENTION[family] | MLP[family]
    if MLP[family]:
        assert inner(find_targets(model, "mlp", "last-half")) == MLP[family]
        both = find_targets(model, ["mlp", "attention"], "last-half")
        assert both == find_targets(model, "all-linear", "last-half")
    else:
        with pytest.raises(ConfigError, match="targets mlp in layers last-half match no module of"):
            find_targets(model, "mlp", "last-half")


def test_places_and_names_may_be_mixed():
    found = find_targets(tiny_family("llama"), ["attention", "up_proj"], [1, 2])
    assert inner(found) == SELF | {"mlp.up_proj"}


def test_what_matches_nothing_lists_the_places_and_the_candidates():
    sentence = "use all-linear, attention, mlp or names among its linear modules: dense, dense_4h"
    with pytest.raises(ConfigError, match=sentence):
        find_targets(tiny_family("falcon"), ["q_proj"], "all")


def test_what_a_mixture_of_experts_leaves_out_is_counted_and_said():
    told = describe_targets(tiny_family("mixtral"), "all-linear", "all")
    assert told == (
        "adapters on 8 linear modules of layers 0 to 1; left out: 4 expert tensors "
        "(mlp.experts.gate_up_proj, mlp.experts.down_proj), 2 routers (mlp.gate)"
    )
    told = describe_targets(tiny_family("qwen3-moe"), "attention", "last-half")
    assert told == "adapters on 4 linear modules of layer 1"


class Mixture(nn.Module):
    """A layer as older models have it: experts and router are linear modules."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"out": nn.Linear(4, 4)})
        self.moe = nn.ModuleDict(
            {
                "gate": nn.Linear(4, 2),
                "experts": nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 4)}) for _ in range(2)),
                "shared_experts": nn.ModuleDict({"up": nn.Linear(4, 4)}),
            }
        )


def test_experts_and_routers_that_are_linear_modules_are_left_out_too():
    model = nn.ModuleDict({"layers": nn.ModuleList(Mixture() for _ in range(2))})
    assert inner(find_targets(model, "all-linear", [1, 2])) == {"attn.out", "moe.shared_experts.up"}
    assert inner(find_targets(model, "mlp", [1, 2])) == {"moe.shared_experts.up"}
    told = describe_targets(model, "mlp", [1, 2])
    assert told.endswith(
        "left out: 2 linear modules of experts (moe.experts.0.up, moe.experts.1.up), "
        "1 routers (moe.gate)"
    )
    assert inner(find_targets(model, ["moe.gate"], [1, 2])) == {"moe.gate"}
    with pytest.raises(
        ConfigError, match="is an expert of a mixture, which sees tokens in an order"
    ):
        find_targets(model, ["up"], [1, 2])


def test_an_adapter_on_a_tied_output_head_is_refused():
    specs = {"good": AdapterSpec(rank=2)}
    with pytest.raises(ConfigError, match="the target lm_head is tied to the embedding"):
        attach_adapters(tiny_family("llama-tied"), specs, targets=["lm_head"], layers="all")
    attach_adapters(tiny_family("llama"), specs, targets=["lm_head"], layers="all")
