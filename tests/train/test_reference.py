"""The pull to the base or to a teacher, against a reference that sums token by token."""

from dataclasses import replace

import pytest
import torch
from oracles import pulled_reference
from routing.tiny import (
    adapter_weights_of,
    gradients_of,
    largest_error,
    randomise,
    scalings_of,
    tiny_base,
    tiny_routed,
)
from train.token_rows import LABELS, POLICY, ROWS, example

from gradroute.data.batches import collate, micro_batches
from gradroute.models import divergence
from gradroute.routing.adapters import adapter_state
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.train.gradient_norms import label_gradient_norms
from gradroute.train.reference import Reference
from gradroute.train.step import accumulate_gradients

GOOD = frozenset(POLICY.label_ids(["good"]))
PLAIN = [
    example("one", 5, "good"),
    example("other", 9),
    example("third", 7, "good", start=2),
    example("fourth", 6, "bad"),
    example("fifth", 4),
]
BASE = Reference(0.7, alone=False, labels=GOOD, mode=AblationMode.parse("base", ("good", "bad")))


def taught(model) -> tuple[Reference, object]:
    """A teacher of two adapters of other ranks, and the model that has them."""
    other = tiny_routed({"good": 2, "bad": 3})
    randomise(other, seed=5)
    own, scale = adapter_state(model, "good"), scalings_of(model)["good"]
    parts = [(adapter_state(other, n), scalings_of(other)[n] / scale) for n in ("good", "bad")]
    weights = {
        key: torch.cat(
            [s[key] * (f if "lora_B" in key else 1) for s, f in parts], int("lora_B" in key)
        )
        for key in own
    }
    mode = AblationMode("teacher", {"good": 1.0, "bad": 0.0})
    return Reference(1.0, True, None, mode, "good", weights), other


def expected(model, rows, reference, other, loss_mean, policy=POLICY, kind="llama"):
    labels = policy.labels
    return pulled_reference(
        tiny_base(kind),
        adapter_weights_of(model),
        scalings_of(model),
        policy.to_plain(),
        [
            (
                row.input_ids,
                row.targets,
                [labels[i] for i in (row.label_ids or [row.label_id] * len(row.input_ids))],
            )
            for row in rows
        ],
        teacher=({}, {}) if other is None else (adapter_weights_of(other), scalings_of(other)),
        asked=labels if reference.labels is None else [labels[i] for i in reference.labels],
        factor=reference.factor,
        alone=reference.alone,
        loss_mean=loss_mean,
    )


@pytest.mark.parametrize("loss_mean", ["token", "example"])
@pytest.mark.parametrize(("size", "kind"), [(5, "llama"), (5, "gpt2"), (2, "llama"), (1, "llama")])
@pytest.mark.parametrize("rows", [PLAIN, ROWS[:5]], ids=["by example", "by token"])
def test_the_pull_to_the_base_is_that_of_the_oracle_however_the_step_is_cut(
    rows, size, loss_mean, kind
):
    model = tiny_routed(kind=kind)
    batches = micro_batches(rows, size, 0, packed_into=None)
    report = accumulate_gradients(model, batches, POLICY, loss_mean, reference=BASE)
    oracle = expected(model, rows, BASE, None, loss_mean, kind=kind)
    assert report.loss == pytest.approx(float(oracle.loss), rel=1e-10)
    assert report.divergence is not None and report.divergence > 0.01
    assert largest_error(model, oracle.gradients) < 1e-10


