"""Files of rows that were found, and what their labels do."""

import json
from pathlib import Path

import pytest

from gradroute.data.examples import Example
from gradroute.data.found import label_found, read_found
from gradroute.errors import DataError

LABELS = ("good", "bad", "unlabeled")


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_rows_are_told_by_prompt_and_text_and_what_is_ignored_is_counted(tmp_path: Path):
    file = written(
        tmp_path / "found.jsonl",
        {"text": "a", "label": "bad", "score": 1.5, "p": 0.1, "q": 0.2},
        {"text": "a", "prompt": "ask", "label": ["good"]},
        {"text": "b", "prompt": None, "label": None},
        {"fields": {"text": "c"}, "responses": {"label": [{"value": "bad", "user_id": "u"}]}},
        {"data": {"text": "d"}, "annotations": []},
        {"text": "nowhere", "label": "bad"},
    )
    found = read_found(file, LABELS)
    assert found.labels == {
        ("", "a"): "bad", ("ask", "a"): "good", ("", "c"): "bad", ("", "nowhere"): "bad"
    }  # fmt: skip
    assert [row["label"] for row in found.rows] == ["bad", "good", "bad", "bad"]
    examples = [Example("1", "a"), Example("2", "a", "ask"), Example("3", "b"), Example("4", "c")]
    made, notes = label_found(examples, found)
    assert [e.label for e in made] == ["bad", "good", "unlabeled", "bad"]
    assert notes == (
        "3 training examples have another label by the file of data.found.",
        "1 of its 4 rows are no training example.",
        "data.found: 2 rows have no label and are left out.",
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "label": "worse"}], ":1: label must be one of good, bad, unlabeled, got"),
        ([{"label": "bad"}], ":1: a row needs a text"),
        ([{"text": "a"}, {"text": "b"}], ": none of the 2 rows has a label; each needs one."),
        (
            [{"text": "a", "label": "bad"}, {"text": "a", "label": "good"}],
            ":2: this row has the label bad on an earlier line",
        ),
    ],
)
def test_a_file_that_says_nothing_clear_is_refused_with_its_line(tmp_path: Path, rows, said: str):
    file = written(tmp_path / "found.jsonl", *rows)
    with pytest.raises(DataError) as refused:
        read_found(file, LABELS)
    assert str(refused.value).startswith(f"{file}{said}")


def test_nothing_found_is_a_file_too(tmp_path: Path):
    (tmp_path / "empty.jsonl").touch()
    assert read_found(tmp_path / "empty.jsonl", LABELS).labels == {}
