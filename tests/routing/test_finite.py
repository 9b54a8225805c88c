"""Where weights are finite, an adapter is set to 0 where it is off, with the same numbers."""

import pytest
import torch
from routing.tiny import gradients_of, mean_loss, randomise, tiny_base, tiny_batch

from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.routing.contexts import routed, routed_finite
from gradroute.routing.policy import NAMED_POLICIES, RoutingPolicy
from gradroute.routing.scopes import RoutedScope

LABELS = ["bad", "good", "unlabeled", "good", "bad", "unlabeled"]
OWN = {
    "bad": {"good": "detach", "bad": "update", "third": "ablate"},
    "unlabeled": {"good": {"update": 0.25}, "bad": "ablate", "third": "detach"},
    "good": {"good": "update", "bad": "ablate", "third": "freeze"},
}
TABLES = [*NAMED_POLICIES, "own"]


def model_and_policy(table):
    names = ("good", "bad", "third") if table == "own" else ("good", "bad")
    model = attach_adapters(
        tiny_base(), {name: AdapterSpec(rank=2 + i) for i, name in enumerate(names)}
    )
    randomise(model)
    return model.train(), RoutingPolicy.parse(OWN if table == "own" else table, names)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_setting_to_zero_gives_the_gradients_of_leaving_out(table, by_token):
    model, policy = model_and_policy(table)
    batch = tiny_batch()
    labels = torch.tensor(policy.label_ids(LABELS))
    if by_token:
        labels = labels[:, None].repeat(1, batch.input_ids.shape[1])
        labels[:, 3:] = labels.flip(0)[:, 3:]
    found = []
    for scope_of in (routed, routed_finite):
        with scope_of(model, policy, labels) as scope:
            loss = mean_loss(model, batch)
            loss.backward()
        found.append((loss.detach(), gradients_of(model), list(scope.ran())))
        model.zero_grad(set_to_none=True)
    (one, left_out, ran), (other, set_to_zero, also) = found
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    for name, gradient in left_out.items():
        torch.testing.assert_close(set_to_zero[name], gradient, rtol=0, atol=1e-13)
    for (name, gates), (same, others) in zip(ran, also, strict=True):
        assert name == same and torch.equal(gates, others)


def test_it_is_one_product_for_all_adapters_whatever_they_are_off_at():
    _, policy = model_and_policy("own")
    scope = RoutedScope(policy, torch.tensor(policy.label_ids(LABELS)), finite=True)
    [group] = scope.groups(torch.Size((6, 5)), torch.device("cpu"), policy.adapters)
    assert group.rows is None and group.adapters == (0, 1, 2)
    assert group.on is not None
    good, bad, third = group.on
    assert good is True
    assert isinstance(bad, torch.Tensor) and int(bad.sum()) == 10
    assert isinstance(third, torch.Tensor) and int(third.sum()) == 20
    assert group.update[1] is bad  # closed where it is off already
    assert scope.groups(torch.Size((6, 5)), torch.device("cpu"), ("bad",))[0].rows is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_broken_weights_reach_only_the_faster_scope_and_never_as_a_wrong_number(side, value):
    model, policy = model_and_policy("anchored")
    for name, parameter in model.named_parameters():
        if ".bad." in name and side in name:
            parameter.data.fill_(value)
    batch, found = tiny_batch(), []
    for scope_of in (routed, routed_finite):
        with scope_of(model, policy, ["good"] * 6):
            assert mean_loss(model, batch).isfinite()  # off for all: not computed
        inputs = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        with scope_of(model, policy, ["good"] * 5 + ["bad"]):
            clean = model(inputs_embeds=inputs, attention_mask=batch.attention_mask).logits[:5]
            clean.sum().backward()
        assert inputs.grad is not None
        found.append((clean.detach(), inputs.grad[:5]))
    left_out, set_to_zero = found
    assert all(one.isfinite().all() for one in left_out)
    assert any(one.isnan().any() for one in set_to_zero)
    for one, other in zip(left_out, set_to_zero, strict=True):
        right = torch.isclose(other, one, rtol=1e-12, atol=1e-13)
        assert (right | other.isnan()).all()
