"""One optimizer step: who moves, by how much, and who stays bit-identical."""

import pytest
import torch
from small_llama import small_llama

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import TokenizedExample, collate
from gradroute.errors import ConfigError, NumericError
from gradroute.routing.adapters import AdapterSpec, adapter_parameters, attach_adapters
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.gradient_norms import label_gradient_norms
from gradroute.train.optimizer import (
    build_optimizer,
    load_optimizer_state,
    optimizer_tensors,
    schedule,
)
from gradroute.train.step import accumulate_gradients, loss_weights, train_step

ADAPTERS = ("good", "bad")
ABSORB = RoutingPolicy.parse("absorb", ADAPTERS)


def settings(
    learning_rate: float | None = None, weight_decay: float = 0.1, clip: float | None = 1.0
) -> AdapterConfig:
    return AdapterConfig(learning_rate=learning_rate, weight_decay=weight_decay, clip=clip)


def routed_model(dtype=torch.float64):
    shape, base = AdapterSpec(rank=3), small_llama(dtype)
    return attach_adapters(base, dict.fromkeys(ADAPTERS, shape), layers="all").train()


def batch(labels, seed=0, policy=ABSORB, lengths=None):
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for i, label in enumerate(labels):
        length = lengths[i] if lengths else 6 + i % 4
        ids = tuple(torch.randint(3, 40, (length,), generator=draw).tolist())
        rows.append(
            TokenizedExample(
                id=f"row-{seed}-{i}",
                input_ids=ids,
                target_start=0,
                label_id=policy.label_ids([label])[0],
                true_label="bad" if label == "bad" else "good",
            )
        )
    return collate(rows, pad_id=0)


def snapshot(model, optimizer, adapter):
    parameters = adapter_parameters(model)[adapter]
    state = [value.clone() for p in parameters for _, value in sorted(optimizer.state[p].items())]
    return [p.detach().clone() for p in parameters] + state


def step(model, optimizer, batches, policy=ABSORB, rate=1.0, loss_mean="token"):
    return train_step(model, optimizer, batches, policy, loss_mean=loss_mean, rate=rate)


def test_bad_only_steps_leave_a_warm_good_adapter_and_its_optimizer_state_bit_identical():
    model = routed_model(torch.float32)
    optimizer = build_optimizer(model, {name: settings() for name in ADAPTERS}, 1e-2)
    for i in range(5):
        step(model, optimizer, [batch(["bad", "unlabeled", "unlabeled"], seed=i)])
    good, bad = (snapshot(model, optimizer, name) for name in ADAPTERS)
    for i in range(5, 10):
        report = step(model, optimizer, [batch(["bad", "bad"], seed=i)])
        assert report.updated == {"bad"}
    assert all(map(torch.equal, good, snapshot(model, optimizer, "good")))
    assert not any(map(torch.equal, bad, snapshot(model, optimizer, "bad")))
    report = step(model, optimizer, [batch(["unlabeled"], seed=11)])
    assert report.updated == {"good", "bad"}
    assert not any(map(torch.equal, good, snapshot(model, optimizer, "good")))


def test_a_bad_gradient_a_thousand_times_larger_changes_nothing_in_good():
    after = []
    for factor in (1.0, 1000.0):
        model = routed_model()
        optimizer = build_optimizer(model, {name: settings() for name in ADAPTERS}, 1e-2)
        hooks = [
            p.register_hook(lambda grad, factor=factor: grad * factor)
            for p in adapter_parameters(model)["bad"]
        ]
        step(model, optimizer, [batch(["bad", "unlabeled"])])
        after.append([p.detach().clone() for p in adapter_parameters(model)["good"]])
        for hook in hooks:
            hook.remove()
    assert all(map(torch.equal, *after))


