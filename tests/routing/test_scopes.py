"""What is in force when: entering, leaving, nesting, and the ways to use it wrongly."""

import copy

import pytest
import torch
from routing.tiny import (
    gradients_of,
    logits,
    mean_loss,
    tiny_base,
    tiny_batch,
    tiny_routed,
    to_floor,
)

from gradroute.errors import ConfigError
from gradroute.routing.adapters import ablated, routed
from gradroute.routing.policy import RoutingPolicy

PAIR = ("good", "bad")
POLICY = RoutingPolicy.parse("anchored", PAIR)
NONE = RoutingPolicy.parse("none", PAIR)
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]


@pytest.mark.parametrize("path", ["fast", "floor"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_training_forward_without_a_route_says_what_to_do(kind, path):
    model = tiny_routed(kind=kind)
    if path == "floor":
        to_floor(model)
    with pytest.raises(ConfigError, match=r"run the forward pass inside `with routed\(model"):
        mean_loss(model, tiny_batch())
    model.eval()
    logits(model)  # evaluation needs none


def test_in_eval_mode_and_without_a_scope_every_adapter_is_on():
    model = tiny_routed().eval()
    with ablated(model, "full"):
        assert torch.equal(logits(model), full := logits(model))
    assert torch.equal(logits(model), full)


def test_the_forward_pass_under_a_table_without_ablation_is_the_full_model():
    model = tiny_routed()
    with routed(model, RoutingPolicy.parse("absorb", PAIR), LABELS):
        inside = logits(model)
    assert torch.equal(inside, logits(model.eval()))


class Stop(Exception):
    pass


@pytest.mark.parametrize("scope", ["routed", "ablated"])
def test_an_exception_inside_a_scope_ends_it(scope):
    model = tiny_routed()
    opened = routed(model, POLICY, LABELS) if scope == "routed" else ablated(model, "base")
    with pytest.raises(Stop), opened:
        raise Stop
    with pytest.raises(ConfigError, match="no routing is in force"):
        mean_loss(model, tiny_batch())


def test_an_exception_inside_a_layer_ends_the_scope_too():
    model = tiny_routed()
    hook = model.get_submodule("base_model.model.model.layers.1").register_forward_pre_hook(fail)
    with pytest.raises(Stop), routed(model, POLICY, LABELS):
        mean_loss(model, tiny_batch())
    hook.remove()
    with pytest.raises(ConfigError, match="no routing is in force"):
        mean_loss(model, tiny_batch())


def fail(module, args):
    raise Stop


def test_the_innermost_scope_holds_and_the_outer_one_comes_back():
    model = tiny_routed()
    with ablated(model, "base"):
        base = logits(model)
    with routed(model, NONE, LABELS):
        outer = logits(model)
        with ablated(model, "base"):
            assert torch.equal(logits(model), base)
            with routed(model, NONE, LABELS):
                assert torch.equal(logits(model), outer)
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), outer)
    assert not torch.equal(outer, base)


def test_two_models_do_not_share_a_scope():
    one, other = tiny_routed(), tiny_routed()
    copied = copy.deepcopy(one)
    with routed(one, POLICY, LABELS):
        mean_loss(one, tiny_batch()).backward()
        for model in (other, copied):
            with pytest.raises(ConfigError, match="no routing is in force"):
                mean_loss(model, tiny_batch())
        with routed(copied, POLICY, LABELS):
            mean_loss(copied, tiny_batch()).backward()
    for name, gradient in gradients_of(one).items():
        assert torch.equal(gradients_of(copied)[name], gradient)


def test_a_wrapped_model_is_routed_like_the_model_itself():
    model = tiny_routed()
    with routed(torch.nn.Sequential(model), POLICY, LABELS):
        mean_loss(model, tiny_batch()).backward()


def test_label_names_and_label_ids_are_the_same_thing():
    found = []
    for labels in (LABELS, torch.tensor(POLICY.label_ids(LABELS))):
        model = tiny_routed()
        with routed(model, POLICY, labels):
            mean_loss(model, tiny_batch()).backward()
        found.append(gradients_of(model))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient)


