"""Which modules get adapters: by place and by name in every family, and what is left out."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_families import FAMILIES, tiny_family
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    Glm4MoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from gradroute.errors import ConfigError
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.routing.layers import lora_layers
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


SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "vocab_size": 24,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}


def made(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def mixture(kind: str) -> PreTrainedModel:
    """A mixture whose first layer is dense, and whose second has experts and a shared MLP."""
    if kind == "deepseek":
        ranks: dict[str, Any] = {
            "q_lora_rank": 4,
            "kv_lora_rank": 4,
            "qk_rope_head_dim": 2,
            "v_head_dim": 4,
        }
        few: dict[str, Any] = {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        }
        shared: dict[str, Any] = {"qk_nope_head_dim": 2, "n_shared_experts": 1}
        heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4}
        return made(DeepseekV3Config(**SIZES, **heads, **EXPERTS, **ranks, **few, **shared))
    if kind == "qwen2":
        few = {
            "num_experts": 4,
            "shared_expert_intermediate_size": 8,
            "mlp_only_layers": [0],
        }
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return made(Qwen2MoeConfig(**SIZES, **heads, **EXPERTS, **few))
    few = {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    return made(Glm4MoeConfig(**SIZES, **HEADS, **EXPERTS, **few))


@pytest.mark.parametrize("kind", ["deepseek", "qwen2", "glm4"])
def test_dense_and_shared_mlps_of_a_mixture_get_adapters_and_experts_do_not(kind: str):
    model = mixture(kind)
    shared = "shared_expert" if kind == "qwen2" else "shared_experts"
    halves = ("gate_proj", "up_proj", "down_proj")
    wanted = {f"model.layers.0.mlp.{half}" for half in halves}
    wanted |= {f"model.layers.1.mlp.{shared}.{half}" for half in halves}
    told = describe_targets(model, "mlp", "all")
    assert "2 expert tensors" in told and "router" in told
    adapted = attach_adapters(model, {"good": AdapterSpec(rank=2)}, targets="mlp", layers="all")
    assert {path.removeprefix("base_model.model.") for path in lora_layers(adapted)} == wanted
    config = adapted.peft_config["good"]
    assert isinstance(config, LoraConfig)
    assert not config.target_parameters and not config.rank_pattern
    assert config.target_modules == wanted


def hybrid() -> PreTrainedModel:
    states: dict[str, Any] = {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
    }
    return made(FalconH1Config(**SIZES, **HEADS, **states, mamba_n_groups=1, mamba_chunk_size=4))


def test_what_peft_refuses_is_left_out_of_a_place_by_name_and_count():
    told = describe_targets(hybrid(), "all-linear", "all")
    assert told.endswith("left out: 2 linear modules that PEFT does not adapt (mamba.out_proj)")
    adapted = attach_adapters(hybrid(), {"good": AdapterSpec(rank=2)}, layers="all")
    assert not any(path.endswith("out_proj") for path in lora_layers(adapted))
    assert any(path.endswith("mamba.in_proj") for path in lora_layers(adapted))


def test_what_peft_refuses_is_an_error_when_it_is_named():
    with pytest.raises(ConfigError, match=r"PEFT refuses it in a model of the type falcon_h1; lea"):
        attach_adapters(hybrid(), {"good": AdapterSpec(rank=2)}, targets=["out_proj"])


class SplitLinear(nn.Linear):
    """A linear module of a model's own that returns a pair, as some routers do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).chunk(2, -1)[0]


SplitLinear.__module__ = "transformers.models.some.modeling_some"


def test_a_linear_class_of_a_model_that_computes_something_else_is_left_out():
    model = tiny_family("llama", dtype=torch.float32)
    model.get_submodule("model.layers.1.mlp").up_proj = SplitLinear(16, 24)  # pyright: ignore
    told = describe_targets(model, "mlp", [1, 2])
    assert "adapters on 2 linear modules of layer 1; left out: 1 linear modules that PEFT" in told
    with pytest.raises(ConfigError, match="its kind, SplitLinear, computes something else"):
        find_targets(model, ["up_proj"], [1, 2])


class MixerAttention(nn.Module):
    """Attention that is called `mixer`, as every kind of layer is in some hybrids."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_attention_is_known_by_its_class_where_its_name_does_not_say_it():
    model = tiny_family("llama", dtype=torch.float32)
    layer = model.get_submodule("model.layers.1")
    layer.mixer = MixerAttention(nn.Linear(16, 16))  # pyright: ignore
    assert "model.layers.1.mixer.inner" in find_targets(model, "attention", [1, 2])
