"""A short tune is the same optimizer step as training's, a few times."""

import pytest
import torch
from small_llama import small_llama
from torch import Tensor

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import TokenizedExample
from gradroute.errors import NumericError
from gradroute.routing.adapters import adapter_state, attach_adapters
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.optimizer import build_optimizer
from gradroute.train.short_tune import tune_steps

ADAPTERS = {"good": AdapterConfig(rank=2), "bad": AdapterConfig(rank=2, dropout=0.3)}
POLICY = RoutingPolicy.parse({"good": {"good": "update", "bad": "ablate"}}, ("good", "bad"))
ROWS = [TokenizedExample(f"r{i}", (1, *range(4, 10 + i), 2), 0, 0, "good") for i in range(5)]


def tuned(
    *, steps: int = 4, batch_size: int = 4, accumulation: int = 1, seed: int = 0, peak: float = 0.02
) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    model = attach_adapters(small_llama(), ADAPTERS, layers="all")
    optimizer = build_optimizer(model, {"good": ADAPTERS["good"]}, peak)
    reports = tune_steps(
        model,
        optimizer,
        ROWS,
        POLICY,
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        loss_mean="token",
        rate=lambda step: 1.0 if step else 0.0,
        seed=seed,
        pad_id=0,
    )
    losses = []
    for report in reports:
        assert not model.training  # as it came
        assert report.updated == {"good"}
        losses.append(report.loss)
    states = {name: adapter_state(model, name) for name in ADAPTERS}
    return {n: {k: v.clone() for k, v in state.items()} for n, state in states.items()}, losses


def test_what_is_ablated_stays_bit_identical_and_what_is_kept_learns() -> None:
    fresh, _ = tuned(steps=0)
    after, losses = tuned(steps=12)
    assert all(torch.equal(fresh["bad"][key], after["bad"][key]) for key in fresh["bad"])
    assert not any(torch.equal(fresh["good"][key], after["good"][key]) for key in fresh["good"])
    assert losses[-1] < losses[0]


def test_the_rate_of_a_step_is_its_factor() -> None:
    fresh, _ = tuned(steps=0)
    after, _ = tuned(steps=1)  # the first step has the factor 0
    assert all(torch.equal(fresh["good"][key], after["good"][key]) for key in fresh["good"])


def test_micro_batches_give_the_step_of_the_whole_batch() -> None:
    whole, one = tuned()
    parts, two = tuned(batch_size=2, accumulation=2)
    assert two == pytest.approx(one, rel=1e-4)
    for key, value in whole["good"].items():
        torch.testing.assert_close(parts["good"][key], value, rtol=1e-3, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_one_another_order() -> None:
    assert tuned(seed=-1)[1] == tuned(seed=-1)[1]
    assert tuned(seed=-1)[1] != tuned(seed=3)[1]


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    with pytest.raises(NumericError, match=r"step 3 of 4: "):
        tuned(peak=1e30)