@pytest.mark.parametrize("loss_mean", ["token", "example"])
@pytest.mark.parametrize("packed_into", [None, 24])
def test_a_teacher_of_any_ranks_is_the_whole_loss(loss_mean, packed_into):
    model = tiny_routed({"good": 3, "bad": 3})
    teacher, other = taught(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    batches = micro_batches(PLAIN, 3, 0, packed_into=packed_into)
    report = accumulate_gradients(model, batches, POLICY, loss_mean, reference=teacher)
    oracle = expected(model, PLAIN, teacher, other, loss_mean)
    assert report.loss == report.divergence == pytest.approx(float(oracle.loss), rel=1e-10)
    assert largest_error(model, oracle.gradients) < 1e-10
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_packed_rows_are_pulled_as_padded_ones_are():
    model = tiny_routed()
    found = []
    for width in (None, 24):
        model.zero_grad()
        batches = micro_batches(PLAIN, 3, 0, packed_into=width)
        report = accumulate_gradients(model, batches, POLICY, "token", reference=BASE)
        found.append((report.loss, gradients_of(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-13)


def test_a_step_without_a_good_token_is_that_of_a_run_that_is_not_pulled_bit_for_bit():
    rows = [row for row in PLAIN if row.label_id not in GOOD]
    model, found = tiny_routed(), []
    for reference in (None, BASE):
        model.zero_grad()
        report = accumulate_gradients(model, [collate(rows, 0)], POLICY, "token", None, reference)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        assert report.divergence is None
    assert all(map(torch.equal, *found))


def test_weights_and_factors_count_in_the_pull_as_in_the_loss():
    """A row of weight 2 pulls as two rows do whose divisor counts one."""
    model = tiny_routed()
    alone = replace(BASE, alone=True)
    losses = []
    for weight in (1.0, 2.0):
        row = replace(PLAIN[0], weight=weight)
        report = accumulate_gradients(model, [collate([row], 0)], POLICY, "token", None, alone)
        losses.append(report.loss)
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-12)


def test_the_reference_draws_nothing_and_has_no_dropout():
    model = tiny_routed(dropout=0.5)
    found = []
    for reference in (None, replace(BASE, factor=0.0)):
        model.zero_grad()
        torch.manual_seed(3)
        accumulate_gradients(model, [collate(PLAIN, 0)], POLICY, "token", None, reference)
        found.append((gradients_of(model), torch.get_rng_state()))
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)
    assert all(module.training for module in model.modules())


def test_the_shares_of_labels_add_up_to_the_gradient_with_the_pull():
    one = RoutingPolicy.parse("none", ("good", "bad"))
    model = tiny_routed()
    rows = [row for row in PLAIN if LABELS[row.label_id] == "good"]
    norms = label_gradient_norms(model, [collate(rows, 0)], one, "token", BASE)
    accumulate_gradients(model, [collate(rows, 0)], one, "token", None, BASE)
    for name in ("good", "bad"):
        own = [g for path, g in gradients_of(model).items() if f".{name}." in path]
        total = sum(float((g**2).sum()) for g in own) ** 0.5
        assert norms[name]["good"] == pytest.approx(total, rel=1e-10)


def test_the_divergence_in_chunks_is_that_of_all_logits(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    states, reference = torch.randn(2, 7, 5, generator=draw, dtype=torch.float64)
    head = torch.nn.Linear(5, 11, dtype=torch.float64).requires_grad_(False)
    found = []
    for chunk in (2**24, 25):
        monkeypatch.setattr(divergence, "CHUNK", chunk)
        own = states.clone().requires_grad_()
        sums = divergence.summed_divergences(own, reference, (3, 4), head)
        (sums * torch.tensor([1.0, 0.3])).sum().backward()
        found.append((sums.detach(), own.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
    q, p = head(states).log_softmax(-1), head(reference).log_softmax(-1)
    every = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(found[0][0], torch.stack([every[:3].sum(), every[3:].sum()]))


def test_a_token_that_neither_distribution_gives_counts_nothing():
    logits = torch.tensor([[0.0, 1.0, float("-inf")]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[1.0, 0.5, float("-inf")]], dtype=torch.float64)
    (found,) = divergence.summed_divergences(logits, other, (1,), None)
    found.backward()
    p, q = other[0, :2].softmax(-1), logits[0, :2].detach().softmax(-1)
    assert found.item() == pytest.approx(float((p * (p / q).log()).sum()))
    assert logits.grad is not None and logits.grad.isfinite().all()
