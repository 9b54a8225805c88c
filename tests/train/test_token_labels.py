"""Labels by token, weights and packing in a step: the gradients are those of the definition."""

from dataclasses import replace

import pytest
import torch
from routing.tiny import (
    gradients_of,
    largest_error,
    randomise,
    tiny_base,
    tiny_routed,
    to_floor,
)
from train.token_rows import LABELS, POLICY, ROWS, example, reference

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import collate, pack
from gradroute.routing.adapters import AdapterSpec, adapter_parameters, attach_adapters
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.gradient_norms import label_gradient_norms
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import accumulate_gradients, loss_weights, train_step

PADDED = [collate(ROWS, 0)]
PACKED = [pack(ROWS, 0, 16)]
PARTS = [pack(ROWS[:4], 0, 16), collate(ROWS[4:], 0)]


def gradients(model, batches, policy=POLICY, loss_mean="token"):
    model.zero_grad(set_to_none=True)
    report = accumulate_gradients(model, batches, policy, loss_mean)
    return gradients_of(model), report


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_by_token_equal_the_slow_reference_padded_and_packed(kind):
    model = tiny_routed(kind=kind)
    wanted = reference(model, ROWS, kind=kind)
    for batches in (PADDED, PACKED, PARTS):
        _, report = gradients(model, batches)
        assert largest_error(model, wanted.gradients) <= 1e-12
        assert report.loss == pytest.approx(float(wanted.loss), rel=1e-12)


def test_the_floor_gives_the_same_gradients_by_token():
    model = tiny_routed()
    to_floor(model)
    gradients(model, PACKED)
    assert largest_error(model, reference(model, ROWS).gradients) <= 1e-12


def test_a_loss_at_a_later_position_reaches_the_adapters_of_earlier_ones():
    """Only the last token is learned, as good; the bad adapter learns at the positions before."""
    row = example("late", 6, "good", start=4, spans=((0, 3, "bad"),))
    model = tiny_routed()
    gradients(model, [collate([row], 0)])
    found = {name: [p.grad for p in own] for name, own in adapter_parameters(model).items()}
    assert any(grad is not None and bool(grad.any()) for grad in found["bad"])
    assert largest_error(model, reference(model, [row]).gradients) <= 1e-12


@pytest.mark.parametrize("loss_mean", ["token", "example"])
def test_packing_changes_neither_gradient_nor_report(loss_mean):
    model = tiny_routed()
    rows = [replace(row, weight=1.0 + at) for at, row in enumerate(ROWS)]
    padded, report = gradients(model, [collate(rows, 0)], loss_mean=loss_mean)
    packed, other = gradients(model, [pack(rows, 3, 16)], loss_mean=loss_mean)
    for name in padded:
        torch.testing.assert_close(packed[name], padded[name], rtol=0, atol=1e-12)
    assert (other.tokens, other.examples) == (report.tokens, report.examples)
    assert other.nll == pytest.approx(report.nll, rel=1e-12)
    for one, two in zip(report.rows, other.rows, strict=True):
        assert two._replace(nll=0.0) == one._replace(nll=0.0)
        assert two.nll == pytest.approx(one.nll, rel=1e-12)


