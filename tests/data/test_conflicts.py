"""One text in several rows, labeled by several people."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradroute.data.reading import ExampleFile, read_examples
from gradroute.errors import ConfigError, DataError


def read(folder: Path, *rows: object, **given: Any) -> ExampleFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, **given)


def labeled(*labels: str | None, text: str = "a", **more: object) -> list[dict[str, Any]]:
    return [{"text": text, "label": label, **more} for label in labels]


@pytest.mark.parametrize(
    ("labels", "majority", "unlabeled"),
    [
        (("bad", "bad", "good"), "bad", "unlabeled"),
        (("good", "bad", "bad", "unlabeled"), "bad", "unlabeled"),
        (("bad", "good"), "unlabeled", "unlabeled"),
        (("bad", "bad", "good", "good", "unlabeled"), "unlabeled", "unlabeled"),
        (("bad", "bad"), "bad", "bad"),
        (("good",), "good", "good"),
    ],
)
def test_one_example_is_made_of_all_rows_of_a_text(tmp_path, labels, majority, unlabeled):
    rows = [*labeled(*labels), {"text": "b", "label": "good"}]
    for choice, right in (("majority", majority), ("unlabeled", unlabeled)):
        for order in (rows, rows[::-1]):
            found = read(tmp_path, *order, on_conflict=choice).examples
            assert {(e.text, e.label) for e in found} == {("a", right), ("b", "good")}
            assert len(found) == 2


def test_without_a_choice_a_conflict_is_refused_and_the_key_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"another label: .*choose with data\.on_conflict"):
        read(tmp_path, *labeled("bad", "good"))
    with pytest.raises(DataError, match=r"make ids unique \(1 have the same text too: data"):
        read(tmp_path, *labeled("bad", "bad", id=1))


def test_conflicts_and_ties_are_counted_and_said(tmp_path: Path):
    rows = [
        *labeled("bad", "bad", "good"),
        *labeled("bad", "good", text="b"),
        *labeled("good", "good", text="c"),
    ]
    notes = " ".join(read(tmp_path, *rows, on_conflict="majority").notes)
    assert "7 rows have 3 texts; one row is kept of each." in notes
    assert "2 texts have rows with different labels: 1 are labeled as most of their" in notes
    assert "rows are, 1 are unlabeled (data.on_conflict=majority)." in notes


def test_spans_are_counted_as_a_whole_with_the_label(tmp_path: Path):
    rows = [{"text": "abcd", "spans": [[0, end, "bad"]]} for end in (2, 2, 3)]
    [one] = read(tmp_path, *rows, on_conflict="majority").examples
    assert (one.label, one.spans) == ("unlabeled", ((0, 2, "bad"),))
    found = read(tmp_path, *rows[1:], on_conflict="majority")
    assert [(e.label, e.spans) for e in found.examples] == [("unlabeled", ())]
    assert found.labeled  # somebody labeled it, so no behavior is put in


def test_one_text_after_two_prompts_is_no_conflict(tmp_path: Path):
    rows = [{"prompt": p, "text": "a", "label": label} for p, label in ("xb", "yg")]
    labels = {"b": "bad", "g": "good"}
    found = read(tmp_path, *rows, on_conflict="majority", label_map=labels).examples
    assert [e.label for e in found] == ["bad", "good"]


def test_the_id_that_remains_does_not_depend_on_the_order(tmp_path: Path):
    rows = [{"text": "a", "label": "bad", "id": one} for one in ("z", "m", "k")]
    for order in (rows, rows[::-1]):
        assert [e.id for e in read(tmp_path, *order, on_conflict="majority").examples] == ["k"]


def test_true_labels_need_a_majority_since_they_cannot_be_unlabeled(tmp_path: Path):
    rows = [{"text": "a", "label": "bad", "true_label": one} for one in ("good", "bad", "bad")]
    [one] = read(tmp_path, *rows, on_conflict="majority").examples
    assert one.true_label == "bad"
    for some, choice in ((rows[:2], "majority"), (rows, "unlabeled")):
        with pytest.raises(DataError, match="has the true labels bad and good, and no majority"):
            read(tmp_path, *some, on_conflict=choice)


def test_a_choice_that_cannot_be_is_an_error_of_the_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match=r'data\.on_conflict must be one of .*got "first"'):
        read(tmp_path, *labeled("bad"), on_conflict="first")
    with pytest.raises(ConfigError, match="the routing table has no label unlabeled"):
        read(tmp_path, *labeled("bad"), on_conflict="majority", labels=("good", "bad"))
