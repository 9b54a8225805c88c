"""The model itself; importing this module imports lm-eval."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.errors import NumericError
from gradroute.evaluate.batch_check import why_alone
from gradroute.evaluate.inference import inference
from gradroute.evaluate.losses import LOGITS_AT_ONCE
from gradroute.models.sizes import positions_of
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode

_LOGGER = logging.getLogger("lm_eval.models.huggingface")
# What it says of every model that is handed to it as an object.
_OF_OBJECTS = ("`pretrained` model kwarg is not of type", "Passed an already-initialized model")

_HFLM: Any = HFLM  # the decorator that registers it hides its type
Tokens = tuple[Any, list[int], list[int]]
"""What lm-eval calls a request: what it was asked, the context's tokens, the continuation's."""


@final
class ModeLM(_HFLM):
    """A model with routed adapters under one ablation mode; see `gradroute.harness.as_lm`.

    Attributes:
        mode: The ablation mode.
    """

    def __init__(
        self, model: PeftModel, tokenizer: Tokenizer, mode: AblationMode, rows: int
    ) -> None:
        _LOGGER.addFilter(_is_news)
        try:
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=rows,
                max_length=positions_of(_inner(model)),
                softmax_dtype=torch.float32,
                trust_remote_code=False,
            )
        finally:
            _LOGGER.removeFilter(_is_news)
        self.mode = mode
        self._rows = rows
        self._routed = model

    def under(self, mode: AblationMode) -> "ModeLM":
        """The same model under another mode, on the same weights."""
        return ModeLM(self._routed, self.tokenizer, mode, self._rows)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval keeps of a model under `config`, with the mode that its numbers are of."""
        return {**super().get_model_info(), "ablation_mode": self.mode.name}

    @contextmanager
    def _measured(self) -> Iterator[None]:
        with inference(self._routed), ablated(self._routed, self.mode):
            yield

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether it is the greedy one) of each request."""
        with self._measured():
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text, in windows where it is longer than the context."""
        # lm-eval puts a beginning token before the first window, so the tokenizer puts none.
        self.add_bos_token = False
        try:
            with self._measured():
                return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.add_bos_token = None

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, until one of the request's stops."""
        with ablated(self._routed, "base"):
            alone = why_alone(_inner(self._routed))
        if alone:
            self.batch_size_per_gpu = 1
        with self._measured():
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Tokens],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        longest = max(len(context) + len(continuation) for _, context, continuation in requests)
        weight = self._routed.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        fitting = LOGITS_AT_ONCE // (min(longest, self.max_length) * weight.shape[0])
        self.batch_size_per_gpu = max(1, min(self._rows, fitting))
        found = super()._loglikelihood_tokens(
            list(requests), disable_tqdm=disable_tqdm, override_bs=override_bs
        )
        for (asked, *_), (value, _) in zip(requests, found, strict=True):
            if not math.isfinite(value):
                raise NumericError(
                    f"the log-likelihood of {str(asked)[:60]!r} under {self.mode.name} is {value}: "
                    "the model's numbers overflow under this mode."
                )
        return found


def _inner(model: PeftModel) -> PreTrainedModel:
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_OF_OBJECTS)
