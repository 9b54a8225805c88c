"""Classifiers of texts, and their probability of `bad` for each text.

    classifier          a Hugging Face model for text classification, of a folder or of the hub
    sklearn_classifier  a scikit-learn classifier in a skops file

Both are untrusted files and are checked before a library opens them.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradroute.errors import ConfigError, DataError, MachineError, NumericError
from gradroute.system.terminal import first_line, say
from gradroute.untrusted.model_folder import check_model_folder
from gradroute.untrusted.skops import check_skops_file

Classifier = Callable[[Sequence[str]], list[float]]
"""Gives each text the probability, from 0 to 1, that it is bad."""

TEXTS_AT_ONCE = 32
"""Texts of one forward pass."""


def classifier(place: str, bad_label: str) -> Classifier:
    """A Hugging Face classifier, run on the processor in float32.

    The probability is the softmax over its labels, or the sigmoid of one where the model says that
    a text may have several. Texts longer than the model reads are cut, which is said.

    Args:
        place: A folder in Hugging Face format, or the name of a model on the hub.
        bad_label: Which of its labels is bad.

    Raises:
        ConfigError: There is no such folder, it is refused, holds no whole classifier, or has no
            such label.
        MachineError: A hub model that is not to be had.
    """
    folder = _folder(place)
    from gradroute.models.base import check_versions

    check_versions()
    model, tokenizer = _read(folder, place)
    names = [model.config.id2label[at] for at in range(model.config.num_labels)]
    at = _position(place, names, bad_label)

    def score(texts: Sequence[str]) -> list[float]:
        return _probabilities(model, tokenizer, texts, at, place)

    return score


def sklearn_classifier(path: Path, bad_label: str) -> Classifier:
    """A scikit-learn classifier; one without probabilities (a linear SVM) gives 1 and 0.

    Only types that skops trusts by itself are read, which are scikit-learn's estimators and
    numbers; nobody is asked to trust another one. A pickle is never read.

    Args:
        path: A skops file with a fitted classifier of texts, such as a pipeline of a vectorizer
            and a linear model.
        bad_label: Which of its classes is bad, as a text.

    Raises:
        ConfigError: The file holds no such classifier, types of other packages or no such class.
        MachineError: The extra `label` is not installed.
    """
    check_skops_file(path)
    model = _read_skops(path)
    classes = getattr(model, "classes_", None)
    if classes is None or not callable(getattr(model, "predict", None)):
        raise ConfigError(
            f"{path} holds an object of the type {type(model).__name__}; a fitted classifier of "
            "texts is needed, such as a pipeline of a TfidfVectorizer and a LogisticRegression."
        )
    at = _position(str(path), [str(name) for name in classes], bad_label)

    def score(texts: Sequence[str]) -> list[float]:
        try:
            if callable(getattr(model, "predict_proba", None)):
                found = [float(row[at]) for row in model.predict_proba(list(texts))]
            else:
                found = [float(name == classes[at]) for name in model.predict(list(texts))]
        except Exception as error:  # of whatever its maker put together
            raise DataError(
                f"{path} cannot classify the texts ({_error_line(error)}); it must take a list of "
                "texts."
            ) from error
        return _check_probabilities(found, len(texts), str(path))

    return score


def _folder(place: str) -> Path:
    """The folder of a classifier, checked; fetched where the hub has it."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        if place.startswith((".", "/", "~")) or place.count("/") != 1:
            raise ConfigError(
                f"there is no folder {place!r}; give a classifier in Hugging Face format, or its "
                "name on the hub, as in owner/name."
            )
        from gradroute.models.files import hub_snapshot

        folder = hub_snapshot(place, None)
    check_model_folder(folder, place)
    return folder


def _read(folder: Path, place: str) -> tuple[Any, Any]:
    """The model and its tokenizer; what goes wrong inside is the fault of the folder's files."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, facts = loaded
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except MemoryError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{place} holds no usable model for text classification ({_error_line(error)})."
        ) from error
    if missing := sorted(facts["missing_keys"]):
        raise ConfigError(
            f"{place} is no model for text classification: its files lack {len(missing)} of the "
            f"weights of one, such as {missing[0]}; they would be random numbers."
        )
    return model.eval(), tokenizer


def _probabilities(
    model: Any, tokenizer: Any, texts: Sequence[str], at: int, place: str
) -> list[float]:
    import torch

    several = model.config.problem_type == "multi_label_classification"
    most = tokenizer.model_max_length
    most = min(most, getattr(model.config, "max_position_embeddings", most))
    size = 1 if model.config.pad_token_id is None else TEXTS_AT_ONCE
    found: list[float] = []
    cut = 0
    for start in range(0, len(texts), size):
        some = list(texts[start : start + size])
        lengths = [len(row) for row in tokenizer(some, verbose=False).input_ids]
        cut += sum(length > most for length in lengths)
        batch = tokenizer(
            some, return_tensors="pt", padding=size > 1, truncation=True, max_length=most
        )
        try:
            with torch.no_grad():
                logits = model(**batch).logits
        except (IndexError, TypeError, ValueError) as error:  # tokens that the model does not know
            raise ConfigError(
                f"{place} cannot classify the texts ({_error_line(error)})."
            ) from error
        shares = logits.sigmoid() if several else logits.softmax(-1)
        found += shares[:, at].tolist()
    if cut:
        say(f"{place}: {cut} of {len(texts)} texts are longer than its {most} tokens and were cut.")
    return _check_probabilities(found, len(texts), place)


def _read_skops(path: Path) -> Any:
    try:
        from skops.io import get_untrusted_types
        from skops.io import load as read_trusted
    except ImportError as error:
        raise MachineError(
            "a scikit-learn classifier needs the packages scikit-learn and skops: "
            "pip install 'gradroute[label]'."
        ) from error
    try:
        strange = sorted(get_untrusted_types(file=path))
        # None of its own: only what skops itself trusts.
        model = None if strange else read_trusted(path, trusted=[])
    except MemoryError:
        raise
    except Exception as error:  # the archive is whole, and what it describes is not
        raise ConfigError(f"{path} holds no usable classifier ({_error_line(error)}).") from error
    if strange:
        raise ConfigError(
            f"{path} holds types that are not trusted: {', '.join(strange[:5])}. Only scikit-learn "
            f"types that skops trusts by default are loaded, such as vectorizers, linear models "
            f"and naive Bayes."
        )
    return model


def _position(place: str, names: Sequence[str], name: str) -> int:
    """The place of a label among those of a classifier."""
    if len(names) < 2:
        raise ConfigError(f"{place} has {len(names)} label; a classifier has two at least.")
    if name in names:
        return list(names).index(name)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"{place} has no label {name!r}; its labels are {', '.join(names[:20])}. Give the one "
        f"that is bad as --bad-label.{hint}"
    )


def _check_probabilities(scores: list[float], count: int, place: str) -> list[float]:
    if len(scores) != count or not all(0 <= score <= 1 for score in scores):
        raise NumericError(
            f"{place} gave something other than a probability for each text; its weights may be "
            "damaged."
        )
    return scores


def _error_line(error: Exception) -> str:
    """An error of a library in one line."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]
