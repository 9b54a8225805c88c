"""What other code does to routed adapters: a scope names it rather than run another model."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from routing.tiny import logits, randomise, tiny_base, tiny_batch, tiny_routed
from torch import nn

from gradroute.errors import ConfigError
from gradroute.routing.adapters import (
    ablated,
    adapter_parameters,
    route_adapters,
    routed,
)
from gradroute.routing.layers import lora_layers
from gradroute.routing.peft_changes import watch_peft
from gradroute.routing.policy import RoutingPolicy

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]
PAIR = ("good", "bad")
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]
POLICY = RoutingPolicy.parse("anchored", PAIR)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the same shape and alpha as those of `tiny_routed`."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_routed(dtype=torch.float32).save_pretrained(str(folder))
    return folder


def merge(model: PeftModel, saved: Path) -> None:
    model.merge_adapter(["bad"])


def merge_all(model: PeftModel, saved: Path) -> None:
    model.merge_and_unload()


def unload(model: PeftModel, saved: Path) -> None:
    model.unload()


def swap(model: PeftModel, saved: Path) -> None:
    hotswap_adapter(model, str(saved / "bad"), "bad")


def load_over(model: PeftModel, saved: Path) -> None:
    model.load_adapter(str(saved / "bad"), "bad", is_trainable=True)


def assign(model: PeftModel, saved: Path) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items() if ".bad." in k}
    model.load_state_dict(state, strict=False, assign=True)


def replace(model: PeftModel, saved: Path) -> None:
    layer = list(lora_layers(model).values())[-1]
    weight = layer.lora_B["bad"].weight
    assert isinstance(weight, torch.Tensor)
    layer.lora_B["bad"].weight = nn.Parameter(weight.detach() + 1)


def replace_module(model: PeftModel, saved: Path) -> None:
    layer = next(iter(lora_layers(model).values()))
    width = layer.in_features
    assert width is not None
    layer.lora_A["bad"] = nn.Linear(width, layer.r["bad"], bias=False)


def delete(model: PeftModel, saved: Path) -> None:
    model.delete_adapter("bad")


def delete_in_a_layer(model: PeftModel, saved: Path) -> None:
    next(iter(lora_layers(model).values())).delete_adapter("bad")


def disable(model: PeftModel, saved: Path) -> None:
    model.base_model.disable_adapter_layers()  # pyright: ignore


def add(model: PeftModel, saved: Path) -> None:
    model.add_adapter("bad_too", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["good", "bad", "bad_too"])  # pyright: ignore


def add_to_the_embedding(model: PeftModel, saved: Path) -> None:
    model.add_adapter("bad_too", LoraConfig(r=2, target_modules=["embed_tokens"]))


CHANGES = [merge, merge_all, unload, swap, load_over, assign, replace, replace_module, delete]
CHANGES += [delete_in_a_layer, disable, add, add_to_the_embedding]


@pytest.mark.parametrize("change", CHANGES)
def test_scopes_refuse_adapters_that_other_code_has_changed_and_name_them(
    change: Callable[[PeftModel, Path], None], saved: Path
):
    model = tiny_routed(dtype=torch.float32).train()
    change(model, saved)
    with pytest.raises(ConfigError, match=r"\bbad"), routed(model, POLICY, LABELS):
        pass
    for mode in ("full", "bad_ablated"):
        with pytest.raises(ConfigError, match=r"\bbad"), ablated(model.eval(), mode):
            pass


@pytest.mark.parametrize("change", [swap, load_over, assign, replace, delete, add])
def test_routing_the_model_again_goes_on_with_what_is_there(
    change: Callable[[PeftModel, Path], None], saved: Path
):
    model = tiny_routed(dtype=torch.float32).eval()
    change(model, saved)
    route_adapters(model)
    with ablated(model, "full"):
        found = logits(model)
    for name, layer in lora_layers(model).items():
        assert not layer.merged, name
    with torch.no_grad():
        torch.testing.assert_close(found, logits(model))


def test_a_disabled_model_runs_again_when_it_is_enabled():
    model = tiny_routed().eval()
    refused = pytest.raises(ConfigError, match="disabled the adapters good, bad")
    with refused, model.disable_adapter(), ablated(model, "bad_ablated"):
        pass
    with ablated(model, "bad_ablated"):
        logits(model)


def test_changes_in_place_copies_and_moves_are_a_loops_own(saved: Path):
    model = tiny_routed(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameters in adapter_parameters(model).values():
        for weight in parameters:
            weight.grad = torch.ones_like(weight)
    optimizer.step()
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    randomise(model)
    model.to(torch.float64).to(torch.float32)
    for one in (model, copy.deepcopy(model)):
        with routed(one.train(), POLICY, LABELS):
            one(**tiny_batch().inputs)
        with ablated(one.eval(), "full"):
            logits(one)


def test_a_swap_is_noted_for_every_adapter_that_peft_changes_by_it(saved: Path):
    # PEFT 0.21 sets an adapter to 0 whose name has the swapped one's in it.
    names = {"good": 2, "bad": 3, "bad_two": 3}
    model = tiny_routed(names, dtype=torch.float32)
    hotswap_adapter(model, str(saved / "bad"), "bad")
    zeroed = adapter_parameters(model)["bad_two"]
    assert not any(bool(weight.any()) for weight in zeroed)
    changed = {
        part.adapter
        for layer in lora_layers(model).values()
        for part in layer.lora_A.values()
        if part.changed_by  # pyright: ignore
    }
    assert changed == {"bad", "bad_two"}


def test_peft_is_watched_once_and_a_model_that_is_not_routed_is_left_alone(saved: Path):
    watch_peft()
    load = PeftModel.load_adapter
    watch_peft()
    assert PeftModel.load_adapter is load
    model = get_peft_model(
        tiny_base(dtype=torch.float32), LoraConfig(r=3, target_modules=["q_proj"])
    )
    model.load_adapter(str(saved / "bad"), "other")  # pyright: ignore
    assert list(model.peft_config) == ["default", "other"]  # pyright: ignore


def test_a_model_merged_inside_a_scope_is_not_run():
    model = tiny_routed(dtype=torch.float32).eval()
    with pytest.raises(ConfigError, match="merged"), ablated(model, "full"):
        model.merge_adapter()
        logits(model)
