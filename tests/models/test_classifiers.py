"""Classifiers give the probability of their bad label; untrusted files are checked first."""

import json
import math
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hostile_models import change, pickled, tiny_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from transformers.utils import logging

from gradroute.errors import ConfigError, DataError, MachineError, NumericError
from gradroute.models.base import embedded_model
from gradroute.models.classifiers import classifier, sklearn_classifier
from gradroute.untrusted import skops as skops_module

TEXTS = ["A fox.", "The owl sleeps in the old tree by the river.", "THE FOX SHOUTS", "so"] * 9
LABELS = {0: "fine", 1: "toxic", 2: "odd"}


def save_classifier(
    folder: Path, problem_type: Literal["multi_label_classification"] | None = None
) -> Path:
    """A tiny Llama that tells three labels apart, with the embedded tokenizer."""
    config = LlamaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, initializer_range=0.5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, id2label=LABELS,
        label2id={name: at for at, name in LABELS.items()}, problem_type=problem_type,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(config)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(embedded_model()) / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("model") / "judge")


@pytest.mark.parametrize("label", ["toxic", "odd"])
def test_a_batch_gets_the_probabilities_that_each_text_gets_alone(folder: Path, label: str):
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    at = dict(zip(LABELS.values(), LABELS, strict=True))[label]
    with torch.no_grad():
        alone = [
            float(model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, at])
            for text in TEXTS
        ]
    found = classifier(str(folder), label)(TEXTS)
    assert max(alone) - min(alone) > 0.05
    assert found == pytest.approx(alone, abs=1e-5)


def test_a_model_of_several_labels_at_once_is_read_by_sigmoid(tmp_path: Path):
    place = save_classifier(tmp_path / "m", problem_type="multi_label_classification")
    found = [sum(classifier(str(place), name)(TEXTS[:1])) for name in LABELS.values()]
    assert abs(sum(found) - 1) > 1e-3


def test_texts_that_are_too_long_are_cut_and_counted(folder: Path, capsys):
    scores = classifier(str(folder), "toxic")(["a fox", "a fox and an owl " * 50])
    assert len(scores) == 2
    assert "judge: 1 of 2 texts are longer than its 32 tokens and were cut." in (
        capsys.readouterr().err
    )


def test_a_label_that_is_not_there_is_named_with_the_nearest(folder: Path):
    with pytest.raises(ConfigError, match=r"no label 'toxik'.*fine, toxic, odd.*mean 'toxic'"):
        classifier(str(folder), "toxik")


def test_what_is_no_classifier_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"is no model for text classification: .* score.weight"):
        classifier(str(tiny_model(tmp_path / "causal")), "LABEL_0")
    with pytest.raises(ConfigError, match=r"there is no folder './nowhere'; give a classifier"):
        classifier("./nowhere", "x")
    code = shutil.copytree(folder, tmp_path / "code")
    change(code / "config.json", _attn_implementation="someone/kernel")
    with pytest.raises(ConfigError, match="selects code"):
        classifier(str(code), "toxic")
    weights = shutil.copytree(folder, tmp_path / "weights")
    pickled(weights, "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no weights as safetensors"):
        classifier(str(weights), "toxic")


def test_weights_that_give_no_probability_are_an_error(folder: Path, tmp_path: Path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    model = LlamaForSequenceClassification.from_pretrained(broken)
    with torch.no_grad():
        model.score.weight[1] = math.nan
    model.save_pretrained(broken)
    with pytest.raises(NumericError, match="other than a probability"):
        classifier(str(broken), "toxic")(["a fox"])


# -------------------------------------------------------------------------- scikit-learn
# Imported where it is used: skops takes seconds, and every worker of the tests reads this file.

LOUD = ["THE FOX SHOUTS", "LOUD DAY", "STORM SEA"] * 4
CALM = ["the fox sleeps", "a quiet day", "calm sea"] * 4


def fitted(*steps: Any, labels: tuple[object, object] = ("loud", "calm")):
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*steps).fit(LOUD + CALM, [labels[0]] * 12 + [labels[1]] * 12)


def dump(model: object, path: Path) -> Path:
    import skops.io

    skops.io.dump(model, path)
    return path


