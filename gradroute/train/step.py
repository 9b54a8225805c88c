"""The loss and one optimizer step: the file to edit when you want to change the method.

A step is one forward and one backward of each micro-batch under the routing table. The table
decides, inside the routed layers, which adapter's weights an example's gradient may change; what
is left to do here is to average the loss, to skip the adapters that nobody updates, to clip each
adapter by itself, and to step.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from gradroute.data.batches import Batch, TargetGroups
from gradroute.errors import MachineError
from gradroute.models.divergence import summed_divergences
from gradroute.models.lm_head import plain_head, run_model, summed_losses
from gradroute.routing.contexts import routed_finite
from gradroute.routing.frozen_check import run_upper_layers
from gradroute.routing.policy import RoutingPolicy
from gradroute.routing.scopes import RoutedScope
from gradroute.system.devices import to_device
from gradroute.system.memory import is_out_of_memory
from gradroute.train.checks import (
    check_can_learn,
    check_gradient,
    check_loss,
    check_rates,
    check_received,
    check_weights,
    weights_norm,
)
from gradroute.train.exchange import Exchange
from gradroute.train.reference import Pull, Reference, pull_of, pull_weights
from gradroute.train.step_report import MicroBatchLosses, StepReport, read_step
from gradroute.train.updates import clip_gradients, skip_updates

Watch = Callable[[Batch, RoutedScope], None]
"""Called after the forward pass of every micro-batch, with the scope that it ran under."""

_BEFORE = "weights before the step"


def loss_weights(batches: Sequence[Batch], loss_mean: str) -> list[Float[Tensor, " e"]]:
    """Per example, the factor by which its summed token loss enters the loss of the global step.

    "token": w / target tokens of the whole step, the mean over tokens (as transformers' Trainer).
    "example": w / (examples of the step x target tokens of the example), a mean of means, so that
    long examples weigh no more than short ones.
    w is the weight of the example; factors of its tokens come on top, in `share_of_loss`. What is
    divided by counts tokens and examples, not weights: an example of weight 2 has twice the share
    that it would have with 1, and the others have the same.

    Args:
        batches: all micro-batches of the step.
        loss_mean: "token" or "example".
    """
    counts = [batch.target_counts() for batch in batches]
    if loss_mean == "token":
        total = sum(int(count.sum()) for count in counts)
        return [batch.weights / total for batch in batches]
    examples = sum(len(count) for count in counts)
    return [
        batch.weights / (examples * count.double())
        for batch, count in zip(batches, counts, strict=True)
    ]


def train_step(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    *,
    loss_mean: str,
    rate: float,
    reference: Reference | None = None,
    watch: Watch | None = None,
    while_waiting: Callable[[], None] | None = None,
    check_after: bool = True,
    exchange: Exchange | None = None,
) -> StepReport:
    """One optimizer step over all micro-batches of the global step.

    An adapter that no example updates is skipped, see `updates.apply_updates`; so is one that is
    updated by positions without a target only, if no gradient comes back to them.

    Args:
        model: a routed model in training mode.
        optimizer: from `optimizer.build_optimizer`.
        batches: the micro-batches, on the model's device; of several ranks, this one's.
        policy: the routing table that the batches' label ids index.
        loss_mean: "token" or "example", see `loss_weights`.
        rate: factor of every group's peak learning rate, see `optimizer.schedule`.
        reference: what else the loss pulls the model to, see `open_reference`.
        watch: sees every micro-batch after its forward pass, may raise.
        while_waiting: called when all work is queued on the device, before its numbers are read.
        check_after: check the weights after the optimizer (one more wait), not in the next step.
        exchange: of several ranks, what they tell each other in this step.

    Returns:
        What the step did, on all ranks together; `rows` are those of this one.

    Raises:
        ConfigError: an adapter that the table updates cannot learn, see `checks`.
        NumericError: loss or gradient is not finite or the rate too large, and the optimizer has
            not acted; or a weight is not finite after it has (without `check_after`, before it).
        MachineError: memory ran out while the optimizer acted; before, the step can be done again.
    """
    exchange = exchange or Exchange.with_nobody()
    optimizer.zero_grad(set_to_none=True)
    whole = exchange.whole(batches)
    check_can_learn(model, optimizer, whole, policy)
    reached, taught = _reached_and_taught(policy, whole)
    taken = _backward(model, batches, policy, loss_mean, watch, reference, exchange)
    groups = _groups_at_rate(optimizer, rate)
    wanted = _clipped(groups, reached, exchange)
    if not check_after:
        wanted[_BEFORE] = weights_norm(optimizer.param_groups, groups)
    if while_waiting is not None:
        while_waiting()
    report, norms = read_step(taken, policy, wanted)
    if not check_after:
        check_weights(optimizer.param_groups, groups, norms[_BEFORE])
    _add_and_check_losses(model, batches, policy, report, exchange)
    _note_updates(model, groups, norms, (reached, taught), report, policy)
    _apply_step(optimizer, report.updated if check_after else ())
    return report


def _reached_and_taught(policy: RoutingPolicy, whole: Sequence[Batch]) -> tuple[set[str], set[str]]:
    """The adapters whose gradient the step's positions reach, and those that its targets teach."""
    computed = _names(policy, (batch.computed_labels() for batch in whole))
    targets = _names(policy, (batch.target_labels() for batch in whole))
    return set(policy.updated_by(computed)), set(policy.updated_by(targets))


def _clipped(
    groups: Mapping[str, dict[str, Any]], reached: Collection[str], exchange: Exchange
) -> dict[str, Float[Tensor, ""]]:
    """Adapter -> L2 norm of its gradient over all ranks, before it is clipped; on its device."""
    exchange.add_gradients(p for name in groups if name in reached for p in groups[name]["params"])
    return clip_gradients(groups, reached)


def _add_and_check_losses(
    model: PeftModel,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    report: StepReport,
    exchange: Exchange,
) -> None:
    """Report the losses of all ranks; where the sum is not finite, say of which examples."""
    exchange.add_report(report, policy)
    if math.isfinite(report.loss):
        return
    report.rows = exchange.rows_of_all(report.rows)
    device = batches[0].input_ids.device
    seen = [batch.to(device) for batch in exchange.whole(batches)]
    check_loss(model, seen, report.loss, report.rows)


def _note_updates(
    model: PeftModel,
    groups: Mapping[str, dict[str, Any]],
    norms: Mapping[str, float],
    adapters: tuple[Collection[str], Collection[str]],
    report: StepReport,
    policy: RoutingPolicy,
) -> None:
    """Check every gradient that came, and skip the adapters that received none.

    Args:
        model: The model, to say where a gradient that is not finite comes from.
        groups: Adapter -> its parameter group.
        norms: Adapter -> L2 norm of its gradient, of those that the step reaches.
        adapters: From `_reached_and_taught`.
        report: Of the step; what is updated is noted there.
        policy: The routing table.
    """
    reached, taught = adapters
    for name, group in groups.items():
        if name in reached:
            check_gradient(model, name, norms[name], report.rows, policy)
        _received_or_skipped(name, group, norms, taught, report, policy)
    report.updated.update(report.gradient_norms)


def _received_or_skipped(
    name: str,
    group: dict[str, Any],
    norms: Mapping[str, float],
    taught: Collection[str],
    report: StepReport,
    policy: RoutingPolicy,
) -> None:
    """Note the gradient norm of an adapter that received one; the others do not move."""
    if name in taught or norms.get(name, 0.0) > 0.0:
        report.gradient_norms[name] = norms[name]
        check_received(name, norms[name], group["params"], report.rows, policy)
    else:
        skip_updates(group)


def _groups_at_rate(optimizer: torch.optim.Optimizer, rate: float) -> dict[str, dict[str, Any]]:
    """Adapter -> its parameter group, at this factor of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["peak"]
    groups = {group["adapter"]: group for group in optimizer.param_groups}
    check_rates(groups)
    return groups


def _apply_step(optimizer: torch.optim.Optimizer, checked: Collection[str]) -> None:
    """Change the weights, clear the gradients; an error leaves some weights changed, some not."""
    try:
        optimizer.step()
        if checked:
            check_weights(optimizer.param_groups, checked)
        optimizer.zero_grad(set_to_none=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise MachineError(
                "memory ran out while the optimizer was changing the weights, so that some are "
                "changed and some are not."
            ) from error
        raise


def accumulate_gradients(
    model: PeftModel,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    loss_mean: str,
    watch: Watch | None = None,
    reference: Reference | None = None,
) -> StepReport:
    """Add the routed gradient of a global step to `parameter.grad`; report losses per label."""
    alone = Exchange.with_nobody()
    taken = _backward(model, batches, policy, loss_mean, watch, reference, alone)
    return read_step(taken, policy, {})[0]


def _backward(
    model: PeftModel,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    loss_mean: str,
    watch: Watch | None,
    reference: Reference | None,
    exchange: Exchange,
) -> list[MicroBatchLosses]:
    """Add the routed gradient to `parameter.grad`; nothing is waited for."""
    taken = []
    head = plain_head(model)
    weights, pulled = factors_of_step(batches, loss_mean, reference, exchange)
    for at, batch in enumerate(batches):
        pull = reference and pull_of(reference, model, batch, pulled[at], head)
        # Weights that are not finite stop the step or the one before it: see `check_weights`.
        inside = routed_finite(model, policy, batch.routing_ids)
        with inside as scope, run_upper_layers(model, batch.states, batch.inputs):
            states = run_model(model, batch.inputs, head)
            if watch is not None:
                watch(batch, scope)
            loss, found = losses_of_batch(batch, states, weights[at], head, pull)
            loss.backward()
        taken.append(found)
    return taken


def factors_of_step(
    batches: Sequence[Batch],
    loss_mean: str,
    reference: Reference | None,
    exchange: Exchange,
) -> tuple[list[Float[Tensor, " e"]], list[Float[Tensor, " e"]]]:
    """`loss_weights` and `pull_weights` of these micro-batches, in the mean of the whole step."""
    whole = exchange.whole(batches)
    weights = loss_weights(whole, loss_mean)
    pulled = weights if reference is None else pull_weights(whole, loss_mean, reference)
    return exchange.own(weights, batches), exchange.own(pulled, batches)


def losses_of_batch(
    batch: Batch,
    states: Float[Tensor, "n f"],
    weights: Float[Tensor, " e"],
    head: nn.Linear | None,
    pull: Pull | None,
) -> tuple[Float[Tensor, ""], MicroBatchLosses]:
    """A micro-batch's share of the loss of the step, to be differentiated, and what is reported.

    Args:
        batch: The micro-batch.
        states: From `run_model`.
        weights: Its part of `loss_weights`.
        head: From `plain_head`.
        pull: From `pull_of`; where that takes the place of the data's targets, their losses are
            only reported.
    """
    groups = batch.target_groups()
    alone = pull is not None and pull.reference.alone
    losses = summed_losses(states.detach() if alone else states, groups, head)
    loss = share_of_loss(groups, losses, weights)
    if pull is None:
        return loss, MicroBatchLosses(batch, loss.detach(), losses.detach())
    own = states.index_select(0, pull.groups.positions)
    found = summed_divergences(own, pull.states, pull.groups.sizes, head)
    divergence = share_of_loss(pull.groups, found, pull.weights)
    added = divergence * pull.reference.factor
    loss = added if alone else loss + added
    return loss, MicroBatchLosses(batch, loss.detach(), losses.detach(), divergence.detach())


def share_of_loss(
    groups: TargetGroups, losses: Float[Tensor, " g"], weights: Float[Tensor, " e"]
) -> Float[Tensor, ""]:
    """A micro-batch's share of the loss of the step, with the factors of `loss_weights`."""
    own = weights[list(groups.examples)]
    if groups.factors:
        own = own * torch.tensor(groups.factors, dtype=own.dtype)
    own = own.to(losses.dtype)
    return (losses * to_device(own, losses.device)).sum()


def _names(policy: RoutingPolicy, ids: Iterable[Iterable[Iterable[int]]]) -> set[str]:
    """The labels of these ids, by batch and example."""
    return {policy.labels[i] for batch in ids for own in batch for i in own}
