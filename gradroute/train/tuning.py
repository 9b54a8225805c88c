"""Steps on a handful of examples: the short tunes that follow training."""

from collections.abc import Callable, Iterator, Sequence

import torch
from peft import PeftModel

from gradroute.data.batches import DataOrder, TokenizedExample, collate
from gradroute.errors import NumericError
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.step import StepReport, train_step


def tuning(
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
        batch_size: Examples in one forward pass.
        accumulation: Forward passes per step.
        loss_mean: "token" or "example", see `loss_weights`.
        rate: Step (from 0) -> factor of the peak learning rates.
        seed: Of the order, and of dropout where there is any.
        pad_id: Token that fills short rows.

    Raises:
        NumericError: A loss or gradient is not finite; the message names the step.
    """
    order = DataOrder(seed, len(rows), tuple(range(len(rows))))
    device = next(model.parameters()).device
    for step in range(steps):
        chosen = [rows[at] for at in order.batch(step, batch_size * accumulation)]
        batches = [
            collate(chosen[at : at + batch_size], pad_id).to(device)
            for at in range(0, len(chosen), batch_size)
        ]
        was_training = model.training
        model.train()
        torch.manual_seed(seed * 1_000_003 + step)
        try:
            report = train_step(
                model, optimizer, batches, policy, loss_mean=loss_mean, rate=rate(step)
            )
        except NumericError as error:
            raise NumericError(f"step {step + 1} of {steps}: {error}") from error
        finally:
            model.train(was_training)
        yield report