def test_in_single_precision_packing_changes_a_gradient_by_rounding():
    model = tiny_routed(dtype=torch.float32)
    padded, _ = gradients(model, PADDED)
    packed, _ = gradients(model, PACKED)
    for name in padded:
        scale = float(padded[name].abs().max())
        torch.testing.assert_close(packed[name], padded[name], rtol=0, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize("loss_mean", ["token", "example"])
def test_weight_two_doubles_the_share_of_its_example_and_of_no_other(loss_mean):
    model = tiny_routed(kind="gpt2")  # float64 throughout: Llama's norms are in float32
    heavy = [replace(row, weight=2.0 if row.id == "turns" else 1.0) for row in ROWS]
    light, report = gradients(model, PADDED, loss_mean=loss_mean)
    found, weighted = gradients(model, [collate(heavy, 0)], loss_mean=loss_mean)
    # The share of an example: the gradient of it alone, under the factor that it has among all.
    one = [collate([ROWS[3]], 0)]
    alone, _ = gradients(model, one, loss_mean=loss_mean)
    among, own = (loss_weights(batches, loss_mean)[0] for batches in (PADDED, one))
    for name in light:
        share = alone[name] * float(among[3] / own[0])
        torch.testing.assert_close(found[name], light[name] + share, rtol=0, atol=1e-12)
    assert weighted.nll == report.nll  # what is logged by label has no weights
    assert weighted.loss > report.loss


def test_factors_of_tokens_scale_their_losses_as_in_the_slow_reference():
    """The gradient is linear in them: that of each factor's tokens alone, added up."""
    model = tiny_routed(kind="gpt2")  # float64 throughout
    row = example("turns", 11, "unlabeled", start=1, gaps=((3, 5),), spans=((5, 9, "bad"),))
    own = [0.5 if at < 4 else 3.0 if at < 7 else 1.0 for at in range(11)]
    mixed = replace(row, factors=tuple(own), weight=2.0)
    total = sum(other.target_count for other in [row, *ROWS[:1]])
    wanted = reference(model, [row, ROWS[0]], kind="gpt2")
    parts = {factor: [] for factor in set(own)}
    for factor in parts:
        others = [at for at, one in enumerate(own) if one != factor]
        some = replace(row, gaps=tuple((at, at + 1) for at in sorted({*others, 3, 4}) if at))
        parts[factor] = [reference(model, [some], kind="gpt2"), some.target_count]
    plain = reference(model, [ROWS[0]], kind="gpt2")
    loss = float(plain.loss) * ROWS[0].target_count / total
    loss += sum(2.0 * f * float(ref.loss) * n / total for f, (ref, n) in parts.items())
    for name, modules in wanted.gradients.items():
        for path, weights in modules.items():
            for at, weight in enumerate(weights):
                weight[:] = plain.gradients[name][path][at] * ROWS[0].target_count / total
                for factor, (ref, count) in parts.items():
                    weight += 2.0 * factor * ref.gradients[name][path][at] * count / total
    for batches in ([collate([mixed, ROWS[0]], 0)], [pack([mixed, ROWS[0]], 0, 16)]):
        _, report = gradients(model, batches)
        assert largest_error(model, wanted.gradients) <= 1e-12
        assert report.loss == pytest.approx(loss, rel=1e-12)
        assert sum(report.tokens.values()) == total


def test_losses_and_tokens_are_counted_under_the_label_of_each_token():
    model = tiny_routed()
    _, report = gradients(model, PADDED)
    counts = dict.fromkeys(LABELS, 0)
    for row in ROWS:
        for at, target in enumerate(row.targets):
            if target != -100:
                counts[LABELS[(row.label_ids or [row.label_id] * 99)[at]]] += 1
    assert report.tokens == counts
    assert report.examples == {"good": 1, "unlabeled": 3, "bad": 2}
    assert sum(report.nll.values()) == pytest.approx(sum(row.nll for row in report.rows))
    assert report.loss == pytest.approx(sum(report.nll.values()) / sum(counts.values()), rel=1e-6)


def test_shares_of_the_labels_of_tokens_add_up_to_the_gradient():
    model = tiny_routed()
    for batches in (PADDED, PACKED, PARTS):
        norms = label_gradient_norms(model, batches, POLICY, "token")
        assert norms["bad"]["good"] == 0.0 and norms["good"]["bad"] == 0.0
        assert all(p.grad is None for p in model.parameters())
        shares = {}
        for label in LABELS:
            table = {
                other: {
                    name: {"update": 0.0} if route.name == "update" and other != label else route
                    for name, route in row.items()
                }
                for other, row in POLICY.table.items()
            }
            only = RoutingPolicy.parse(table, POLICY.adapters)
            shares[label] = gradients(model, batches, only)[0]
        whole, _ = gradients(model, batches)
        for name, gradient in whole.items():
            total = sum(share[name] for share in shares.values())
            torch.testing.assert_close(total, gradient, rtol=0, atol=1e-12)
        bad = torch.cat(
            [p.grad.flatten() for p in adapter_parameters(model)["bad"] if p.grad is not None]
        )
        assert norms["bad"]["bad"] <= float(bad.norm()) + norms["bad"]["unlabeled"]


def step(model, optimizer, rows):
    return train_step(model, optimizer, [collate(rows, 0)], POLICY, loss_mean="token", rate=1.0)


def warm(targets: str = "all-linear"):
    """A model whose optimizer has moments, so that an adapter with a gradient of 0 would move."""
    shapes = dict.fromkeys(POLICY.adapters, AdapterSpec(rank=2))
    model = attach_adapters(tiny_base(), shapes, targets=targets, layers=[1, 2]).train()
    randomise(model)
    adapters = dict.fromkeys(shapes, AdapterConfig(weight_decay=0.1))
    optimizer = build_optimizer(model, adapters, 1e-2)
    step(model, optimizer, [example("warm", 6)])
    return model, optimizer


def weights(model, name):
    return [p.detach().clone() for p in adapter_parameters(model)[name]]


def test_an_adapter_that_no_token_updates_stays_bit_identical_though_the_example_would():
    """All that is computed of the example is bad; its own label is only at the last position."""
    model, optimizer = warm()
    before = weights(model, "good")
    row = example("bad all along", 6, "unlabeled", spans=((0, 5, "bad"),))
    assert step(model, optimizer, [row]).updated == {"bad"}
    assert all(map(torch.equal, before, weights(model, "good")))


def test_an_adapter_that_only_a_prompt_updates_and_no_gradient_reaches_is_skipped():
    """After the last attention no later position looks back at the prompt."""
    row = example("asked badly", 6, "bad", start=3, spans=((3, 5, "good"),))
    model, optimizer = warm(targets="down_proj")
    before = weights(model, "bad")
    assert step(model, optimizer, [row]).updated == {"good"}
    assert all(map(torch.equal, before, weights(model, "bad")))
    model, optimizer = warm()  # with adapters before it there is something to learn
    before = weights(model, "bad")
    assert step(model, optimizer, [row]).updated == {"good", "bad"}
    assert not any(map(torch.equal, before, weights(model, "bad")))