def test_a_pipeline_gives_the_probability_of_its_bad_class(tmp_path: Path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    model = fitted(TfidfVectorizer(lowercase=False), LogisticRegression())
    path = dump(model, tmp_path / "loud.skops")
    texts = ["STORM DAY", "calm day", "???"]
    expected = model.predict_proba(texts)
    assert sklearn_classifier(path, "loud")(texts) == expected[:, 1].tolist()
    assert sklearn_classifier(path, "calm")(texts) == expected[:, 0].tolist()


def test_a_classifier_without_probabilities_gives_1_and_0(tmp_path: Path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    model = fitted(TfidfVectorizer(lowercase=False), LinearSVC(), labels=(1, 0))
    path = dump(model, tmp_path / "svm.skops")
    assert sklearn_classifier(path, "1")(["STORM DAY", "calm day"]) == [1.0, 0.0]


def identity(texts):
    return texts


def test_types_that_are_not_trusted_are_refused_by_name(tmp_path: Path):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import FunctionTransformer

    forest = dump(fitted(CountVectorizer(), RandomForestClassifier(2)), tmp_path / "forest.skops")
    with pytest.raises(ConfigError, match=r"not trusted: sklearn.tree._tree.Tree"):
        sklearn_classifier(forest, "loud")
    steps = (FunctionTransformer(identity), TfidfVectorizer(), LogisticRegression())
    path = dump(fitted(*steps, labels=(1, 0)), tmp_path / "own.skops")
    with pytest.raises(ConfigError, match=r"not trusted: .*test_classifiers.identity"):
        sklearn_classifier(path, "1")


def no_classifier() -> object:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer().fit(CALM)


def not_fitted() -> object:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def no_model() -> object:
    return {"a": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_classifier, "an object of the type TfidfVectorizer; a fitted classifier"),
        (not_fitted, "an object of the type LogisticRegression; a fitted"),
        (no_model, "an object of the type dict"),
    ],
)
def test_what_classifies_nothing_is_refused(
    tmp_path: Path, make: Callable[[], object], message: str
):
    with pytest.raises(ConfigError, match=message):
        sklearn_classifier(dump(make(), tmp_path / "x.skops"), "a")


def test_a_classifier_of_numbers_is_no_classifier_of_texts(tmp_path: Path):
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(DataError, match=r"cannot classify the texts \(ValueError"):
        sklearn_classifier(dump(model, tmp_path / "x.skops"), "1")(["a"])


def archive(path: Path, **members: Any) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            text = content if isinstance(content, str) else json.dumps(content)
            file.writestr(name.replace("__", "."), text)
    return path


def test_a_file_that_is_no_skops_archive_is_refused(tmp_path: Path, monkeypatch):
    plain = tmp_path / "plain.skops"
    plain.write_bytes(b"\x80\x04K\x01.")
    outside = archive(tmp_path / "outside.skops", schema__json={}, **{"../x.npy": "1"})
    bare = archive(tmp_path / "bare.skops", x__npy="1")
    empty = archive(tmp_path / "empty.skops", schema__json={})
    for path, message in (
        (plain, "is not a skops file: it is not a zip archive"),
        (tmp_path / "none.skops", "there is no file"),
        (tmp_path, "there is no file"),
        (tmp_path / "model.pkl", "is a pickle, which runs code when it is read"),
        (tmp_path / "model.joblib", "is a pickle"),
        (outside, r"'../x.npy' does not belong in a skops file"),
        (bare, "it needs one schema.json, not 0"),
        (empty, "holds no usable classifier"),
    ):
        with pytest.raises(ConfigError, match=message):
            sklearn_classifier(path, "a")
    monkeypatch.setattr(skops_module, "MAX_SCHEMA", 1)
    with pytest.raises(ConfigError, match=r"its schema.json is larger than 1 bytes"):
        sklearn_classifier(empty, "a")
    monkeypatch.undo()
    monkeypatch.setattr(skops_module, "MAX_UNPACKED", 1)
    with pytest.raises(ConfigError, match="unpacked it is larger than 1 bytes"):
        sklearn_classifier(empty, "a")


def test_without_the_extra_the_package_to_install_is_named(tmp_path: Path, monkeypatch):
    path = dump(not_fitted(), tmp_path / "x.skops")
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(MachineError, match=r"pip install 'gradroute\[label\]'"):
        sklearn_classifier(path, "a")
