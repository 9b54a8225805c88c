"""KL divergence between two next-token distributions of a model, without the logits of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gradroute.models.lm_head import CHUNK


def summed_divergences(
    states: Float[Tensor, "n f"],
    reference: Float[Tensor, "n f"],
    sizes: Sequence[int],
    head: nn.Linear | None,
) -> Float[Tensor, " g"]:
    """KL(reference || model) in nats, summed over the positions of each group.

    `Σ_v p(v) (log p(v) - log q(v))` with p of the reference and q of the model, in float32 at least
    (of a float64 model in float64). Only the model's states get a gradient, and it can be taken
    once. The logits of `lm_head.CHUNK` numbers at most are in memory at a time.

    Args:
        states: What the head is given by the model, see `lm_head.run_model`.
        reference: What it is given by the reference at the same positions.
        sizes: Positions of each group, one group after another.
        head: From `lm_head.plain_head`; None where the states are logits already.
    """
    if not sizes:
        return states.new_zeros(0)
    weight, bias = (None, None) if head is None else (head.weight, head.bias)
    found = _Divergence.apply(states, reference, weight, bias)
    assert isinstance(found, Tensor)
    return torch.stack([part.sum() for part in found.split(list(sizes))])


class _Divergence(torch.autograd.Function):
    """The divergence at each position; its gradient is made as it goes: (q - p) W."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Float[Tensor, "n f"],
        reference: Float[Tensor, "n f"],
        weight: Float[Tensor, "v f"] | None,
        bias: Float[Tensor, " v"] | None,
    ) -> Float[Tensor, " n"]:
        vocabulary = states.shape[1] if weight is None else len(weight)
        rows = max(1, CHUNK // vocabulary)
        found, gradients = [], []
        for own, other in zip(states.split(rows), reference.split(rows), strict=True):
            log_q, log_p = (_log_probabilities(one, weight, bias) for one in (own, other))
            p = log_p.exp()
            # A token without probability counts 0, also where the model gives it none either.
            found.append(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1))
            if ctx.needs_input_grad[0]:
                slope = (log_q.exp() - p).to(own.dtype)
                gradients.append(slope if weight is None else slope @ weight.to(own.dtype))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> Any:
        (slopes,) = ctx.saved_tensors
        (grad,) = grad_outputs
        return slopes * grad.to(slopes.dtype).unsqueeze(-1), None, None, None


def _log_probabilities(
    states: Float[Tensor, "n f"],
    weight: Float[Tensor, "v f"] | None,
    bias: Float[Tensor, " v"] | None,
) -> Float[Tensor, "n v"]:
    logits = states if weight is None else F.linear(states, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