@pytest.mark.parametrize("loss_mean", ["token", "example"])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(loss_mean):
    model = routed_model()
    labels, lengths = ["bad", "unlabeled", "good", "bad"], [5, 9, 7, 12]
    policy = RoutingPolicy.parse("anchored", ADAPTERS)
    whole = batch(labels, policy=policy, lengths=lengths)
    parts = [whole.rows(torch.tensor([0, 1])), whole.rows(torch.tensor([2, 3]))]
    gradients = []
    for batches in ([whole], parts):
        report = accumulate_gradients(model, batches, policy, loss_mean)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        losses = report.loss
        model.zero_grad()
    assert losses > 0
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_token_mean_weighs_tokens_and_example_mean_weighs_examples():
    batches = [batch(["bad", "bad"], lengths=[3, 5]), batch(["good"], lengths=[9])]
    per_token = loss_weights(batches, "token")
    per_example = loss_weights(batches, "example")
    assert torch.cat(per_token).tolist() == pytest.approx([1 / 14] * 3)
    assert torch.cat(per_example).tolist() == pytest.approx([1 / 6, 1 / 12, 1 / 24])


def test_label_gradient_norms_belong_to_the_labels_and_leave_no_gradient():
    model = routed_model()
    mixed = batch(["bad", "unlabeled", "bad"])
    norms = label_gradient_norms(model, [mixed], ABSORB, "token")
    assert norms["good"]["bad"] == 0.0
    assert norms["bad"]["bad"] > 0 and norms["good"]["unlabeled"] > 0
    assert all(p.grad is None for p in model.parameters())
    accumulate_gradients(model, [mixed], ABSORB, "token")
    grads = [p.grad for p in adapter_parameters(model)["good"]]
    good = torch.cat([grad.flatten() for grad in grads if grad is not None])
    assert norms["good"]["unlabeled"] == pytest.approx(good.norm().item(), rel=1e-9)


def test_optimizer_state_survives_the_trip_through_flat_tensors_bit_for_bit():
    one, two = routed_model(), routed_model()
    groups = {name: settings() for name in ADAPTERS}
    optimizers = [build_optimizer(model, groups, 1e-2) for model in (one, two)]
    for i in range(3):
        step(one, optimizers[0], [batch(["bad", "unlabeled"], seed=i)])
    two.load_state_dict(one.state_dict())
    load_optimizer_state(two, optimizers[1], optimizer_tensors(one, optimizers[0]))
    for model, optimizer in zip((one, two), optimizers, strict=True):
        step(model, optimizer, [batch(["unlabeled", "bad"], seed=9)])
    for name in ADAPTERS:
        pairs = zip(
            snapshot(one, optimizers[0], name), snapshot(two, optimizers[1], name), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_optimizer_state_of_another_model_is_refused_by_name():
    model = routed_model()
    optimizer = build_optimizer(model, {name: settings() for name in ADAPTERS}, 1e-2)
    step(model, optimizer, [batch(["bad", "unlabeled"], seed=0)])
    (name, moment), *_ = (
        item for item in optimizer_tensors(model, optimizer).items() if item[0].endswith("/exp_avg")
    )
    for wrong in ({f"elsewhere/{name}": moment}, {name: moment[:1]}):
        with pytest.raises(ConfigError, match="the saved optimizer state does not fit the model"):
            load_optimizer_state(model, optimizer, wrong)


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_acts():
    model = routed_model()
    optimizer = build_optimizer(model, {name: settings() for name in ADAPTERS}, 1e-2)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = float("nan")
    before = [p.detach().clone() for p in adapter_parameters(model)["good"]]
    with pytest.raises(NumericError, match="the loss is nan"):
        step(model, optimizer, [batch(["unlabeled"])])
    assert all(map(torch.equal, before, adapter_parameters(model)["good"]))
    assert not optimizer.state


def test_every_adapter_has_its_own_rate_decay_and_clip():
    model = routed_model()
    own = {"good": settings(), "bad": settings(learning_rate=0.5, weight_decay=0.0, clip=None)}
    optimizer = build_optimizer(model, own, 1e-2)
    step(model, optimizer, [batch(["unlabeled"])], rate=0.5)
    good, bad = optimizer.param_groups
    assert (good["lr"], bad["lr"]) == (0.005, 0.25)
    assert (good["weight_decay"], bad["weight_decay"]) == (0.1, 0.0)
    assert (good["clip"], bad["clip"]) == (1.0, None)


def test_the_schedule_warms_up_peaks_once_and_ends_near_zero():
    rates = [schedule(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0) and rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
