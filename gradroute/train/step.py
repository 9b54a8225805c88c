"""The loss and one optimizer step: the file to edit when you want to change the method.

A step is one forward and one backward of each micro-batch under the routing table. The table
decides, inside the routed layers, which adapter's weights an example's gradient may change; what
is left to do here is to average the loss, to skip the adapters that nobody updates, to clip each
adapter by itself, and to step.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from gradroute.data.batches import IGNORED, Batch
from gradroute.errors import ConfigError, MachineError, NumericError
from gradroute.memory import is_out_of_memory
from gradroute.routing.adapters import adapter_parameters, routed
from gradroute.routing.policy import RoutingPolicy
from gradroute.routing.reusing import entering
from gradroute.routing.scopes import RoutedScope
from gradroute.train.checks import (
    RowLoss,
    check_can_learn,
    check_gradient,
    check_loss,
    check_received,
    check_weights,
)

Watch = Callable[[Batch, RoutedScope], None]
"""Called after the forward pass of every micro-batch, with the scope that it ran under."""


@runtime_checkable
class AdapterSettings(Protocol):
    """What the optimizer asks of an adapter's config."""

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None takes the run's."""
        ...

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay per step, times the learning rate."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest gradient norm of this adapter alone; None does not clip."""
        ...


@dataclass
class StepReport:
    """What one optimizer step did.

    Attributes:
        loss: the step's training loss in nats, averaged as `loss_mean` says.
        nll: label -> summed negative log likelihood of its target tokens, in nats; whatever the
            weights of the examples.
        tokens: label -> number of target tokens: those with it, where tokens have labels of their
            own.
        examples: label -> number of examples, each under its own label.
        updated: the adapters whose weights this step changed.
        gradient_norms: adapter -> norm of its gradient before clipping, for updated adapters.
        rows: what the step took of each example, in its order.
    """

    loss: float = 0.0
    nll: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    updated: set[str] = field(default_factory=set)
    gradient_norms: dict[str, float] = field(default_factory=dict)
    rows: list[RowLoss] = field(default_factory=list)


def token_losses(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    """Negative log likelihood in nats at every position; 0 where the target is -100.

    Computed in float32, of a float64 model in float64.
    """
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets.flatten(), reduction="none").view(targets.shape)


def loss_weights(batches: Sequence[Batch], loss_mean: str) -> list[Float[Tensor, " e"]]:
    """Per example, the factor by which its summed token loss enters the loss of the global step.

    "token": w / target tokens of the whole step, the mean over tokens (as transformers' Trainer).
    "example": w / (examples of the step x target tokens of the example), a mean of means, so that
    long examples weigh no more than short ones.
    w is the weight of the example. What is divided by counts tokens and examples, not weights: an
    example of weight 2 has twice the share that it would have with 1, and the others have the same.

    Args:
        batches: all micro-batches of the step.
        loss_mean: "token" or "example".
    """
    counts = [batch.by_example(batch.targets != IGNORED).cpu() for batch in batches]
    if loss_mean == "token":
        total = sum(int(count.sum()) for count in counts)
        return [batch.weights / total for batch in batches]
    examples = sum(len(count) for count in counts)
    return [
        batch.weights / (examples * count.double())
        for batch, count in zip(batches, counts, strict=True)
    ]


