"""Weights that modules share: merged once where one module has several depths, else refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_families import tiny_family
from torch import Tensor
from transformers import PreTrainedModel

from gradroute.config.run_config import AdapterConfig
from gradroute.errors import ConfigError
from gradroute.export.merging import merge
from gradroute.export.rank_concat import OneAdapter
from gradroute.models.initial_adapters import merge_start_adapter, put_starts
from gradroute.probes.attack import merge_active_adapters
from gradroute.routing.adapters import (
    ablated,
    adapter_parameters,
    adapter_state,
    attach_adapters,
)
from gradroute.routing.policy import AblationMode
from gradroute.routing.shared_weights import merged_once, unshare

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.tensor([[1, 5, 9, 4, 7], [1, 8, 3, 3, 6]])
NAMES = ("good", "bad")


def looped() -> PreTrainedModel:
    """A Llama that calls one layer at two depths."""
    model = tiny_family("llama", dtype=torch.float32)
    inner: Any = model.get_decoder()
    inner.layers[1] = inner.layers[0]
    return model


def tied(what: str = "module") -> PreTrainedModel:
    """A Llama of which two layers share a projection: the weight, its memory, or the module."""
    model = tiny_family("llama", dtype=torch.float32)
    inner: Any = model.get_decoder()
    first, second = inner.layers[0].mlp, inner.layers[1].mlp
    if what == "module":
        second.up_proj = first.up_proj
    elif what == "weight":
        second.up_proj.weight = first.up_proj.weight
    else:
        second.up_proj.weight.data = first.up_proj.weight.data[:]
    return model


def zamba(kind: str = "zamba") -> PreTrainedModel:
    return tiny_family(kind, dtype=torch.float32)


MODELS = {
    "looped": looped,
    "one module in two layers": tied,
    "one weight": lambda: tied("weight"),
    "one memory": lambda: tied("memory"),
    "zamba": zamba,
    "zamba2": lambda: zamba("zamba2"),
    "tied head": lambda: tiny_family("llama-tied", dtype=torch.float32),
    "linear modules of its own class": lambda: tiny_family("falcon", dtype=torch.float32),
}

HALVES = [(name, "last-half") for name in ("one module in two layers", "one weight", "zamba")]
"""Adapters on one of the places that share."""


def adapted(base: PreTrainedModel, layers: str = "all") -> PeftModel:
    """A model with two adapters that matter."""
    model = attach_adapters(base, {n: AdapterConfig(rank=2) for n in NAMES}, layers=layers).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in adapter_parameters(model).values():
            for weight in weights:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def shipped(model: PeftModel) -> Tensor:
    with ablated(model, "bad_ablated"):
        return logits(model)


def good(model: PeftModel) -> OneAdapter:
    """The adapter `good` as an export takes it."""
    state = {
        k.removeprefix("base_model.model."): v for k, v in adapter_state(model, "good").items()
    }
    modules = {k.removesuffix(".lora_A.weight") for k in state if ".lora_A." in k}
    pairs = {n: (state[f"{n}.lora_A.weight"], state[f"{n}.lora_B.weight"]) for n in sorted(modules)}
    return OneAdapter(pairs, 2, 4.0, False)


@pytest.mark.parametrize(("name", "layers"), [*((name, "all") for name in MODELS), *HALVES])
def test_what_is_attacked_computes_what_ships_whatever_weights_are_shared(name: str, layers: str):
    model = adapted(MODELS[name](), layers)
    expected = shipped(model)
    merged = merge_active_adapters(model, AblationMode.parse("bad_ablated", NAMES))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["looped", "tied head", "linear modules of its own class"])
def test_an_export_adds_once_to_a_weight_that_one_module_uses_at_several_depths(name: str):
    model = adapted(MODELS[name]())
    base = MODELS[name]()
    merge(base, good(model), torch.float32)
    torch.testing.assert_close(logits(base), shipped(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("one module in two layers", "all"),
        ("one memory", "all"),
        ("zamba", "all"),
        ("zamba2", "all"),
        *HALVES[1:],
    ],
)
def test_an_export_of_modules_with_updates_of_their_own_on_one_weight_is_refused(
    name: str, layers: str
):
    adapter, base = good(adapted(MODELS[name](), layers)), MODELS[name]()
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(ConfigError, match=r"tied to that of model\.layers\.\S+, which .*--format"):
        merge(base, adapter, torch.float32)
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)


def saved(base: PreTrainedModel, folder: Path) -> Tensor:
    """Save an adapter that PEFT itself made for a model; returns the logits that it gives."""
    names = [
        n for n, _ in base.named_modules() if n.endswith(("q_proj", "up_proj", "gate_up_proj"))
    ]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=names, task_type="CAUSAL_LM")
    plain = get_peft_model(base, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape))
    plain.save_pretrained(str(folder))
    return logits(plain.eval())


def test_a_start_of_a_looped_model_is_merged_once_though_peft_saved_it_for_each_depth(tmp_path):
    expected = saved(looped(), tmp_path)
    base = looped()
    merge_start_adapter(base, str(tmp_path))
    torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_begins_from_one_that_peft_saved_for_each_depth(tmp_path):
    expected = saved(looped(), tmp_path)
    model = attach_adapters(
        looped(),
        {"good": AdapterConfig(rank=2, alpha=3)},
        targets=["q_proj", "up_proj"],
        layers="all",
    ).eval()
    put_starts(model, {"good": AdapterConfig(start=str(tmp_path))})
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one module in two layers", "one weight", "zamba", "zamba2"])
def test_a_start_that_changes_modules_of_one_weight_apart_is_refused_by_name(name, tmp_path):
    saved(MODELS[name](), tmp_path)
    base = MODELS[name]()
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(ConfigError, match=r"start_adapter: .* tied to that of .*adapters\.<name>"):
        merge_start_adapter(base, str(tmp_path))
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)


def test_equal_updates_of_two_modules_on_one_weight_are_merged_once():
    base = tied("weight")
    pair = (torch.randn(2, 16), torch.randn(24, 2))
    names = [f"model.layers.{at}.mlp.up_proj" for at in (0, 1)]
    once = merged_once(base, dict.fromkeys(names, pair), "it", "No.")
    assert list(once) == names[:1]
    with pytest.raises(ConfigError, match="tied to that of"):
        merged_once(base, {names[0]: pair, names[1]: (pair[0], -pair[1])}, "it", "No.")


def test_two_updates_for_the_depths_of_one_module_are_refused():
    names = [f"model.layers.{at}.mlp.up_proj" for at in (0, 1)]
    pairs = {name: (torch.randn(2, 16), torch.randn(24, 2)) for name in names}
    with pytest.raises(ConfigError, match="which are one module"):
        merged_once(looped(), pairs, "it", "No.")


def test_slices_of_one_memory_that_do_not_overlap_are_not_shared():
    bases = [tiny_family("llama", dtype=torch.float32) for _ in range(2)]
    for base in bases:
        decoder: Any = base.get_decoder()
        attention = decoder.layers[0].self_attn
        whole = torch.cat([attention.q_proj.weight, attention.k_proj.weight]).detach()
        attention.q_proj.weight.data, attention.k_proj.weight.data = whole[:16], whole[16:]
    model = adapted(bases[0])
    merge(bases[1], good(model), torch.float32)
    torch.testing.assert_close(logits(bases[1]), shipped(model), rtol=1e-4, atol=1e-4)
    assert unshare(model) == []
