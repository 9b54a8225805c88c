"""The promise that a routed model stays a PEFT model like any other."""

import copy
import json
import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from routing.tiny import (
    LLAMA_LINEAR,
    logits,
    mean_loss,
    randomise,
    tiny_base,
    tiny_batch,
    tiny_routed,
)
from tiny_families import tiny_family
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.adapters import (
    ablated,
    adapter_parameters,
    adapter_state,
    load_adapter_state,
    route_adapters,
    routed,
)
from gradroute.routing.layers import lora_layers
from gradroute.routing.policy import RoutingPolicy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
PAIR = ("good", "bad")
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_adapters_load_in_plain_peft_with_the_same_logits(kind, tmp_path: Path):
    model = tiny_routed(kind=kind, dtype=torch.float32).eval()
    model.save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(PAIR)
    plain = PeftModel.from_pretrained(
        tiny_base(kind, dtype=torch.float32), str(tmp_path / "good"), adapter_name="good"
    )
    plain.load_adapter(str(tmp_path / "bad"), adapter_name="bad")
    assert not any("Routed" in type(m).__name__ for m in plain.modules())
    plain.eval()
    for mode, active in (("full", ["good", "bad"]), ("bad_ablated", ["good"])):
        plain.base_model.set_adapter(active)  # pyright: ignore
        with ablated(model, mode):
            assert relative(logits(model), logits(plain)) < 1e-5
    assert relative(logits(plain), logits(model)) > 1e-3  # the two modes do differ
    rerouted = route_adapters(plain)
    assert torch.equal(logits(rerouted), logits(model))


def test_the_saved_config_is_plain_lora_without_paths_of_this_machine(tmp_path: Path):
    tiny_routed().save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "good" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA" and saved["r"] == 3 and saved["lora_alpha"] == 2
    assert saved["use_dora"] is False and saved["task_type"] == "CAUSAL_LM"
    assert set(saved["target_modules"])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_one_adapter_is_the_mode_that_keeps_it(kind):
    model = tiny_routed(kind=kind, dtype=torch.float32).eval()
    with ablated(model, "bad_ablated"):
        expected = logits(model)
    merged = model.merge_and_unload(adapter_names=["good"])
    assert not lora_layers(merged)
    assert relative(logits(merged), expected) < 1e-5


def test_merging_in_place_and_deleting_an_adapter_work_as_in_peft():
    model = tiny_routed(dtype=torch.float32).eval()
    full = logits(model)
    with ablated(model, "bad_ablated"):
        good = logits(model)
    model.base_model.merge_adapter()  # pyright: ignore
    assert relative(logits(model), full) < 1e-5
    model.base_model.unmerge_adapter()  # pyright: ignore
    model.delete_adapter("bad")
    assert list(adapter_parameters(model)) == ["good"]
    route_adapters(model)
    with ablated(model, "full"):
        assert relative(logits(model), good) < 1e-5


def test_a_model_that_peft_built_is_routed_as_it_is():
    ours = tiny_routed(dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=2, target_modules=[n.split(".")[1] for n in LLAMA_LINEAR])
    theirs = get_peft_model(tiny_base(dtype=torch.float32), config, adapter_name="good")
    assert isinstance(theirs, PeftModel)
    theirs.add_adapter("bad", LoraConfig(**{**config.to_dict(), "lora_alpha": 3}))
    route_adapters(theirs)
    for name in PAIR:
        load_adapter_state(theirs, name, adapter_state(ours, name))
    policy = RoutingPolicy.parse("anchored", PAIR)
    for model in (ours, theirs):
        with routed(model, policy, LABELS):
            mean_loss(model.train(), tiny_batch()).backward()
    for name, parameters in adapter_parameters(ours).items():
        for one, other in zip(parameters, adapter_parameters(theirs)[name], strict=True):
            assert one.grad is not None and other.grad is not None
            assert torch.equal(one.grad, other.grad)


def test_an_adapter_added_later_is_noticed_and_routed_on_request():
    model = tiny_routed()
    model.add_adapter("late", LoraConfig(r=2, target_modules=["q_proj"]))
    table = {"x": {"good": "update", "bad": "update", "late": "update"}}
    policy = RoutingPolicy.parse(table, ["good", "bad", "late"])
    with pytest.raises(ConfigError, match="came to it after it was routed"):
        adapter_parameters(model)
    route_adapters(model)
    with routed(model, policy, ["x"] * 6):
        mean_loss(model, tiny_batch()).backward()
    assert all(p.grad is not None for p in adapter_parameters(model)["late"])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            dict(use_dora=True),
            r"'good' trains DoRA magnitudes \(use_dora\), which cannot be routed",
        ),
        (dict(lora_bias=True), r"trains a bias of its own \(lora_bias\)"),
        (dict(bias="lora_only"), r"trains biases of the base \(bias='lora_only'\)"),
        (dict(modules_to_save=["lm_head"]), r"trains whole modules \(modules_to_save\)"),
        (dict(trainable_token_indices=[1]), r"trains rows of the embedding \(trainable_token"),
        (dict(layer_replication=[(0, 2), (0, 2)]), r"trains repeated layers that share weights"),
        (dict(target_parameters=["up_proj.weight"]), r"trains adapters on bare parameters"),
        (dict(target_modules=["embed_tokens"]), "kind Embedding, which cannot be routed"),
    ],
)
def test_a_peft_model_that_cannot_be_routed_is_refused_by_name(config, sentence):
    whole = {"r": 2, "target_modules": ["q_proj"], **config}
    model = get_peft_model(tiny_base(), LoraConfig(**whole), adapter_name="good")
    assert isinstance(model, PeftModel)
    with pytest.raises(ConfigError, match=sentence):
        route_adapters(model)
    assert not any("Routed" in type(m).__name__ for m in model.modules())


