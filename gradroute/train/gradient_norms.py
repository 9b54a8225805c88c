"""Each label's part of the gradient of a step: a measurement beside training."""

from collections.abc import Sequence

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from gradroute.data.batches import Batch
from gradroute.models.lm_head import plain_head, run_model
from gradroute.routing.adapters import adapter_parameters, routed
from gradroute.routing.frozen_check import run_upper_layers
from gradroute.routing.policy import Route, RoutingPolicy
from gradroute.system.sharded import total_norm
from gradroute.train.exchange import Exchange
from gradroute.train.reference import Reference, pull_of
from gradroute.train.step import factors_of_step, losses_of_batch


def label_gradient_norms(
    model: PeftModel,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    loss_mean: str,
    reference: Reference | None = None,
    exchange: Exchange | None = None,
) -> dict[str, dict[str, float]]:
    """Adapter -> label -> norm of that label's share of the step's gradient.

    A measurement beside the step: one extra forward and backward per label, weighted as in the
    whole step. The share of a label is what the positions with it give, from the losses there and
    at later positions; the shares add up to the step's gradient. Gradients are None afterwards.
    """
    exchange = exchange or Exchange.with_nobody()
    model.zero_grad(set_to_none=True)
    norms: dict[str, dict[str, float]] = {name: {} for name in policy.adapters}
    parameters = adapter_parameters(model)
    weights, pulled = factors_of_step(batches, loss_mean, reference, exchange)
    present = {
        i for batch in exchange.whole(batches) for own in batch.computed_labels() for i in own
    }
    for label_id in sorted(present):
        for batch, weight, own in zip(batches, weights, pulled, strict=True):
            _add_share(model, batch, weight, policy, label_id, reference, own, exchange.sharded)
        exchange.add_gradients(p for own in parameters.values() for p in own)
        for name, own in parameters.items():
            grads = [p.grad for p in own if p.grad is not None]
            norms[name][policy.labels[label_id]] = float(total_norm(grads))
        model.zero_grad(set_to_none=True)
    return norms


def _add_share(
    model: PeftModel,
    batch: Batch,
    weights: Float[Tensor, " e"],
    policy: RoutingPolicy,
    label_id: int,
    reference: Reference | None,
    pulled: Float[Tensor, " e"],
    together: bool,
) -> None:
    """Add the gradient that the positions with one label give: from its rows alone if it can be.

    It cannot be where ranks run a sharded model together, each with other rows.
    """
    if batch.token_label_ids is None and not together:
        rows = (batch.label_ids == label_id).nonzero()[:, 0]
        batch, weights, pulled = batch.rows(rows), weights[rows.cpu()], pulled[rows.cpu()]
    else:
        policy = _only_updating(policy, policy.labels[label_id])
    if len(batch.ids) == 0:
        return
    head = plain_head(model)
    pull = reference and pull_of(reference, model, batch, pulled, head)
    upper = run_upper_layers(model, batch.states, batch.inputs)
    with routed(model, policy, batch.routing_ids), upper:
        states = run_model(model, batch.inputs, head)
        losses_of_batch(batch, states, weights, head, pull)[0].backward()


def _only_updating(policy: RoutingPolicy, label: str) -> RoutingPolicy:
    """The same table, under which only this label updates; all else runs and passes as it did."""
    still = Route("update", 0.0)
    table = {
        other: {name: still if route.name == "update" else route for name, route in row.items()}
        for other, row in policy.table.items()
    }
    return RoutingPolicy(policy.name, {**table, label: policy.table[label]})
