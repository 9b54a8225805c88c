"""Steps on a handful of examples: the short tunes that follow training."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from peft import PeftModel
from torch import nn

from gradroute.data.batches import Batch, DataOrder, TokenizedExample, collate
from gradroute.errors import MachineError, NumericError
from gradroute.routing.policy import RoutingPolicy
from gradroute.system.memory import with_smaller_batches
from gradroute.system.modules import modes_restored
from gradroute.train.step import train_step
from gradroute.train.step_report import StepReport

Taken = TypeVar("Taken")
_ADVICE = "Lower data.max_length or the adapters' ranks, take a smaller base model, or free memory."


def tune_steps(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[TokenizedExample],
    policy: RoutingPolicy,
    *,
    steps: int,
    batch_size: int,
    accumulation: int,
    loss_mean: str,
    rate: Callable[[int], float],
    seed: int,
    pad_id: int,
) -> Iterator[StepReport]:
    """One optimizer step each time that the next report is asked for.

    The model is in training mode during a step and keeps whatever mode it had between two.

    Args:
        model: A routed model on its device.
        optimizer: From `build_optimizer`.
        rows: The examples, over and over again in an order that the seed decides.
        policy: The table that their label ids index.
        steps: After which it ends.
        batch_size: Examples in one forward pass; fewer from where memory runs out, in more passes.
        accumulation: Forward passes per step.
        loss_mean: "token" or "example", see `loss_weights`.
        rate: Step (from 0) -> factor of the peak learning rates.
        seed: Of the order, and of dropout where there is any.
        pad_id: Token that fills short rows.

    Raises:
        NumericError: A loss, gradient or weight is not finite; the message names the step.
        ConfigError: An adapter that the table updates cannot learn, see `train_step`.
        MachineError: There is no memory for even one example at a time.
    """

    def take(batches: list[Batch], step: int) -> StepReport:
        optimizer.zero_grad(set_to_none=True)
        return train_step(model, optimizer, batches, policy, loss_mean=loss_mean, rate=rate(step))

    return take_steps(
        model,
        rows,
        take,
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        seed=seed,
        pad_id=pad_id,
    )


def take_steps(
    model: nn.Module,
    rows: Sequence[TokenizedExample],
    take: Callable[[list[Batch], int], Taken],
    *,
    steps: int,
    batch_size: int,
    accumulation: int,
    seed: int,
    pad_id: int,
) -> Iterator[Taken]:
    """The loop of `tune_steps` around any step.

    Args:
        model: On its device; in training mode during a step.
        rows: See `tune_steps`, as for the others.
        take: Does a step on micro-batches; its number (from 0) comes with them. It may be called
            again with smaller batches, and clears gradients first.
        steps: See there.
        batch_size: See there.
        accumulation: See there.
        seed: See there.
        pad_id: See there.

    Raises:
        GradrouteError: As `tune_steps` does.
    """
    order = DataOrder(seed, len(rows), tuple(range(len(rows))))
    device = next(model.parameters()).device

    def attempt(step: int, size: int) -> Taken:
        chosen = [rows[at] for at in order.batch(step, batch_size * accumulation)]
        batches = [
            collate(chosen[at : at + size], pad_id).to(device) for at in range(0, len(chosen), size)
        ]
        torch.manual_seed(seed * 1_000_003 + step)
        return take(batches, step)

    size = batch_size
    for step in range(steps):
        try:
            with modes_restored(model):
                model.train()
                taken, size = with_smaller_batches(
                    partial(attempt, step), size, _say_smaller, _ADVICE
                )
        except (NumericError, MachineError) as error:
            raise error.told(f"step {step + 1} of {steps}") from error
        yield taken


def _say_smaller(before: int, after: int) -> None:
    warnings.warn(
        f"memory ran out in a short tune with {before} examples at a time; it goes on with {after} "
        "at a time, the same examples in every step.",
        stacklevel=2,
    )
