"""Losses of target tokens from a model's last hidden states, without the logits of a batch.

With a large vocabulary the logits [tokens, vocab] and their gradients are most of a step's memory:
a vocabulary of 262k takes a megabyte a token. Only positions with a target have a loss, so only
these meet the head; and where their logits would still be many, the loss is taken group by group
with PyTorch's `linear_cross_entropy`, which makes the gradient of the hidden states as it goes and
keeps nothing else.

The model is called as it always is, hooks and all. Only its head is stood in for by one that keeps
its input, and only where the head is a plain frozen linear layer whose output the model returns
unchanged. That is tried, not assumed: some models cap or scale their logits.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from gradroute.data.batches import TargetGroups
from gradroute.routing.adapters import ablated
from gradroute.system.modules import evaluation_mode, is_plain

LOGITS_AT_ONCE = 2**22
"""Logits that are computed together without a second thought: 16 MiB in float32."""
CHUNK = 2**24
"""Logits of one chunk where there are more than that: 64 MiB in float32."""
IN_CACHE = 2**20
"""Logits of one chunk on a CPU where no gradient is wanted: 4 MiB, which its cache holds."""
LEAST = 64
"""Tokens of such a chunk, at least: products of fewer rows are slow."""

_returned: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def plain_head(model: PeftModel) -> nn.Linear | None:
    """The output head, if it is nothing but a frozen linear layer in front of the logits.

    The first call for a model runs it once, on four tokens, with a stand-in for the head: what
    that returns must come out as the logits. Call it outside of whatever changes the model's
    forward pass. Weights, training mode and random state stay as they are.

    Returns:
        None for a head with hooks, of another kind, or whose weights are trained, sharded or
        quantized; or where the model does something to the logits (a cap, a scale). And on the
        device "meta", where nothing can be tried.
    """
    base = model.get_base_model()
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    if type(head) is not nn.Linear or _is_special(head):
        return None
    if base not in _returned:
        _returned[base] = _returns_output(model, head)
    return head if _returned[base] else None


def run_model(
    model: PeftModel, inputs: Mapping[str, Any], head: nn.Linear | None
) -> Float[Tensor, "n f"]:
    """Run a model and return what its head is given at each position, one row after another.

    The first half of a loss; the second is `summed_losses` or `token_losses`.

    Args:
        model: A routed model.
        inputs: What it is called with.
        head: From `plain_head`; None returns the logits of each position.
    """
    if head is None:
        return model(**inputs).logits.flatten(0, -2)
    with _replaced_head(head) as kept:
        model(**inputs)
    [states] = kept
    return states.flatten(0, -2)


def summed_losses(
    states: Float[Tensor, "n f"], targets: TargetGroups, head: nn.Linear | None
) -> Float[Tensor, " g"]:
    """Negative log likelihood in nats, summed over the target tokens of each group.

    `-Σ log softmax(W h + b)[token]` over the group's positions, in float32 at least (of a float64
    model in float64). It equals the loss from all logits but for rounding, and can be
    differentiated once.

    Args:
        states: From `run_model`.
        targets: Positions of the states, and the tokens that they predict.
        head: The same as for `run_model`.
    """
    chosen, sizes = states.index_select(0, targets.positions), list(targets.sizes)
    if not sizes:
        return chosen.new_zeros(0)
    if head is None or not _is_large(chosen, head):
        logits = chosen if head is None else F.linear(chosen, head.weight, head.bias)
        return torch.stack([part.sum() for part in _losses(logits, targets.tokens).split(sizes)])
    rows = max(1, CHUNK // len(head.weight))
    parts = zip(chosen.split(sizes), targets.tokens.split(sizes), strict=True)
    return torch.stack([_chunked(states, tokens, head, rows) for states, tokens in parts])


@torch.no_grad()
def token_losses(
    states: Float[Tensor, "n f"],
    positions: Int[Tensor, " m"],
    tokens: Int[Tensor, " m"],
    head: nn.Linear | None,
) -> Float[Tensor, " m"]:
    """Negative log likelihood of each token in nats, without gradient; as for `summed_losses`."""
    chosen = states.index_select(0, positions)
    if head is None:
        return _losses(chosen, tokens)
    logits = IN_CACHE if states.device.type == "cpu" else CHUNK
    rows = max(LEAST, logits // len(head.weight))
    parts = zip(chosen.split(rows), tokens.split(rows), strict=True)
    return torch.cat([_losses(F.linear(c, head.weight, head.bias), t) for c, t in parts])


def _is_large(states: Float[Tensor, "n f"], head: nn.Linear) -> bool:
    """Whether the logits are too many to have at once, and of a type that is taken in chunks."""
    if states.dtype != head.weight.dtype or torch.is_autocast_enabled(states.device.type):
        return False
    return len(states) * len(head.weight) > LOGITS_AT_ONCE


def _losses(logits: Float[Tensor, "n v"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, tokens, reduction="none")


def _chunked(
    states: Float[Tensor, "n f"], tokens: Int[Tensor, " n"], head: nn.Linear, rows: int
) -> Float[Tensor, ""]:
    """One group's summed loss; its logits live for one chunk of so many rows at a time."""
    # The sizes that PyTorch would choose by itself are right for a GPU. On a CPU they are two or
    # three rows for a vocabulary of 32k, which took 14 times as long.
    options = nn.LinearCrossEntropyOptions(
        chunking_method=None, batch_chunk_size=min(rows, len(states))
    )
    loss = F.linear_cross_entropy(
        states, head.weight, tokens, linear_bias=head.bias, reduction="sum", options=options
    )
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def _is_special(head: nn.Linear) -> bool:
    hooked = "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks
    if hooked or head._backward_hooks or head._backward_pre_hooks or head.weight.is_meta:
        return True
    weights = [weight for weight in (head.weight, head.bias) if weight is not None]
    return any(w.requires_grad or not is_plain(w) for w in weights)


@contextmanager
def _replaced_head(head: nn.Linear, answer: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Within, the head keeps what it is given and returns the answer, or next to nothing."""
    kept: list[Tensor] = []

    def forward(input: Tensor) -> Tensor:
        kept.append(input)
        return input[..., :1] if answer is None else answer

    head.forward = forward
    try:
        yield kept
    finally:
        del head.forward


def _returns_output(model: PeftModel, head: nn.Linear) -> bool:
    """Whether the model's logits are what its head returns, at every position, unchanged."""
    weight = head.weight
    length = min(4, len(weight))
    ids = torch.arange(length, device=weight.device)[None]
    answer = torch.linspace(-500.0, 500.0, length * len(weight), dtype=weight.dtype)
    answer = answer.to(weight.device).view(1, length, len(weight))
    with (
        evaluation_mode(model),
        torch.no_grad(),
        ablated(model, "base"),
        _replaced_head(head, answer) as kept,
    ):
        logits = model(input_ids=ids, use_cache=False).logits
    if len(kept) != 1 or kept[0].shape != (1, length, head.in_features):
        return False
    return logits.shape == answer.shape and bool((logits == answer).all())
