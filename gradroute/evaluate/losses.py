"""Teacher-forced loss of held-out examples under several ablation modes."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradroute.data.batches import IGNORED, Batch, TokenizedExample, collate
from gradroute.errors import ConfigError, NumericError
from gradroute.evaluate.inference import in_batches, inference
from gradroute.models.lm_head import plain_head, run_model, token_losses
from gradroute.routing.adapters import ablated
from gradroute.routing.frozen_check import lower_layers, lower_states, run_upper_layers
from gradroute.routing.policy import AblationMode

LOGITS_AT_ONCE = 2**27
"""Logits of one forward pass, at most, of a model whose head cannot be asked for less."""
TOKENS_ON_CPU = 2048
"""Tokens of one forward pass on a CPU, about: more fall out of its cache, and gain nothing."""


class ExampleLosses(NamedTuple):
    """Losses of examples, in their order.

    Attributes:
        sums: Negative log-likelihood summed over the target tokens of each example, in nats.
        counts: Target tokens of each example.
    """

    sums: list[float]
    counts: list[int]


def held_out_losses(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    modes: Sequence[AblationMode],
    *,
    pad_id: int,
    rows_per_batch: int,
    states: Sequence[Float[Tensor, "_ d"]] | None = None,
) -> dict[str, ExampleLosses]:
    """Negative log-likelihood of every example's target tokens under every mode.

    The loss of example i is `-sum_t log p(target_t | tokens before it)` over its target
    positions. Losses are taken in float32 and summed in float64. Examples of like length share a
    batch and all modes share a forward pass, rows grouped by mode, of which the layers below the
    first adapted one run once for all modes; none of this changes a loss but for rounding.

    Args:
        model: A model with routed adapters.
        rows: Tokenized examples.
        modes: The ablation modes, of different names.
        pad_id: Token that fills short rows; it is masked, so any token will do.
        rows_per_batch: Rows (examples times modes) that run at once, at least one example; fewer
            on a CPU (`TOKENS_ON_CPU`), where their logits would be more than `LOGITS_AT_ONCE`, or
            where memory runs out.
        states: What leaves the lower layers for each example, where it is known, see
            `gradroute.models.hidden_state_cache`.

    Returns:
        Per mode name the sums and counts, in the order of `rows`.

    Raises:
        ConfigError: There is no mode to measure under.
        MachineError: There is no memory for even one row.
        NumericError: A loss is not finite.
    """
    sums = torch.zeros(len(modes), len(rows), dtype=torch.float64)

    def add(some: slice, chosen: list[int], row: Int[Tensor, " t"], losses: Float[Tensor, " t"]):
        total = torch.zeros(len(modes[some]) * len(chosen), dtype=torch.float64)
        total.index_add_(0, row, losses.double())
        sums[some, chosen] = total.reshape(-1, len(chosen))

    _each_batch(model, rows, modes, add, pad_id, rows_per_batch, states)
    _check_finite(sums, rows, modes)
    counts = [row.target_count for row in rows]
    return {
        mode.name: ExampleLosses(sums[index].tolist(), counts) for index, mode in enumerate(modes)
    }


def held_out_token_losses(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    modes: Sequence[AblationMode],
    *,
    pad_id: int,
    rows_per_batch: int,
) -> dict[str, list[Float[Tensor, " t"]]]:
    """Negative log-likelihood of each target token of every example under every mode, in nats.

    The terms of the sums that `held_out_losses` gives, with the same arguments and errors.

    Returns:
        Per mode name one float32 tensor per example, in the order of `rows`; its entries are the
        example's target tokens in order.
    """
    found: dict[str, list[Float[Tensor, " t"]]] = {
        mode.name: [torch.empty(0)] * len(rows) for mode in modes
    }

    def keep(some: slice, chosen: list[int], row: Int[Tensor, " t"], losses: Float[Tensor, " t"]):
        sizes = row.bincount(minlength=len(modes[some]) * len(chosen)).tolist()
        parts = iter(losses.split(sizes))
        for mode in modes[some]:
            for index in chosen:
                found[mode.name][index] = next(parts)

    _each_batch(model, rows, modes, keep, pad_id, rows_per_batch, None)
    sums = [[part.double().sum() for part in found[mode.name]] for mode in modes]
    _check_finite(torch.tensor(sums, dtype=torch.float64), rows, modes)
    return found


def _each_batch(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    modes: Sequence[AblationMode],
    take: Callable[[slice, list[int], Int[Tensor, " t"], Float[Tensor, " t"]], None],
    pad_id: int,
    rows_per_batch: int,
    states: Sequence[Float[Tensor, "_ d"]] | None,
) -> None:
    """Run every example under every mode, and give `take` the losses of the target tokens.

    It is called with which modes, which examples, and per target token its row (that of example j
    under mode i is `i * examples + j`) and its loss, rows in order.
    """
    if not modes:
        raise ConfigError("no ablation mode was given to measure losses under; name at least one.")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))

    def measure(items: slice, some: slice) -> None:
        chosen, together = order[items], modes[some]
        batch = collate([rows[index] for index in chosen], pad_id)
        if states is not None:
            batch = batch.with_states([states[index] for index in chosen])
        elif len(together) > 1:
            batch = _through_lower_layers(model, batch, rows)
        # One scope for all batches, so that it stacks the adapters' weights once.
        fewer = ablated(model, together) if len(together) < len(modes) else nullcontext()
        with fewer:
            take(some, chosen, *_losses_by_mode(model, batch, len(together), head))

    head = plain_head(model)
    with inference(model) as device, ablated(model, modes):
        fitting = min(rows_per_batch, _rows_at_once(model, rows, head, device))
        in_batches(len(rows), len(modes), fitting, measure)


def _losses_by_mode(
    model: PeftModel, batch: Batch, count: int, head: nn.Linear | None
) -> tuple[Int[Tensor, " t"], Float[Tensor, " t"]]:
    """Row and loss of every target token of a batch in each of the `count` modes in force."""
    device, states = model.device, batch.states
    inputs = {
        "input_ids": batch.input_ids.repeat(count, 1).to(device),
        "attention_mask": batch.attention_mask.repeat(count, 1).to(device),
        "use_cache": False,
    }
    kept = None if states is None else states.to(device).repeat(count, 1, 1)
    with run_upper_layers(model, kept, inputs):
        out = run_model(model, inputs, head)
    targets = batch.targets.repeat(count, 1)
    row, _ = (targets != IGNORED).nonzero(as_tuple=True)
    positions = (targets != IGNORED).flatten().nonzero()[:, 0]
    tokens = targets.flatten()[positions].to(out.device)
    return row, token_losses(out, positions.to(out.device), tokens, head).to("cpu")


def _through_lower_layers(
    model: PeftModel, batch: Batch, rows: Sequence[TokenizedExample]
) -> Batch:
    """The batch with what leaves the layers below the adapters, if these can run by themselves."""
    try:
        lower = lower_layers(model, [row.input_ids for row in rows])
    except ConfigError:  # nobody has asked for it, so nothing is said
        return batch
    inputs = {**batch.to(model.device).inputs, "use_cache": False}
    return replace(batch, states=lower_states(model, lower, inputs))


def _check_finite(
    sums: Float[Tensor, "modes rows"],
    rows: Sequence[TokenizedExample],
    modes: Sequence[AblationMode],
) -> None:
    if not bool(sums.isfinite().all()):
        at, index = (~sums.isfinite()).nonzero()[0].tolist()
        raise NumericError(
            f"the held-out loss of {rows[index].id!r} under {modes[at].name} is "
            f"{float(sums[at, index])}: the model's numbers overflow under this mode."
        )


def _rows_at_once(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    head: nn.Linear | None,
    device: torch.device,
) -> int:
    """Rows of the longest example that are worth running, or fit, together."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    longest = max((len(row.input_ids) for row in rows), default=1)
    tokens = TOKENS_ON_CPU if device.type == "cpu" else sys.maxsize
    if head is None:
        tokens = min(tokens, LOGITS_AT_ONCE // base.config.get_text_config().vocab_size)
    return tokens // longest