@pytest.mark.parametrize(("side", "width"), [("lora_A", {3}), ("lora_B", {8, 16, 20})])
def test_a_hook_on_an_adapters_module_is_called_and_changes_no_gradient(side, width):
    model, hooked = tiny_routed(), tiny_routed()
    seen: list[torch.Size] = []
    for layer in lora_layers(hooked).values():
        part = getattr(layer, side)["good"]
        part.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    policy = RoutingPolicy.parse("anchored", PAIR)
    for one in (model, hooked):
        with routed(one, policy, LABELS):
            mean_loss(one, tiny_batch()).backward()
    assert len(seen) == 14 and {shape[-1] for shape in seen} == width
    for name, parameters in adapter_parameters(model).items():
        for one, other in zip(parameters, adapter_parameters(hooked)[name], strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-13)


def test_a_layer_that_does_not_call_a_and_b_is_refused():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8)})
    config = LoraConfig(r=2, target_modules=["attn", "out"])
    with pytest.raises(ConfigError, match="kind MultiheadAttention, which cannot be routed"):
        route_adapters(get_peft_model(model, config, adapter_name="good"))  # pyright: ignore


def test_trainable_weights_outside_of_adapters_are_refused():
    model = get_peft_model(tiny_base(), LoraConfig(target_modules=["q_proj"]), adapter_name="good")
    assert isinstance(model, PeftModel)
    model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    with pytest.raises(
        ConfigError, match=r"1 trainable tensors are in no adapter \(.*norm\.weight"
    ):
        route_adapters(model)
    assert not any("Routed" in type(m).__name__ for m in model.modules())


def test_an_adapter_of_another_kind_than_lora_is_refused_by_name():
    config = IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"])
    model = get_peft_model(tiny_base(), config, adapter_name="good")
    assert isinstance(model, PeftModel)
    with pytest.raises(ConfigError, match="adapter 'good' is of the kind IA3, which cannot be"):
        route_adapters(model)


def test_an_adapter_on_a_tied_output_head_that_peft_made_is_refused():
    config = LoraConfig(r=2, target_modules=["lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says so too, and goes on
        model = get_peft_model(tiny_family("llama-tied"), config, adapter_name="good")
    assert isinstance(model, PeftModel)
    with pytest.raises(ConfigError, match="lm_head is tied to the embedding"):
        route_adapters(model)


def test_an_adapter_with_a_bias_that_came_later_still_runs_as_peft_runs_it():
    model = tiny_routed().eval()
    model.add_adapter("late", LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    model.base_model.set_adapter(["good", "late"])  # pyright: ignore
    model.eval()
    before = logits(model)
    for layer in lora_layers(model).values():
        if "late" in layer.lora_B:
            nn.init.ones_(layer.lora_B["late"].bias)  # pyright: ignore
    assert not torch.allclose(logits(model), before)


def test_a_peft_model_with_the_default_adapter_is_refused():
    model = get_peft_model(tiny_base(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert isinstance(model, PeftModel)
    with pytest.raises(ConfigError, match="cannot be called 'default'"):
        route_adapters(model)


def test_rank_stabilised_scaling_of_a_peft_model_is_kept():
    config = LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["q_proj"])
    model = get_peft_model(tiny_base(), config, adapter_name="good")
    assert isinstance(model, PeftModel)
    randomise(model)
    expected = logits(model.eval())
    torch.testing.assert_close(logits(route_adapters(model)), expected, rtol=0, atol=1e-12)
    assert next(iter(lora_layers(model).values())).scaling == {"good": 1.0}


def train(model: nn.Module, steps: int, policy: RoutingPolicy | None) -> list[Tensor]:
    own = [p for n, p in model.named_parameters() if ".good." in n]
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    for step in range(steps):
        batch = tiny_batch(seed=step)
        if policy is None:
            mean_loss(model, batch).backward()
        else:
            with routed(model, policy, ["good"] * 6):
                mean_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in own]


def test_without_bad_rows_training_is_plain_peft_training_of_good():
    policy = RoutingPolicy.parse("separate", PAIR)
    ours = tiny_routed(dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=2, target_modules=[n.split(".")[1] for n in LLAMA_LINEAR])
    plain = get_peft_model(tiny_base(dtype=torch.float32), config, adapter_name="good").train()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if "lora_" in name:
                weight.copy_(ours.get_parameter(name))
    for one, other in zip(train(ours, 20, policy), train(plain, 20, None), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_a_deep_copy_is_a_model_of_its_own():
    model = tiny_routed().eval()
    copied = copy.deepcopy(model)
    with ablated(model, "base"):
        base = logits(model)
        assert not torch.equal(logits(copied), base)
    assert torch.equal(logits(copied), logits(model))


def test_the_peft_release_is_one_that_the_package_allows():
    found = re.match(r"(\d+)\.(\d+)", peft.__version__)
    assert found and (int(found[1]), int(found[2])) >= (0, 21)
