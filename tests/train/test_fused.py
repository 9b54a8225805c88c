"""A fused optimizer, as on a GPU: the same steps but for rounding, and nobody else's weights."""

import pytest
import torch
from train.test_step import ADAPTERS, batch, routed_model, settings, snapshot, step

from gradroute.routing.adapters import adapter_parameters
from gradroute.train.optimizer import build_optimizer, load_optimizer_state, optimizer_tensors

GROUPS = {name: settings() for name in ADAPTERS}


def test_a_fused_optimizer_skips_an_adapter_whole_and_counts_its_steps_apart():
    model = routed_model(torch.float32)
    optimizer = build_optimizer(model, GROUPS, 1e-2, fused=True)
    for seed in range(2):
        step(model, optimizer, [batch(["bad", "unlabeled"], seed=seed)])
    good, bad = (snapshot(model, optimizer, name) for name in ADAPTERS)
    assert step(model, optimizer, [batch(["bad", "bad"], seed=3)]).updated == {"bad"}
    assert all(map(torch.equal, good, snapshot(model, optimizer, "good")))
    assert not any(map(torch.equal, bad, snapshot(model, optimizer, "bad")))
    counts = {
        name: {int(optimizer.state[p]["step"]) for p in adapter_parameters(model)[name]}
        for name in ADAPTERS
    }
    assert counts == {"good": {2}, "bad": {3}}


def test_fused_steps_are_those_of_the_plain_optimizer_but_for_rounding():
    found = []
    for fused in (False, True):
        model = routed_model()
        optimizer = build_optimizer(model, GROUPS, 1e-2, fused=fused)
        for seed in range(3):
            step(model, optimizer, [batch(["bad", "unlabeled"], seed=seed)])
        found.append(
            [p.detach().clone() for own in adapter_parameters(model).values() for p in own]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("before", [False, True])
def test_a_run_goes_on_with_either_optimizer_from_the_state_of_either(before):
    one, two = routed_model(), routed_model()
    first = build_optimizer(one, GROUPS, 1e-2, fused=before)
    step(one, first, [batch(["bad", "unlabeled"])])
    two.load_state_dict(one.state_dict())
    second = build_optimizer(two, GROUPS, 1e-2, fused=not before)
    load_optimizer_state(two, second, optimizer_tensors(one, first))
    for model, optimizer in ((one, first), (two, second)):
        step(model, optimizer, [batch(["unlabeled", "bad"], seed=5)])
    pairs = zip(snapshot(one, first, "good"), snapshot(two, second, "good"), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_on_the_cpu_the_default_is_fused():
    assert build_optimizer(routed_model(), GROUPS, 1e-2).defaults["fused"]