@pytest.mark.parametrize("path", ["fast", "floor"])
@pytest.mark.parametrize(
    "labels", [LABELS[:5], torch.zeros(6, 5, dtype=torch.long), torch.zeros(7, dtype=torch.long)]
)
def test_labels_that_do_not_fit_the_batch_are_refused(labels, path):
    model = tiny_routed()
    if path == "floor":
        to_floor(model)
    with (
        routed(model, POLICY, labels),
        pytest.raises(ConfigError, match=r"one label per example .* or per position"),
    ):
        mean_loss(model, tiny_batch())


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["bad", "ugly"], "'ugly' has no row"),
        ("bad", "one label per example is needed"),
        (torch.tensor([0, 3]), r"must lie in 0…2 \(bad, unlabeled, good\), got 0…3"),
        (torch.tensor([-1, 0]), "got -1…0"),
    ],
)
def test_labels_that_the_table_does_not_know_are_refused(labels, sentence):
    with pytest.raises(ConfigError, match=sentence), routed(tiny_routed(), POLICY, labels):
        pass


def test_a_table_for_other_adapters_is_refused():
    table = {"x": {"good": "update", "ugly": "update"}}
    policy = RoutingPolicy.parse(table, ["good", "ugly"])
    opened = routed(tiny_routed(), policy, ["x"] * 6)
    with pytest.raises(ConfigError, match="the model has good, bad"), opened:
        pass


def test_a_model_without_routed_adapters_is_refused():
    opened = routed(tiny_base(), POLICY, LABELS)
    with pytest.raises(ConfigError, match="has no routed adapters"), opened:
        pass


def test_an_adapter_that_peft_switched_off_is_noticed_before_it_trains_nothing():
    model = tiny_routed()
    model.base_model.set_adapter("good")  # pyright: ignore
    cure = r"'bad' is switched off.*set_adapter\(\['good', 'bad'\]"
    with pytest.raises(ConfigError, match=cure), routed(model, POLICY, LABELS):
        pass
    with pytest.raises(ConfigError, match="'bad' is switched off"), ablated(model, "full"):
        pass
    with ablated(model, "bad_ablated"):
        logits(model)
    model.base_model.set_adapter(["good", "bad"])  # pyright: ignore
    for name, parameter in model.named_parameters():
        if ".bad." in name:
            parameter.requires_grad_(False)
    frozen = "updates the adapter 'bad', but its weights do not"
    with pytest.raises(ConfigError, match=frozen), routed(model, POLICY, LABELS):
        pass
    with routed(model, POLICY, ["good"] * 6):  # a batch that does not update it is fine
        mean_loss(model, tiny_batch()).backward()


def test_peft_can_still_choose_and_disable_adapters_in_eval_mode():
    model = tiny_routed().eval()
    with ablated(model, "bad_ablated"):
        good = logits(model)
    with ablated(model, "base"):
        base = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model.base_model.set_adapter("good")  # pyright: ignore
    assert torch.equal(logits(model), good)


def test_merged_adapters_cannot_be_routed_or_ablated():
    model = tiny_routed()
    model.base_model.merge_adapter(["bad"])  # pyright: ignore
    with pytest.raises(ConfigError, match="bad is merged"), routed(model, POLICY, LABELS):
        pass
    with pytest.raises(ConfigError, match="bad is merged"), ablated(model, "bad_ablated"):
        pass
    logits(model.eval())  # as it is, it runs


def test_the_base_and_the_adapters_not_in_the_table_keep_their_weights():
    model = tiny_routed()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora" not in n}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with routed(model, POLICY, LABELS):
        mean_loss(model, tiny_batch()).backward()
    optimizer.step()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items())


@pytest.mark.parametrize("policy", [POLICY, NONE])
def test_a_batch_that_a_model_flattens_on_the_way_keeps_its_labels(policy):
    """As OPT does before its second linear layer; a length that divides into no rows is refused."""
    with routed(model := tiny_routed(), policy, LABELS) as scope:
        flat = scope.groups(torch.Size([12]), torch.device("cpu"), PAIR)
        whole = scope.groups(torch.Size([6, 2]), torch.device("cpu"), PAIR)
        for one, other in zip(flat, whole, strict=True):
            assert one.adapters == other.adapters and one.scales == other.scales
            torch.testing.assert_close(one.update, other.update)
        with pytest.raises(ConfigError, match="labels are for 6 examples"):
            scope.groups(torch.Size([13]), torch.device("cpu"), PAIR)
    assert model.training
