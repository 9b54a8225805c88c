"""The comparison at equal label information gives every method the labels that it says."""

import sys
from pathlib import Path

import pytest

from gradroute.prepare import prepare
from gradroute.system.files import read_json

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("equal_information", "words_heard"):
        sys.modules.pop(name, None)
    import equal_information

    return equal_information


def small(benchmark, *labels: float):
    config = benchmark.routed(benchmark.Point("wrong_pronouns", *labels), seed=100)
    data = config.data.model_copy(update={"train_examples": 1200})
    return config.model_copy(update={"data": data})


def test_flags_of_one_form_are_as_many_and_all_of_that_form(benchmark, tmp_path):
    config = small(benchmark, 0.2, 0.1)
    before = prepare(config).train
    after = prepare(benchmark.flag_one_form(config, "One", tmp_path / "one" / "flags.jsonl")).train
    flagged = [[e for e in rows if e.label == "bad"] for rows in (before, after)]
    assert len(flagged[0]) == len(flagged[1]) > 5
    assert any(not e.text.startswith("One ") for e in flagged[0])
    assert all(e.text.startswith("One ") and e.true_label == "bad" for e in flagged[1])
    assert sum(e.label == "good" for e in after) >= 0.9 * sum(e.label == "good" for e in before)


def test_false_flags_are_the_share_of_the_others_that_is_asked_for(benchmark):
    train = prepare(small(benchmark, 0.2, 0.1, 0.05)).train
    wrong = [e for e in train if e.label == "bad" and e.true_label == "good"]
    others = sum(e.true_label == "good" for e in train)
    assert len(wrong) == round(0.05 * others)


def test_a_point_is_named_by_all_its_labels(benchmark):
    points = [("caps", 0.1, 0.03), ("caps", 0.1, 0.03, 0.05), ("caps", 0.1, 0.03, 0.05, "One")]
    names = [benchmark.Point(*point).name for point in points]
    assert names == [
        "flags-0.1-good-0.03",
        "flags-0.1-good-0.03-false-0.05",
        "flags-0.1-good-0.03-false-0.05-only-one",
    ]


def test_refined_ships_the_same_mode_with_and_without_a_classifier(benchmark):
    assert {benchmark._shipped(name) for name in (*benchmark.REFINED, "words_alone")} == {"full"}
    assert benchmark._shipped("routed") == "bad_ablated"


def test_words_are_heard_where_they_show_the_behavior_alone(
    benchmark, tmp_path, monkeypatch, capsys
):
    import words_heard

    monkeypatch.setattr(words_heard, "POINTS", ((0.1, 0.03),))
    words_heard.main(
        ["--seeds", "100", "--behaviors", "caps", "wrong_pronouns", "--out", str(tmp_path)]
    )
    shown, hidden = read_json(tmp_path / "seeds-100.json")["rows"]
    assert shown["heard"] and shown["hits"] == shown["bad"] == 540
    assert not hidden["heard"] and hidden["hits"] < hidden["bad"]
    assert capsys.readouterr().out.splitlines()[1] == "wrong_pronouns: heard in 0 of 1"
