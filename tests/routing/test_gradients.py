"""The gradient of one mixed batch against the oracle that gives every label its own adapters."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import OracleResult, routed_reference
from peft import PeftModel
from routing.tiny import (
    TinyBatch,
    adapter_weights_of,
    gradients_of,
    largest_error,
    mean_loss,
    scalings_of,
    tiny_base,
    tiny_batch,
    tiny_routed,
    to_floor,
)
from torch import nn

from gradroute.routing.adapters import routed
from gradroute.routing.policy import NAMED_POLICIES, ROUTES, RoutingPolicy

BOUND = 1e-10
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]
TABLES: dict[str, Any] = {name: name for name in NAMED_POLICIES} | {
    "detach": {
        "bad": {"good": "detach", "bad": "update"},
        "unlabeled": {"good": "update", "bad": "update"},
        "good": {"good": "update", "bad": "detach"},
    },
    "weights": {
        "bad": {"good": {"update": 0.25}, "bad": {"update": 2.0}},
        "unlabeled": {"good": {"update": 0.1}, "bad": "freeze"},
        "good": {"good": "update", "bad": "ablate"},
    },
    "all at once": {
        "bad": {"good": "ablate", "bad": {"update": 0.25}},
        "unlabeled": {"good": "detach", "bad": "freeze"},
        "good": {"good": {"update": 2.0}, "bad": "detach"},
    },
    "nothing on": {
        "bad": {"good": "ablate", "bad": "ablate"},
        "unlabeled": {"good": "freeze", "bad": "ablate"},
        "good": {"good": "ablate", "bad": "update"},
    },
}


def position_ids(policy: RoutingPolicy, batch: TinyBatch, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = batch.input_ids.shape
    return torch.randint(len(policy.labels), tuple(shape), generator=generator)


def backward(model: PeftModel, policy: RoutingPolicy, batch: TinyBatch, labels: Any) -> float:
    model.zero_grad()
    with routed(model, policy, labels):
        loss = mean_loss(model, batch)
        loss.backward()
    return loss.item()


def oracle(
    model: PeftModel, base: nn.Module, policy: RoutingPolicy, batch: TinyBatch, labels: Any
) -> OracleResult:
    if isinstance(labels, torch.Tensor):
        names = [[policy.labels[i] for i in row] for row in labels.tolist()]
    else:
        names = [[label] * batch.input_ids.shape[1] for label in labels]
    return routed_reference(
        base,
        adapter_weights_of(model),
        scalings_of(model),
        policy.to_plain(),
        batch.input_ids,
        batch.attention_mask,
        batch.targets,
        names,
    )


def check(
    model: PeftModel, base: nn.Module, policy: RoutingPolicy, batch: TinyBatch, labels: Any
) -> float:
    """Compare one routed backward pass with the oracle; returns the largest error."""
    loss = backward(model, policy, batch, labels)
    reference = oracle(model, base, policy, batch, labels)
    assert abs(loss - reference.loss.item()) < BOUND
    return largest_error(model, reference.gradients)


@pytest.mark.parametrize("per", ["row", "position"])
@pytest.mark.parametrize("table", TABLES)
def test_a_mixed_batch_gets_the_oracles_gradient(table, per, record_testsuite_property):
    policy = RoutingPolicy.parse(TABLES[table], ["good", "bad"])
    batch = tiny_batch()
    labels = LABELS if per == "row" else position_ids(policy, batch)
    model = tiny_routed({"good": 2, "bad": 4})
    reference = oracle(model, tiny_base(), policy, batch, labels)
    for path in ("fast", "floor"):
        if path == "floor":
            to_floor(model)
        loss = backward(model, policy, batch, labels)
        assert abs(loss - reference.loss.item()) < BOUND
        error = largest_error(model, reference.gradients)
        record_testsuite_property(f"error {table} {per} {path}", error)
        assert error < BOUND, path


@pytest.mark.parametrize("per", ["row", "position"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_three_adapters_of_unequal_ranks_and_both_architectures(
    kind, per, record_testsuite_property
):
    table = {
        "a": {"good": "update", "bad": "freeze", "style": "ablate"},
        "b": {"good": "detach", "bad": {"update": 2.0}, "style": "update"},
        "c": {"good": {"update": 0.25}, "bad": "ablate", "style": "freeze"},
    }
    policy = RoutingPolicy.parse(table, ["good", "bad", "style"])
    batch = tiny_batch()
    labels = list("abcabc") if per == "row" else position_ids(policy, batch)
    model = tiny_routed({"good": 3, "bad": 1, "style": 5}, kind=kind)
    reference = oracle(model, tiny_base(kind), policy, batch, labels)
    for path in ("fast", "floor"):
        if path == "floor":
            to_floor(model)
        backward(model, policy, batch, labels)
        error = largest_error(model, reference.gradients)
        record_testsuite_property(f"error three adapters {kind} {per} {path}", error)
        assert error < BOUND, path


def test_one_adapter_under_the_control_table_gets_the_plain_gradient():
    model = tiny_routed({"only": 4})
    policy = RoutingPolicy.parse("none", ["only"])
    assert check(model, tiny_base(), policy, tiny_batch(), LABELS) < BOUND


routes = st.sampled_from(ROUTES) | st.sampled_from([0.0, 0.3, 3.0]).map(lambda w: {"update": w})


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    table=st.fixed_dictionaries(
        {label: st.fixed_dictionaries({"x": routes, "y": routes}) for label in "abc"}
    ),
    ids=st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=3, max_size=3),
    per_position=st.booleans(),
)
def test_any_table_with_any_labels_gets_the_oracles_gradient(table, ids, per_position):
    model = tiny_routed({"x": 2, "y": 3}, layers=[1, 2])
    policy = RoutingPolicy.parse(table, ["x", "y"])
    batch = tiny_batch(rows=3, length=4)
    labels = torch.tensor(ids) if per_position else ["abc"[row[0]] for row in ids]
    assert check(model, tiny_base(), policy, batch, labels) < BOUND


class OddLinear(nn.Linear):
    """A base layer that only calling it can reproduce, like a quantized one."""

    def forward(self, input):
        return super().forward(input) * 1.5


def make_odd(model: nn.Module, names: str, how: str) -> None:
    """Make base layers multiply by 1.5 on top."""
    for name, module in model.named_modules():
        if name.endswith(names) and how == "subclass":
            module.__class__ = OddLinear  # pyright: ignore
        elif name.endswith(names) and how == "hook":
            module.register_forward_hook(lambda module, args, output: output * 1.5)
        elif name.endswith(names):
            plain = module.forward
            module.forward = lambda x, plain=plain: plain(x) * 1.5


@pytest.mark.parametrize("how", ["subclass", "hook", "forward of its own"])
def test_a_base_layer_that_is_not_plain_is_called_and_the_gradient_stays_exact(how):
    model, base = tiny_routed(), tiny_base()
    make_odd(model, "up_proj.base_layer", how)
    make_odd(base, "up_proj", "subclass")
    policy = RoutingPolicy.parse("anchored", ["good", "bad"])
    assert check(model, base, policy, tiny_batch(), LABELS) < BOUND


def test_freeze_is_not_detach():
    """Under `freeze` gradient still flows through the adapter to the layers below it."""
    lower = "model.layers.0.mlp.down_proj"
    gradients = {}
    for route in ("freeze", "detach"):
        table = {"bad": {"good": route, "bad": "update"}}
        model = tiny_routed()
        policy = RoutingPolicy.parse(table, ["good", "bad"])
        with routed(model, policy, ["bad"] * 6):
            mean_loss(model, tiny_batch()).backward()
        bad, good = adapter_weights_of(model)["bad"], adapter_weights_of(model)["good"]
        gradients[route] = bad[lower][1].grad
        for a, b in good.values():
            assert a.grad is not None and b.grad is not None
            assert not a.grad.any() and not b.grad.any()
    difference = (gradients["freeze"] - gradients["detach"]).norm()
    assert difference > 0.1 * gradients["freeze"].norm()


def test_a_row_labeled_for_one_adapter_gives_the_other_exactly_nothing():
    model = tiny_routed()
    policy = RoutingPolicy.parse("exclusive", ["good", "bad"])
    for label, untouched in (("bad", "good"), ("good", "bad")):
        model.zero_grad()
        with routed(model, policy, [label] * 6):
            mean_loss(model, tiny_batch()).backward()
        for a, b in adapter_weights_of(model)[untouched].values():
            assert a.grad is not None and not a.grad.any()
            assert b.grad is not None and not b.grad.any()


@pytest.mark.parametrize("table", ["anchored", "exclusive"])
def test_labels_follow_their_rows_through_any_permutation(table):
    policy = RoutingPolicy.parse(table, ["good", "bad"])
    batch = tiny_batch()
    found = []
    for order in (torch.arange(6), torch.tensor([4, 2, 0, 5, 1, 3])):
        model = tiny_routed(dtype=torch.float32)
        moved = TinyBatch(batch.input_ids[order], batch.attention_mask[order], batch.targets[order])
        with routed(model, policy, [LABELS[i] for i in order]):
            mean_loss(model, moved).backward()
        found.append(gradients_of(model))
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= 1e-5 * gradient.norm()


def test_one_swapped_pair_of_labels_is_far_from_rounding():
    policy = RoutingPolicy.parse("exclusive", ["good", "bad"])
    found = []
    for labels in (LABELS, ["unlabeled", "bad", *LABELS[2:]]):
        model = tiny_routed()
        with routed(model, policy, labels):
            mean_loss(model, tiny_batch()).backward()
        found.append(torch.cat([g.flatten() for g in gradients_of(model).values()]))
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()


def test_micro_batches_add_up_to_the_whole_batch():
    policy = RoutingPolicy.parse("anchored", ["good", "bad"])
    batch, parts = tiny_batch(), [slice(0, 2), slice(2, 3), slice(3, 6)]
    count = int((batch.targets != -100).sum())
    whole, split = tiny_routed(), tiny_routed()
    with routed(whole, policy, LABELS):
        mean_loss(whole, batch).backward()
    for part in parts:
        rows = TinyBatch(batch.input_ids[part], batch.attention_mask[part], batch.targets[part])
        share = int((rows.targets != -100).sum()) / count
        with routed(split, policy, LABELS[part]):
            (mean_loss(split, rows) * share).backward()
    for name, gradient in gradients_of(whole).items():
        torch.testing.assert_close(gradients_of(split)[name], gradient, rtol=0, atol=1e-13)


def dropout_gradients(table: str, labels: list[str], counted: list[bool]) -> dict:
    """Gradients with dropout drawn from a fixed seed and a loss over some of the rows."""
    model, batch = tiny_routed(dropout=0.3), tiny_batch()
    targets = torch.where(torch.tensor(counted)[:, None], batch.targets, -100)
    torch.manual_seed(7)
    with routed(model, RoutingPolicy.parse(table, ["good", "bad"]), labels):
        loss = mean_loss(model, TinyBatch(batch.input_ids, batch.attention_mask, targets))
        (loss * int((targets != -100).sum())).backward()
    return gradients_of(model)


def test_with_dropout_a_frozen_row_gives_nothing_and_the_others_all():
    """Dropout makes PEFT draw a mask per adapter, so the floor runs; its rows stay exact."""
    routed_ = dropout_gradients("absorb", LABELS, [True] * 6)
    others = dropout_gradients("none", LABELS, [label != "bad" for label in LABELS])
    everything = dropout_gradients("none", LABELS, [True] * 6)
    for name, gradient in routed_.items():
        wanted = others[name] if ".good." in name else everything[name]
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_dropout_is_drawn_in_training_and_not_in_eval():
    model, batch = tiny_routed(dropout=0.5), tiny_batch()
    policy = RoutingPolicy.parse("none", ["good", "bad"])
    with routed(model, policy, LABELS):
        assert mean_loss(model, batch) != mean_loss(model, batch)
        model.eval()
        assert mean_loss(model, batch) == mean_loss(model, batch)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_bfloat16_model_with_float32_adapters_trains(kind):
    model = tiny_routed(kind=kind, dtype=torch.bfloat16)
    exact = tiny_routed(kind=kind)
    policy = RoutingPolicy.parse("anchored", ["good", "bad"])
    for one in (model, exact):
        with routed(one, policy, LABELS):
            mean_loss(one, tiny_batch()).backward()
    wanted = gradients_of(exact)
    for name, gradient in gradients_of(model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() < 0.2 * wanted[name].norm()


@pytest.mark.parametrize("path", ["fast", "floor"])
def test_autocast_runs_and_stays_near_full_precision(path):
    policy = RoutingPolicy.parse("anchored", ["good", "bad"])
    found = []
    for cast in (True, False):
        model = tiny_routed(dtype=torch.float32)
        if path == "floor":
            to_floor(model)
        with routed(model, policy, LABELS):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
                loss = mean_loss(model, tiny_batch())
            loss.backward()
        found.append(gradients_of(model))
    for name, gradient in found[0].items():
        assert gradient.dtype == torch.float32
        assert (gradient - found[1][name]).norm() < 0.2 * found[1][name].norm()