def build_optimizer(
    model: PeftModel, adapters: Mapping[str, AdapterSettings], learning_rate: float
) -> torch.optim.AdamW:
    """One AdamW with one parameter group per adapter, each with its own rate and weight decay.

    Args:
        model: a routed model.
        adapters: adapter name -> settings.
        learning_rate: peak rate of the adapters that name none.
    """
    parameters = adapter_parameters(model)
    groups = [
        {
            "params": parameters[name],
            "adapter": name,
            "peak": learning_rate if settings.learning_rate is None else settings.learning_rate,
            "weight_decay": settings.weight_decay,
            "clip": settings.clip,
        }
        for name, settings in adapters.items()
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


def schedule(step: int, max_steps: int, warmup_steps: int) -> float:
    """Factor of the peak learning rate in step `step` (0-based): linear warm-up, cosine to 0.

    A function of the global step alone, the same for every adapter, also for one that some steps
    skip.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def train_step(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    *,
    loss_mean: str,
    rate: float,
    watch: Watch | None = None,
) -> StepReport:
    """One optimizer step over all micro-batches of the global step.

    An adapter that no example of the step updates is skipped whole: its gradient is None, so
    weights, moments and step count stay bit-identical (a zero gradient would not do: AdamW still
    moves by momentum and decays). So is one that only labels of positions without a target update,
    such as those of a prompt whose text has other labels, if no gradient comes back to them.

    Args:
        model: a routed model in training mode.
        optimizer: from `build_optimizer`.
        batches: the micro-batches, on the model's device.
        policy: the routing table that the batches' label ids index.
        loss_mean: "token" or "example", see `loss_weights`.
        rate: factor of every group's peak learning rate, see `schedule`.
        watch: sees what is run, and may refuse it by raising.

    Raises:
        ConfigError: an adapter that the table updates in this step cannot learn: it is switched
            off, its weights are fixed or unknown to the optimizer, or no gradient reached it.
        NumericError: loss or gradient is not finite, and the optimizer has not acted; or a weight
            is not finite after it has.
        MachineError: memory ran out while the optimizer acted. (Where it runs out before, the
            weights are untouched, the error is as it came, and the step can be done again.)
    """
    optimizer.zero_grad(set_to_none=True)
    check_can_learn(model, optimizer, batches, policy)
    report = accumulate_gradients(model, batches, policy, loss_mean, watch)
    check_loss(model, batches, report.loss, report.rows)
    reached = policy.updated_by(_names(row.labels for row in report.rows))
    taught = policy.updated_by(_names(row.target_labels for row in report.rows))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["peak"]
        name = group["adapter"]
        if name in reached:
            limit = math.inf if group["clip"] is None else group["clip"]
            norm = float(nn.utils.clip_grad_norm_(group["params"], limit))
            check_gradient(model, name, norm, report.rows, policy)
            if name in taught or norm > 0.0:
                report.updated.add(name)
                report.gradient_norms[name] = norm
                if norm == 0.0:
                    check_received(name, group["params"], report.rows, policy)
                continue
        for parameter in group["params"]:
            parameter.grad = None
    _act(optimizer, report.updated)
    optimizer.zero_grad(set_to_none=True)
    return report


def _act(optimizer: torch.optim.Optimizer, updated: set[str]) -> None:
    """Change the weights; an error from here on leaves some changed and some not."""
    try:
        optimizer.step()
        check_weights(optimizer.param_groups, updated)
    except Exception as error:
        if is_out_of_memory(error):
            raise MachineError(
                "memory ran out while the optimizer was changing the weights, so that some are "
                "changed and some are not."
            ) from error
        if "without overflow" in str(error):  # the rate, as a number of the weights' type
            rates = ", ".join(f"{group['lr']:.3g}" for group in optimizer.param_groups)
            raise NumericError(f"the learning rate is too large for numbers: {rates}.") from error
        raise


def accumulate_gradients(
    model: PeftModel,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
    loss_mean: str,
    watch: Watch | None = None,
) -> StepReport:
    """Add the routed gradient of a global step to `parameter.grad`; report losses per label."""
    report = StepReport()
    for batch, weights in zip(batches, loss_weights(batches, loss_mean), strict=True):
        with routed(model, policy, batch.routing_ids) as scope, entering(model, batch.states):
            logits = model(**batch.inputs).logits
            if watch is not None:
                watch(batch, scope)
            losses = token_losses(logits, batch.targets)
            loss = share_of_loss(batch, losses, weights)
            loss.backward()
        report.loss += loss.item()
        _count(report, batch, losses.detach(), policy)
    return report


def share_of_loss(
    batch: Batch, losses: Float[Tensor, "r t"], weights: Float[Tensor, " e"]
) -> Float[Tensor, ""]:
    """A micro-batch's share of the loss of the step, with the factors of `loss_weights`."""
    summed = batch.by_example(losses)
    return (summed * weights.to(summed.dtype).to(summed.device)).sum()


def _names(labels: Iterable[Iterable[str]]) -> set[str]:
    return {label for own in labels for label in own}


def _count(
    report: StepReport, batch: Batch, losses: Float[Tensor, "r t"], policy: RoutingPolicy
) -> None:
    """Add what a micro-batch took of each example, and of each label."""
    labels = policy.labels
    sums: list[float] = batch.by_example(losses).tolist()
    counts: list[int] = batch.by_example(batch.targets != IGNORED).tolist()
    shares = _shares(batch, losses, sums, counts)
    computed, taught = batch.computed_labels(), batch.target_labels()
    for at, (name, label_id) in enumerate(zip(batch.ids, batch.label_ids.tolist(), strict=True)):
        for own, nll, count in next(shares):
            label = labels[own]
            report.nll[label] = report.nll.get(label, 0.0) + nll
            report.tokens[label] = report.tokens.get(label, 0) + count
        label = labels[label_id]
        report.examples[label] = report.examples.get(label, 0) + 1
        by, of = (tuple(labels[i] for i in ids[at]) for ids in (computed, taught))
        report.rows.append(RowLoss(name, label, sums[at], counts[at], by, of))


def _shares(
    batch: Batch, losses: Float[Tensor, "r t"], sums: Sequence[float], counts: Sequence[int]
) -> Iterator[list[tuple[int, float, int]]]:
    """Of each example: label id, summed loss and number of the targets with it."""
    if batch.token_label_ids is None:
        for whole in zip(batch.label_ids.tolist(), sums, counts, strict=True):
            yield [whole]
        return
    losses, wanted = losses.cpu(), (batch.targets != IGNORED).cpu()
    for row, start, end in batch.places:
        own, among = batch.token_label_ids[row, start:end], wanted[row, start:end]
        masks = [(i, (own == i) & among) for i in own[among].unique().tolist()]
        yield [(i, losses[row, start:end][m].sum().item(), int(m.sum())) for i, m in masks]


def optimizer_tensors(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, named `<parameter>/<moment>`; see the inverse below.

    Keyed by parameter name rather than by position, so that a file can be read by itself.
    """
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(
    model: PeftModel, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of `optimizer_tensors` back; a parameter without any has never stepped.

    Raises:
        ConfigError: One belongs to no parameter of the model, or has another shape.
    """
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or (key != "step" and value.shape != parameter.shape):
            raise ConfigError(
                f"the saved optimizer state does not fit the model: {name} is "
                f"{list(value.shape)}; go on with the settings that it was saved under."
            )
        on = "cpu" if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.clone().to(on)
