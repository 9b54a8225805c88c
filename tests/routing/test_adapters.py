"""Attaching adapters: which modules, which initial weights, which errors, which state."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from routing.tiny import (
    LLAMA_LINEAR,
    PREFIX,
    adapter_weights_of,
    logits,
    randomise,
    tiny_base,
    tiny_routed,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.adapters import (
    AdapterSpec,
    adapter_parameters,
    adapter_state,
    attach_adapters,
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
SMALL = {"good": AdapterSpec(rank=2), "bad": AdapterSpec(rank=3)}


def targets_of(model: nn.Module) -> list[str]:
    return [path.removeprefix(PREFIX) for path in lora_layers(model)]


def test_all_linear_is_every_linear_module_of_the_layers_and_never_the_head():
    assert targets_of(attach_adapters(tiny_base(), SMALL, layers="all")) == [
        f"model.layers.{index}.{name}" for index in (0, 1) for name in LLAMA_LINEAR
    ]
    gpt2 = targets_of(attach_adapters(tiny_base("gpt2"), SMALL, layers="all"))
    assert gpt2 == [
        f"transformer.h.{index}.{name}"
        for index in (0, 1)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


@pytest.mark.parametrize(
    ("layers", "indices"), [("last-half", {1}), ("all", {0, 1}), ([0, 1], {0}), ([0, 2], {0, 1})]
)
def test_layers_choose_the_blocks(layers, indices):
    found = targets_of(attach_adapters(tiny_base(), SMALL, layers=layers))
    assert {int(name.split(".")[2]) for name in found} == indices
    assert len(found) == 7 * len(indices)


def test_targets_by_name_are_last_parts_of_names():
    found = targets_of(
        attach_adapters(tiny_base(), SMALL, targets=["mlp.up_proj", "v_proj"], layers="all")
    )
    assert found == [
        f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.v_proj", "mlp.up_proj")
    ]


def test_a_plain_torch_model_gets_adapters_too():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    model = attach_adapters(model, SMALL, layers="all").train()
    assert targets_of(model) == ["0", "2"]
    with routed(model, RoutingPolicy.parse("anchored", PAIR), ["bad", "good"]):
        model(torch.randn(2, 4)).sum().backward()


def test_a_target_that_matches_nothing_is_told_and_left_out():
    with pytest.warns(UserWarning, match="the targets w_proj match no module"):
        model = attach_adapters(tiny_base(), SMALL, targets=["q_proj", "w_proj"])
    assert targets_of(model) == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("targets", "layers", "sentence"),
    [
        ("w_proj", "last-half", "its linear modules: down_proj, gate_proj, k_proj, lm_head"),
        (["lm_head"], "last-half", "match no module of LlamaForCausalLM"),
        ("all-linear", [1, 3], r"0 <= first < end <= 2, the number of layers"),
        ("all-linear", [1, 1], r"\[1, 1\] cannot be used"),
        ("all-linear", "first-half", "must be last-half, all, or"),
        (["input_layernorm"], "all", "kind LlamaRMSNorm, which cannot be routed"),
        (["embed_tokens"], "all", "kind Embedding, which cannot be routed"),
    ],
)
def test_targets_that_cannot_be_used_are_refused_with_what_could(targets, layers, sentence):
    with pytest.raises(ConfigError, match=sentence):
        attach_adapters(tiny_base(), SMALL, targets=targets, layers=layers)


def test_a_model_without_layers_needs_layers_all():
    with pytest.raises(ConfigError, match="no list of transformer layers; use layers all"):
        attach_adapters(nn.Sequential(nn.Linear(4, 4)), SMALL)
    with pytest.raises(ConfigError, match="its linear modules: there are none"):
        attach_adapters(nn.Sequential(nn.Tanh()), SMALL, layers="all")


@pytest.mark.parametrize(
    ("adapters", "sentence"),
    [
        ({"default": AdapterSpec()}, "cannot be called 'default'"),
        ({"full": AdapterSpec()}, "cannot be called 'full'"),
        ({"a.b": AdapterSpec()}, "cannot be called 'a.b'"),
        ({"": AdapterSpec()}, "cannot be called ''"),
        ({"update": AdapterSpec()}, "cannot be called 'update', which the modules of PyTorch"),
        (
            {"good": AdapterSpec(), "train": AdapterSpec()},
            "called 'train'.* another name, .*train_1",
        ),
        ({"training": AdapterSpec()}, "cannot be called 'training'"),
        ({}, "no adapter was given"),
        ({"good": AdapterSpec(rank=0)}, "has rank 0"),
        ({"good": AdapterSpec(alpha=0.0)}, "has alpha 0.0"),
        ({"good": AdapterSpec(alpha=float("nan"))}, "has alpha nan"),
        ({"good": AdapterSpec(dropout=1.0)}, "has dropout 1.0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(adapters, sentence):
    base = tiny_base()
    with pytest.raises(ConfigError, match=sentence):
        attach_adapters(base, adapters)
    assert not lora_layers(base)


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "q_proj", "layers", "weight", "bias", "model", "base_model", "base_layer"),
        *("lora_A", "lora_B", "self_attn", "lm_head", "lora_embedding_A", "modules_to_save"),
    ],
)
def test_a_name_that_is_part_of_a_parameters_path_is_refused_before_anything_changes(name):
    base = tiny_base()
    before = {key: id(weight) for key, weight in base.named_parameters()}
    sentence = rf"cannot be called '{name}'.* part of the path (\w+\.)*{name}\b.* Call it"
    with pytest.raises(ConfigError, match=sentence):
        attach_adapters(base, {"good": AdapterSpec(rank=2), name: AdapterSpec(rank=2)})
    assert {key: id(weight) for key, weight in base.named_parameters()} == before
    config = LoraConfig(r=2, target_modules=["q_proj"])
    built = get_peft_model(tiny_base(), config, adapter_name="good")
    built.add_adapter(name, config)
    with pytest.raises(ConfigError, match=f"cannot be called '{name}'"):
        route_adapters(built)  # pyright: ignore


@pytest.mark.parametrize("name", ["mlps", "proj", "lora", "a", "q_proj_adapter", "attn", "h"])
def test_a_name_that_is_only_like_a_part_of_a_path_saves_as_it_is(name, tmp_path: Path):
    # PEFT tells adapters by whole components of paths.
    model = attach_adapters(tiny_base(), {"good": AdapterSpec(rank=2), name: AdapterSpec(rank=3)})
    randomise(model)
    model.save_pretrained(str(tmp_path))
    for own in ("good", name):
        state = adapter_state(model, own)
        saved = load_file(tmp_path / own / "adapter_model.safetensors")
        assert saved.keys() == state.keys()
        assert all(torch.equal(saved[key], state[key]) for key in state)


def test_a_name_is_refused_by_the_paths_of_the_model_at_hand():
    spec = {"h": AdapterSpec(rank=2)}
    with pytest.raises(ConfigError, match=r"'h'.*base_model.model.transformer.h.0.* h_adapter"):
        attach_adapters(tiny_base("gpt2"), spec)
    assert attach_adapters(tiny_base(), spec)


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_2", "olora", "OLoRA", "lora_ga", "corda"])
def test_initializations_that_change_the_base_are_refused_by_name(begun):
    base, config = tiny_base(dtype=torch.float32), LoraConfig(r=2, target_modules=["q_proj"])
    if begun in ("lora_ga", "corda"):  # these want data first; only the name counts here
        model = get_peft_model(base, config, adapter_name="good")
        model.peft_config["good"].init_lora_weights = begun  # pyright: ignore
    else:
        before = base.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
        config.init_lora_weights = begun  # pyright: ignore
        model = get_peft_model(base, config, adapter_name="good")
        layer = next(iter(lora_layers(model).values()))
        own = layer.get_base_layer().weight
        assert isinstance(own, torch.Tensor) and not torch.equal(own, before)
    with pytest.raises(ConfigError, match=f"'good' was initialized with .*{begun}.*changes"):
        route_adapters(model)  # pyright: ignore


@pytest.mark.parametrize("begun", [True, False, "gaussian", "orthogonal", "eva"])
def test_initializations_that_leave_the_base_alone_are_routed(begun):
    base = tiny_base(dtype=torch.float32)
    before = {key: weight.clone() for key, weight in base.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EVA without data
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=begun)
        model = get_peft_model(base, config, adapter_name="good")
    route_adapters(model)  # pyright: ignore
    after = {key.replace(".base_layer", ""): w for key, w in base.named_parameters()}
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


def test_a_model_with_adapters_is_refused_and_left_as_it_is():
    model = tiny_routed()
    with pytest.raises(ConfigError, match="has adapters already"):
        attach_adapters(model, SMALL)
    with pytest.raises(ConfigError, match="has adapters already"):
        attach_adapters(model.get_base_model(), SMALL)


def test_adapters_start_as_peft_starts_them_and_all_are_trainable():
    model = attach_adapters(tiny_base(dtype=torch.float32), SMALL, layers="all")
    expected = logits(tiny_base(dtype=torch.float32))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    for name, modules in adapter_weights_of(model).items():
        for a, b in modules.values():
            assert not b.any()
            bound = 1 / a.shape[1] ** 0.5
            assert a.abs().max() <= bound and a.std() > bound / 3
            assert a.shape[0] == SMALL[name].rank
            assert a.requires_grad and b.requires_grad
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
    assert next(iter(lora_layers(model).values())).scaling == {"good": 2.0, "bad": 2.0}


def test_alpha_over_rank_is_the_factor():
    model = attach_adapters(tiny_base(), {"good": AdapterSpec(rank=4, alpha=2.0)})
    assert next(iter(lora_layers(model).values())).scaling == {"good": 0.5}


@pytest.mark.parametrize("training", [True, False])
def test_attaching_keeps_the_training_mode(training):
    model = attach_adapters(tiny_base().train(training), SMALL)
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapter_weights_are_float32_whatever_the_base_is(dtype):
    model = attach_adapters(tiny_base(dtype=dtype), SMALL)
    assert {p.dtype for own in adapter_parameters(model).values() for p in own} == {torch.float32}


def states(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.clone()
        for name in adapter_parameters(model)
        for key, value in adapter_state(model, name).items()
    }


def test_initial_weights_depend_on_seed_name_and_module_alone():
    torch.manual_seed(0)
    one = states(attach_adapters(tiny_base(), SMALL, layers="all", seed=5))
    torch.manual_seed(1)
    # another order, another neighbor, fewer layers, another base dtype
    others = {"bad": SMALL["bad"], "style": AdapterSpec(rank=1), "good": SMALL["good"]}
    two = states(attach_adapters(tiny_base(dtype=torch.bfloat16), others, seed=5))
    shared = one.keys() & two.keys()
    assert len(shared) == 2 * 2 * 7
    for key in shared:
        assert torch.equal(one[key].float(), two[key])
    three = states(attach_adapters(tiny_base(), SMALL, layers="all", seed=6))
    drawn = [key for key in one if "lora_A" in key]
    assert all(not torch.equal(one[key], three[key]) for key in drawn)
    shapes: dict[tuple, list[Tensor]] = {}
    for key in drawn:
        shapes.setdefault(tuple(one[key].shape), []).append(one[key])
    for tensors in shapes.values():  # no two modules or adapters start alike
        assert len({tuple(t.flatten().tolist()) for t in tensors}) == len(tensors)


def test_attaching_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    attach_adapters(tiny_base(), SMALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapter_parameters_are_all_trainable_ones_in_a_stable_order():
    model, again = tiny_routed(), tiny_routed()
    own = adapter_parameters(model)
    assert list(own) == ["good", "bad"]
    assert {id(p) for ps in own.values() for p in ps} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    for name, parameters in own.items():
        shapes = [p.shape for p in adapter_parameters(again)[name]]
        assert [p.shape for p in parameters] == shapes
        assert all(p.shape[side] == 3 for p, side in zip(parameters, [0, 1] * 14, strict=True))


def test_adapter_state_is_what_peft_would_save():
    model = tiny_routed()
    for name in PAIR:
        theirs = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        ours = adapter_state(model, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_loading_a_state_changes_that_adapter_alone_and_is_exact():
    model, other = tiny_routed(), tiny_routed()
    randomise(other, seed=9)
    bad = states(model)
    load_adapter_state(model, "good", adapter_state(other, "good"))
    for key, value in states(model).items():
        name, _, path = key.partition("/")
        expected = adapter_state(other, "good")[path] if name == "good" else bad[key]
        assert torch.equal(value, expected)


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    state = dict(state)
    key = next(iter(state))
    if how == "missing":
        del state[key]
    elif how == "unknown":
        state["base_model.model.nowhere.lora_A.weight"] = state[key]
    else:
        state[list(state)[-1]] = torch.zeros(2, 2)
    return state


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "1 tensors are missing and 0 unknown"),
        ("unknown", "0 tensors are missing and 1 unknown, such as base_model.model.nowhere"),
        ("shape", r"is \[2, 2\], the model needs \[16, 3\]"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(how, sentence):
    model, other = tiny_routed(), tiny_routed()
    randomise(other, seed=9)
    before = states(model)
    with pytest.raises(ConfigError, match=sentence):
        load_adapter_state(model, "good", broken(adapter_state(other, "good"), how))
    assert all(torch.equal(value, before[key]) for key, value in states(model).items())
    with pytest.raises(ConfigError, match="no adapter 'ugly'; its adapters are good, bad"):
        adapter_state(model, "ugly")
