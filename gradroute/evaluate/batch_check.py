"""A check that a model generates the same in a batch as for each row alone.

Rows of unequal length are padded on the left. Attention is masked there; a recurrent state that
passes over the padding is another one afterwards, unless the model takes care of it. So no model is
trusted: each is tried.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradroute.errors import ConfigError
from gradroute.evaluate.decoding import look_every, write_on
from gradroute.evaluate.inference import inference
from gradroute.models.sizes import ordinary_tokens, positions_of
from gradroute.system.memory import is_out_of_memory
from gradroute.system.terminal import first_line

_LONG, _SHORT = 8, 3
"""Tokens that the two rows of the trial begin with."""
# Largest difference of logits that is rounding, over the largest logit; see `check_packing`.
_CLOSE = {torch.float64: 1e-8, torch.float32: 1e-3}
_CLOSE_OTHERWISE = 0.05

TROUBLE = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)
"""What a model may raise that cannot be run so."""

_why_alone: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def why_alone(model: PreTrainedModel) -> str:
    """Why rows must be written one at a time; nothing where they may share a batch.

    The first call for a model writes a few tokens after two rows of unequal length, side by side
    and each by itself; one of them leaves the batch early. The logits must be equal but for
    rounding. The answer depends on nothing but the model, is kept with it, and is said once. Call
    it outside of whatever changes the model's forward pass. Weights, training mode and random state
    stay as they are.

    Returns:
        Half a sentence, such as `its logits differ by 0.3 of the largest in a batch`.

    Raises:
        ConfigError: The model cannot write even one row.
    """
    if model not in _why_alone:
        with inference(model), torch.random.fork_rng(devices=_devices(model)):
            _why_alone[model] = _compare_batches(model)
        if why := _why_alone[model]:
            warnings.warn(
                f"the model {type(model).__name__} generates one row at a time, which takes "
                f"longer: {why}.",
                stacklevel=2,
            )
    return _why_alone[model]


def _compare_batches(model: PreTrainedModel) -> str:
    steps = look_every(next(model.parameters()).device) + 2
    room = positions_of(model)
    longest = _LONG if room is None else min(_LONG, room - steps)
    if longest < 2:
        return "it has too few positions to try it"
    tokens = ordinary_tokens(model, longest + steps + 1)
    rows = [tokens[:longest], tokens[: min(_SHORT, longest - 1)]]
    try:
        alone = [_next_logits(model, [row], tokens[longest:], steps)[0] for row in rows]
    except TROUBLE as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the model {type(model).__name__} cannot generate text here ({first_line(error)}), so "
            "that it cannot be evaluated. Take another base model."
        ) from error
    try:
        together = _next_logits(model, rows, tokens[longest:], steps)
    except TROUBLE as error:
        if is_out_of_memory(error):
            raise
        return f"it cannot run a batch of rows of unequal length ({first_line(error)})"
    apart = max(
        _largest_difference(*pair, model.dtype) for pair in zip(together, alone, strict=True)
    )
    if apart <= _CLOSE.get(model.dtype, _CLOSE_OTHERWISE):
        return ""
    return f"its logits differ by {apart:.2g} of the largest in a batch of rows of unequal length"


def _largest_difference(
    one: Float[Tensor, "m v"], other: Float[Tensor, "n v"], dtype: torch.dtype
) -> float:
    """How far apart the logits of a row are, of the steps that both took.

    In few bits an expert may be chosen otherwise for one token because of rounding; a state that
    is wrong shows in most tokens.
    """
    apart = (one - other[: len(one)]).abs().amax(1) / other.abs().max()
    return float(apart.max() if dtype in _CLOSE else apart.median())


def _next_logits(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], tokens: Sequence[int], steps: int
) -> list[Tensor]:
    """Of each row the logits [steps, vocab] of its next tokens; the longest row ends early."""
    ends = max(range(len(rows)), key=lambda at: len(rows[at])) if len(rows) > 1 else None
    device = next(model.parameters()).device
    sampler = _Given(tokens[:steps], tokens[steps], ends, len(rows), device)
    write_on(
        model,
        rows,
        sampler,
        lambda left: nullcontext(),
        end_tokens=[tokens[steps]],
        max_new_tokens=steps,
    )
    return [torch.stack(own) for own in sampler.logits]


class _Given:
    """Chooses given tokens, and keeps the logits that others would be chosen by.

    Attributes:
        logits: Of each row at each step until it ended.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        end: int,
        ends: int | None,
        rows: int,
        device: torch.device,
    ) -> None:
        self.keys = torch.zeros(1, 4, dtype=torch.int64, device=device)
        self.logits: list[list[Tensor]] = [[] for _ in range(rows)]
        self._tokens, self._end, self._ends = tokens, end, ends

    def rows(self, left: Int[Tensor, " left"]) -> Int[Tensor, " left"]:
        """The rows themselves."""
        return left

    def choose(
        self,
        logits: Float[Tensor, "left vocab"],
        step: int,
        among: Int[Tensor, " left"],
        ended: Bool[Tensor, " left"],
    ) -> Int[Tensor, " left"]:
        """The token of this step, or the end for the row that is to leave."""
        numbers = logits.double().cpu()
        for row, own, over in zip(among.tolist(), numbers, ended.tolist(), strict=True):
            if not over:
                self.logits[row].append(own)
        chosen = torch.full_like(among, self._tokens[step])
        return chosen if self._ends is None else chosen.where(among != self._ends, self._end)

    def check(self) -> None:
        """Nothing: a model whose logits are not finite is told of by what measures it."""


def _devices(model: PreTrainedModel) -> list[torch.device]:
    device = next(model.parameters()).device
    return [device] if device.type == "cuda" else []
