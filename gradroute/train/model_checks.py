"""Checks before training: packed examples stay independent, or padding needs no mask.

Packed examples are kept apart by their positions, which begin anew with each (`Batch.inputs`). Most
models of transformers make their attention masks from these. One that does not would let an example
read the one before it, and nothing in its loss would say so. So the model is tried, on real rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from gradroute.data.batches import Batch, TokenizedExample, collate, pack
from gradroute.errors import ConfigError
from gradroute.system.memory import is_out_of_memory
from gradroute.system.modules import evaluation_mode
from gradroute.system.terminal import first_line

_CURE = "Set train.packing=false."
_LONGEST = 64  # tokens of an example that the model is tried on
# Largest difference of logits between a packed and a padded example, over the largest logit.
# Positions that do not begin anew, or a mask that is too wide, change them by far more.
_CLOSE = {torch.float64: 1e-8, torch.float32: 1e-3}
_CLOSE_OTHERWISE = 0.05


def check_packing(model: PeftModel, rows: Sequence[TokenizedExample], pad_id: int) -> None:
    """See that an example computes the same behind another in its row as in a row of its own.

    Two things are looked at. No gradient may flow from what the second example computes to what
    the first one holds, not even the smallest: its attention reaches back to its own beginning and
    no further. And the second must compute what it does by itself, so that its positions begin
    at 0. Weights, gradients, training mode and random state stay as they are.

    Args:
        model: The routed model on its device.
        rows: Tokenized examples; the two longest are tried, cut short.
        pad_id: The padding token.

    Raises:
        ConfigError: The model mixes packed examples, or cannot run them.
    """
    longest = sorted(rows, key=lambda row: len(row.input_ids))[-2:]
    first, second = (_cut(row) for row in (longest[0], longest[-1]))
    kind = type(model.get_base_model()).__name__
    try:
        with evaluation_mode(model):
            packed = pack([first, second], pad_id, len(first.input_ids) + len(second.input_ids))
            behind, reach = _second(model, packed.to(model.device))
            alone, _ = _second(model, collate([first, second], pad_id).to(model.device))
    except (TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"train.packing: the model {kind} cannot run packed examples ({first_line(error)}). "
            f"{_CURE}"
        ) from error
    if bool(reach[: len(first.input_ids)].any()):
        raise ConfigError(
            f"train.packing: in the model {kind} an example attends to the one before it in its "
            f"row, so packed examples are not independent. {_CURE}"
        )
    apart = float((behind - alone).abs().max() / alone.abs().max())
    if not apart <= _CLOSE.get(model.dtype, _CLOSE_OTHERWISE):
        raise ConfigError(
            f"train.packing: in the model {kind} an example packed after another one gives other "
            f"numbers than alone (a difference of {apart:.2g} of the largest). {_CURE}"
        )


def needs_no_mask(model: PeftModel, rows: Sequence[TokenizedExample], pad_id: int) -> bool:
    """Whether padding on the right may go without an attention mask (`Batch.bare`).

    It may where no position sees a later one, as in any causal model. It is tried as packing is: no
    gradient may flow from an example to the padding behind it, and it must compute what it does
    under a mask. Weights, gradients, training mode and random state stay as they are.

    Args:
        model: The routed model on its device.
        rows: Tokenized examples; the longest is tried, beside the first half of it.
        pad_id: The padding token.
    """
    longest = _cut(max(rows, key=lambda row: len(row.input_ids)))
    half = replace(longest, input_ids=longest.input_ids[: (len(longest.input_ids) + 1) // 2])
    batch = collate([longest, half], pad_id).to(model.device)
    try:
        with evaluation_mode(model):
            masked, _ = _second(model, batch)
            bare, reach = _second(model, replace(batch, bare=True))
    except (TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # it cannot be tried, so nothing is known of it
    if bool(reach[len(half.input_ids) :].any()):
        return False
    apart = float((bare - masked).abs().max() / masked.abs().max())
    return apart <= _CLOSE.get(model.dtype, _CLOSE_OTHERWISE)


def _cut(row: TokenizedExample) -> TokenizedExample:
    return replace(row, input_ids=row.input_ids[:_LONGEST], gaps=(), label_ids=(), factors=())


def _second(model: PeftModel, batch: Batch) -> tuple[Float[Tensor, "n v"], Float[Tensor, "t d"]]:
    """Of the second of two examples the logits, and their gradient at the embeddings of its row."""
    held: list[Tensor] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(
        lambda module, args, output: held.append(output.requires_grad_())
    )
    try:
        logits = model(**batch.inputs).logits
    finally:
        hook.remove()
    row, start, end = batch.places[1]
    own = logits[row, start:end].double()
    # Any function of all logits that is not blind for a common shift of them.
    probe = torch.linspace(-1.0, 1.0, own.shape[1], dtype=own.dtype, device=own.device)
    [gradient] = torch.autograd.grad((own * probe).sum(), held[:1])
    return own.detach().cpu(), gradient[row].detach().cpu()
