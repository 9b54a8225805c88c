"""`apply_updates`: who moves in a step of one's own loop, and what is refused."""

import pytest
import torch
from small_llama import small_llama

from gradroute import (
    AdapterSpec,
    ConfigError,
    NumericError,
    RoutingPolicy,
    adapter_parameters,
    apply_updates,
    attach_adapters,
    routed,
)
from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import TokenizedExample, collate
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import accumulate_gradients, train_step

POLICY = RoutingPolicy.parse("absorb", ("good", "bad"))


def trial(clip: float | None = 1.0, **group: object):
    shape = AdapterSpec(rank=3)
    model = attach_adapters(
        small_llama(torch.float64), dict.fromkeys(POLICY.adapters, shape), layers="all"
    ).train()
    own = adapter_parameters(model)
    groups = [{"params": own[name], "adapter": name, "clip": clip, **group} for name in own]
    return model, own, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def backward(model, labels, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (len(labels), 7), generator=draw)
    with routed(model, POLICY, labels):
        model(input_ids=ids, labels=ids).loss.backward()


def snapshot(own, optimizer, name):
    moments = [v.clone() for p in own[name] for _, v in sorted(optimizer.state[p].items())]
    return [p.detach().clone() for p in own[name]] + moments


@pytest.mark.parametrize("as_ids", [False, True])
def test_an_adapter_that_no_label_updates_keeps_every_bit_also_of_its_moments(as_ids):
    model, own, optimizer = trial()
    for seed in range(3):
        backward(model, ["bad", "unlabeled"], seed)
        apply_updates(optimizer, POLICY, ["bad", "unlabeled"])
    good, bad = (snapshot(own, optimizer, name) for name in ("good", "bad"))
    backward(model, ["bad", "bad"], 9)
    labels = torch.tensor([[POLICY.labels.index("bad")] * 2]) if as_ids else ["bad", "bad"]
    norms = apply_updates(optimizer, POLICY, labels)
    assert set(norms) == {"bad"} and norms["bad"] > 0
    assert all(map(torch.equal, good, snapshot(own, optimizer, "good")))
    assert not any(map(torch.equal, bad, snapshot(own, optimizer, "bad")))
    assert all(p.grad is None for p in model.parameters())


def test_each_adapter_is_clipped_by_its_own_norm():
    model, own, optimizer = trial(clip=None)
    for group in optimizer.param_groups:
        group["clip"] = {"good": 1e-3, "bad": None}[group["adapter"]]
    clipped: dict[str, float] = {}

    def look(*given: object) -> None:
        for name, weights in own.items():
            clipped[name] = float(torch.stack([p.grad.norm() for p in weights]).norm())  # type: ignore[union-attr]

    optimizer.register_step_pre_hook(look)
    backward(model, ["unlabeled"])
    norms = apply_updates(optimizer, POLICY, ["unlabeled"])
    assert norms["good"] > 1e-3
    assert clipped["good"] == pytest.approx(1e-3, rel=1e-2)
    assert clipped["bad"] == pytest.approx(norms["bad"], rel=1e-12)


def test_a_step_of_the_trainer_is_the_same_step_to_the_bit():
    labels = ["bad", "unlabeled", "bad"]
    ids = torch.randint(3, 40, (len(labels), 7), generator=torch.Generator().manual_seed(0))
    rows = [
        TokenizedExample(str(at), tuple(own), 0, POLICY.label_ids([label])[0], "good")
        for at, (own, label) in enumerate(zip(ids.tolist(), labels, strict=True))
    ]
    batches = [collate(rows, pad_id=0)]
    settings = {name: AdapterConfig(learning_rate=1e-2) for name in POLICY.adapters}
    found = []
    for by_hand in (True, False):
        model, own, _ = trial()
        optimizer = build_optimizer(model, settings, 1e-2)
        for _ in range(2):
            if by_hand:
                accumulate_gradients(model, batches, POLICY, "token")
                apply_updates(optimizer, POLICY, labels)
            else:
                train_step(model, optimizer, batches, POLICY, loss_mean="token", rate=1.0)
        found.append([p.detach().clone() for weights in own.values() for p in weights])
    assert all(map(torch.equal, *found))


def test_labels_of_all_micro_batches_decide_together():
    model, own, optimizer = trial()
    before = snapshot(own, optimizer, "good")
    for seed, labels in enumerate((["bad"], ["good"])):
        backward(model, labels, seed)
    assert set(apply_updates(optimizer, POLICY, ["bad", "good"])) == {"good", "bad"}
    assert not all(map(torch.equal, before, snapshot(own, optimizer, "good")))


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_acts():
    model, own, optimizer = trial()
    backward(model, ["unlabeled"])
    [first, *_] = own["bad"]
    assert first.grad is not None
    first.grad.fill_(torch.nan)
    before = [snapshot(own, optimizer, name) for name in own]
    with pytest.raises(NumericError, match="gradient of adapter 'bad' is nan"):
        apply_updates(optimizer, POLICY, ["unlabeled"])
    after = [snapshot(own, optimizer, name) for name in own]
    assert all(
        torch.equal(a, b)
        for x, y in zip(before, after, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_a_step_without_a_backward_pass_is_refused():
    _, _, optimizer = trial()
    with pytest.raises(ConfigError, match=r"call backward\(\) within `routed`"):
        apply_updates(optimizer, POLICY, ["bad"])


def test_an_optimizer_whose_groups_do_not_name_the_adapters_is_refused():
    _, own, _ = trial()
    joint = torch.optim.AdamW([p for weights in own.values() for p in weights])
    with pytest.raises(ConfigError, match="group 0 of the optimizer names no adapter"):
        apply_updates(joint, POLICY, ["bad"])
    twice = torch.optim.AdamW([{"params": [p], "adapter": "good"} for p in own["good"][:2]])
    with pytest.raises(ConfigError, match=r"group 1 .* 'good' a second time"):
        apply_updates(twice, POLICY, ["bad"])
    alone = torch.optim.AdamW([{"params": own["good"], "adapter": "good"}])
    with pytest.raises(ConfigError, match="no parameter group for the adapter 'bad'"):
        apply_updates(alone, POLICY, ["bad"])


def test_labels_that_the_table_lacks_are_refused():
    model, _, optimizer = trial()
    backward(model, ["bad"])
    with pytest.raises(ConfigError, match="rude"):
        apply_updates(optimizer, POLICY, ["rude"])
    with pytest.raises(ConfigError, match="between 0 and 2"):
        apply_updates(optimizer, POLICY, torch.tensor([3]))
