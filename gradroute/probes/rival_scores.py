"""Scores of a classifier that is trained on the labels alone: what `find` is compared with.

    words    TF-IDF of words and pairs of words, logistic regression
    hidden   mean hidden states of the base, standardized, logistic regression

Both are trained on examples labeled bad against examples labeled good, five times, each time
without a fifth of them; an example that was never trained on has the mean of the five scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from peft import PeftModel

from gradroute.data.batches import IGNORED, collate
from gradroute.data.tokenization import TokenizedExample
from gradroute.errors import DataError, MachineError
from gradroute.evaluate.inference import inference
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode

ROWS_AT_ONCE = 16
"""Examples of one forward pass."""
FOLDS = 5
"""Parts of the training examples, each scored by a classifier trained on the others."""
WORDS_STRENGTH = 10.0
"""Inverse of the l2 penalty for words; chosen on seed 100 of `caps` and `wrong_pronouns`."""
HIDDEN_STRENGTH = 0.01
"""The same for hidden states."""
INSTALL = "pip install 'gradroute[label]'"


def word_features(texts: Sequence[str]) -> Any:
    """TF-IDF of words and pairs of words, a sparse matrix [texts, terms]; case counts."""
    _check_installed()
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        lowercase=False, ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+"
    ).fit_transform(texts)


def classifier_scores(
    features: Float[ndarray, "n f"] | Any,
    bad: Bool[ndarray, " n"],
    train: Bool[ndarray, " n"],
    *,
    strength: float,
    seed: int,
) -> Float[ndarray, " n"]:
    """Log odds of bad for every example, from a classifier that was not trained on it.

    Args:
        features: One row per example, dense or sparse.
        bad: Which are labeled bad.
        train: Which a classifier may learn from; the others are scored by the mean of all folds.
        strength: Inverse of the l2 penalty, scikit-learn's C.
        seed: Of the folds.

    Returns:
        One score per example; a higher one looks more like the examples labeled bad.

    Raises:
        DataError: A classifier would learn from one label alone.
        MachineError: scikit-learn is not here.
    """
    _check_installed()
    from sklearn.linear_model import LogisticRegression

    fold = np.random.default_rng(seed).permutation(len(bad)) % FOLDS
    for label, own in (("bad", train & bad), ("good", train & ~bad)):
        if len(np.unique(fold[own])) < 2:
            raise DataError(
                f"a classifier of words or hidden states learns from labeled examples without a "
                f"fifth of them, and one time none of the {int(own.sum())} labeled {label} is "
                "left; label more."
            )
    scores = np.zeros((FOLDS, len(bad)))
    for held_out in range(FOLDS):
        rows = np.flatnonzero(train & (fold != held_out))
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        model.fit(features[rows], bad[rows])
        scores[held_out] = model.decision_function(features)
    own = scores[fold, np.arange(len(bad))]
    return np.where(train, own, scores.mean(0))


def installed() -> bool:
    """Whether scikit-learn is there, which both classifiers need."""
    try:
        import sklearn  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


def _check_installed() -> None:
    if not installed():
        raise MachineError(f"a classifier of words or hidden states needs scikit-learn: {INSTALL}.")


def mean_states(
    model: PeftModel, rows: Sequence[TokenizedExample], pad_id: int
) -> list[Float[ndarray, " f"]]:
    """The base's hidden states, averaged over the target tokens of each example.

    Those of the middle and of the last layer, one after the other, with every adapter ablated.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    found: list[Float[ndarray, " f"]] = [np.empty(0)] * len(rows)
    names = tuple(model.peft_config)
    with inference(model) as device, ablated(model, AblationMode.parse("base", names)):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chosen = order[start : start + ROWS_AT_ONCE]
            batch = collate([rows[index] for index in chosen], pad_id).to(device)
            states = model(**batch.inputs, output_hidden_states=True).hidden_states
            both = torch.cat([states[len(states) // 2], states[-1]], -1).float()
            wanted = (batch.targets != IGNORED).unsqueeze(-1).to(both.device)
            means = (both * wanted).sum(1) / wanted.sum(1)
            for index, mean in zip(chosen, means.cpu().double().numpy(), strict=True):
                found[index] = mean
    return found
