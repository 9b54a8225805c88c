"""Scores of a classifier that is fine-tuned on the labels.

A linear head on the last hidden state, averaged over the target tokens, with LoRA on the run's own
layers. It is trained on examples labeled bad against all others, which few examples labeled good
would not do for: every batch is half of each, so that the few bad ones weigh as much.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from gradroute.data.batches import IGNORED, Batch, collate
from gradroute.data.tokenization import TokenizedExample
from gradroute.evaluate.inference import inference
from gradroute.models.lm_head import plain_head, run_model
from gradroute.routing.adapters import ablated, adapter_parameters
from gradroute.routing.policy import AblationMode
from gradroute.system.modules import modes_restored
from gradroute.train.optimizer import schedule

FOLDS = 2
"""Parts of the examples without a label, each scored by a classifier trained on the others."""
STEPS = 100
"""Optimizer steps of each classifier; with the rate below, not tuned beyond one try on seed 100."""
RATE = 1e-3
"""Peak learning rate, of the adapter and of the head."""
EACH = 8
"""Examples labeled bad, and others, in a step."""
ROWS_AT_ONCE = 32
"""Examples of one forward pass when scored."""


def head_scores(
    model: PeftModel,
    labeled: Sequence[TokenizedExample],
    bad: Bool[ndarray, " n"],
    others: Sequence[TokenizedExample],
    pad_id: int,
    *,
    seed: int,
) -> Float[ndarray, " m"]:
    """Log odds of bad of every example without a label, from a classifier not trained on it.

    In units of the spread of its part's scores, since two classifiers have two scales.

    Args:
        model: A routed model; its first adapter is drawn anew and trained, and is of no use
            afterwards.
        labeled: Examples labeled bad or good, at least one bad.
        bad: Which of them are labeled bad.
        others: Examples whose label the classifier is not told, unlabeled ones and those held out
            as known to be good; they are all treated alike, as good ones.
        pad_id: Token that fills short rows.
        seed: Of the parts, the weights and the order.

    Returns:
        One score per example of `others`; a higher one looks more like the examples labeled bad.
    """
    draw = np.random.default_rng(seed)
    fold = draw.permutation(len(others)) % FOLDS
    positive = [row for row, own in zip(labeled, bad, strict=True) if own]
    known = [row for row, own in zip(labeled, bad, strict=True) if not own]
    scores = np.zeros(len(others))
    for part in range(FOLDS):
        more = [row for row, of in zip(others, fold, strict=True) if of != part]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * FOLDS + part)
            classifier = _begin(model)
            batches = _halves(positive, [*known, *more], pad_id, draw)
            _train(classifier, batches)
        here = np.flatnonzero(fold == part)
        own = _scores(classifier, [others[int(at)] for at in here], pad_id)
        scores[here] = (own - own.mean()) / (own.std() + 1e-12)
    return scores


@dataclass(frozen=True)
class _Classifier:
    """A model with an adapter of its own for the classifier.

    Attributes:
        model: The routed model.
        weights: Of the adapter.
        mode: That adapter alone.
        head: On what the model's own head is given.
        own_head: The model's, from `plain_head`.
    """

    model: PeftModel
    weights: list[nn.Parameter]
    mode: AblationMode
    head: nn.Linear
    own_head: nn.Linear | None

    def log_odds(self, batch: Batch) -> Float[Tensor, " b"]:
        """The head on the mean over the target tokens of each example."""
        if self.own_head is None:
            states = self.model(**batch.inputs, output_hidden_states=True).hidden_states[-1]
        else:
            states = run_model(self.model, batch.inputs, self.own_head)
            states = states.view(*batch.input_ids.shape, -1)
        wanted = (batch.targets != IGNORED).unsqueeze(-1)
        means = (states * wanted).sum(1) / wanted.sum(1)
        return self.head(means.float()).squeeze(-1)


def _begin(model: PeftModel) -> _Classifier:
    """The first adapter as PEFT begins one, and a head."""
    name, base = next(iter(model.peft_config)), cast(PreTrainedModel, model.get_base_model())
    weights = adapter_parameters(model)[name]
    with torch.no_grad():
        for down, up in zip(weights[::2], weights[1::2], strict=True):
            nn.init.kaiming_uniform_(down, a=5**0.5)
            up.zero_()
    mode = AblationMode("classifier", {n: float(n == name) for n in model.peft_config})
    width = cast(nn.Embedding, base.get_input_embeddings()).weight.shape[1]
    head = nn.Linear(width, 1).to(model.device)
    return _Classifier(model, weights, mode, head, plain_head(model))


def _halves(
    bad: Sequence[TokenizedExample],
    good: Sequence[TokenizedExample],
    pad_id: int,
    draw: np.random.Generator,
) -> Iterator[Batch]:
    """Batches of as many of each, for ever; the bad ones first."""
    pools = [_shuffled(rows, draw) for rows in (bad, good)]
    while True:
        yield collate([next(pool) for pool in pools for _ in range(EACH)], pad_id)


def _shuffled(
    rows: Sequence[TokenizedExample], draw: np.random.Generator
) -> Iterator[TokenizedExample]:
    while True:
        for at in draw.permutation(len(rows)):
            yield rows[at]


def _train(one: _Classifier, batches: Iterator[Batch]) -> None:
    weights = [*one.weights, *one.head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    wanted = torch.tensor([1.0] * EACH + [0.0] * EACH, device=one.model.device)
    with modes_restored(one.model), ablated(one.model, one.mode):
        one.model.train()
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * schedule(step, STEPS, STEPS // 10)
            optimizer.zero_grad(set_to_none=True)
            odds = one.log_odds(next(batches).to(one.model.device))
            F.binary_cross_entropy_with_logits(odds, wanted).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()


def _scores(
    one: _Classifier, rows: Sequence[TokenizedExample], pad_id: int
) -> Float[ndarray, " n"]:
    found = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].input_ids))
    with inference(one.model) as device, ablated(one.model, one.mode):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chosen = order[start : start + ROWS_AT_ONCE]
            batch = collate([rows[at] for at in chosen], pad_id).to(device)
            found[chosen] = one.log_odds(batch).double().cpu().numpy()
    return found
