"""The attacker that trains every weight of a shipped model, and puts all of them back."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn

from gradroute.data.batches import Batch, TokenizedExample
from gradroute.errors import NumericError
from gradroute.models.lm_head import run_model, summed_losses
from gradroute.routing.adapters import ablated
from gradroute.train.short_tune import take_steps
from gradroute.train.step import loss_weights, share_of_loss


@contextmanager
def weights_restored(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The weights of a model, each once; afterwards they and its buffers are bit-identical again.

    The copies are in main memory, so that an accelerator holds the weights, their gradients and
    the optimizer's moments, and nothing more.
    """
    weights = list(model.parameters())
    trained = [weight.requires_grad for weight in weights]
    tensors: list[Tensor] = [*weights, *model.buffers()]
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    try:
        yield weights
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
        for weight, was in zip(weights, trained, strict=True):
            weight.requires_grad_(was).grad = None


def full_steps(
    model: PeftModel,
    weights: Sequence[nn.Parameter],
    rows: Sequence[TokenizedExample],
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    accumulation: int,
    loss_mean: str,
    seed: int,
    pad_id: int,
) -> Iterator[float]:
    """One step of AdamW on all weights each time that the next loss is asked for.

    Constant rate, no weight decay, no clipping: what an attacker's adapter is trained with.

    Args:
        model: The model with an idle adapter, on its device.
        weights: Those of the base.
        rows: See `tune_steps`, as for the others.
        learning_rate: Of every step.
        steps: See there.
        batch_size: See there.
        accumulation: See there.
        loss_mean: See there.
        seed: See there.
        pad_id: See there.

    Raises:
        NumericError: A loss is not finite; the message names the step.
        MachineError: There is no memory for even one example at a time.
    """
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)

    def take(batches: list[Batch], _: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        for weight in weights:
            weight.requires_grad_(True)
        loss = sum(_backward(model, batches, loss_mean))
        if not math.isfinite(loss):
            raise NumericError(
                f"the loss of an attack on all weights is {loss}: its learning rate of "
                f"{learning_rate:.3g} is too large for this model."
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for weight in weights:  # so that a measurement finds a frozen base
            weight.requires_grad_(False)
        return loss

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


def _backward(model: PeftModel, batches: Sequence[Batch], loss_mean: str) -> Iterator[float]:
    """Add the gradient of a step to every weight; the losses of its micro-batches."""
    for batch, factors in zip(batches, loss_weights(batches, loss_mean), strict=True):
        with ablated(model, "base"):
            logits = run_model(model, batch.inputs, None)
            groups = batch.target_groups()
            loss = share_of_loss(groups, summed_losses(logits, groups, None), factors)
            loss.backward()
        yield float(loss.detach())
