"""Labels come of scores by the rule, the file stays as it was, and faults are told by line."""

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gradroute.data.labeling import (
    Rule,
    Scores,
    behavior_scores,
    column_scores,
    label_file,
    text_scores,
)
from gradroute.errors import ConfigError, DataError
from gradroute.system.statistics import wilson

MATCH = Rule(0.5)
FOX = behavior_scores("--regex", "regex:(?i)fox", "text")


def write(path: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    path.write_bytes(b"".join(x if isinstance(x, bytes) else f"{x}\n".encode() for x in lines))
    return path


def labeled(
    path: Path, scores: Scores = FOX, rule: Rule = MATCH, *, overwrite: bool = False
) -> tuple[dict[str, Any], Path]:
    out = path.with_name(f"out{path.suffix}")
    out.unlink(missing_ok=True)
    made = label_file(
        path, out, scores, rule, source={"regex": "x"}, overwrite=overwrite, report=None
    )
    return made, out


def labels_of(path: Path) -> list[str]:
    return [json.loads(line)["label"] for line in path.read_text().splitlines() if line.strip()]


# ------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        (Rule(0.8), "unlabeled unlabeled unlabeled bad bad unlabeled"),
        (Rule(0.8, 0.2), "good good unlabeled bad bad unlabeled"),
        (Rule(0.8, rest_good=True), "good good good bad bad unlabeled"),
    ],
)
def test_a_score_at_a_bound_is_beyond_it_and_none_is_unlabeled(rule: Rule, labels: str):
    scores = (-1.0, 0.2, 0.5, 0.8, 7.0, None)
    assert [rule.label(score) for score in scores] == labels.split()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0.5, 0.5, False), "--good-below 0.5 must be less than --bad-above 0.5"),
        ((0.2, 0.8, False), "must be less than"),
        ((0.8, 0.2, True), "both choose the good rows"),
        ((float("nan"), None, False), "--bad-above must be a finite number, got nan"),
        ((0.5, float("-inf"), False), "--good-below must be a finite number, got -inf"),
    ],
)
def test_bounds_that_leave_no_room_are_refused(bounds: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        Rule(*bounds)


# -------------------------------------------------------------------- the file stays as it was


def test_nothing_but_the_label_is_added_to_a_line(tmp_path: Path):
    lines = [
        b'\xef\xbb\xbf{"text":"a fox" , "n": 1.00, "e":"\\u00e9", "d": {"label": [1e5, "}"]} }\r\n',
        b"\n",
        b'  {"score": 12345678901234567890, "text": "\xc3\xa9 }"}',
    ]
    path = write(tmp_path / "rows.jsonl", *lines)
    _, out = labeled(path)
    assert out.read_bytes() == (
        lines[0].replace(b"]} }", b']}, "label": "bad" }')
        + b"\n"
        + lines[2].replace(b' }"}', b' }", "label": "unlabeled"}')
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (' {"label":"good", "text": "fox"}', ' {"label":"bad", "text": "fox"}'),
        ('{"text": "fox", "label" : null , "n": 1}', '{"text": "fox", "label" : "bad" , "n": 1}'),
        ('{"text":"fox","l\\u0061bel":{"label": 3}}', '{"text":"fox","l\\u0061bel":"bad"}'),
    ],
)
def test_a_label_is_replaced_where_it_stands(tmp_path: Path, before: str, after: str):
    _, out = labeled(write(tmp_path / "rows.jsonl", before), overwrite=True)
    assert out.read_text() == after + "\n"


def test_a_csv_file_gets_a_column_and_keeps_its_fields(tmp_path: Path):
    text = 'id,text,n\r\n1,"a ""fox"",\nand more",1.00\r\n\r\n2, calm ,\r\n'
    path = write(tmp_path / "rows.csv", text.encode())
    made, out = labeled(path)
    assert out.read_bytes().startswith(b"id,text,n,label\r\n")
    new = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
    old = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row.pop("label") for row in new] == ["bad", "unlabeled"]
    assert new == old and made["labels"]["bad"]["examples"] == ["1"]
    again = tmp_path / "again.csv"
    label_file(out, again, FOX, MATCH, source={}, overwrite=True, report=None)
    assert again.read_bytes() == out.read_bytes()


def test_the_same_file_gets_the_same_labels_again(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", *({"text": f"fox {i}"[i % 2 * 4 :]} for i in range(9)))
    first = labeled(path)[1].read_bytes()
    assert labeled(path)[1].read_bytes() == first


# ------------------------------------------------------------------------------ sources


def test_scores_of_a_column_are_numbers_or_missing(tmp_path: Path):
    column = column_scores("s")
    rule = Rule(0.5, 0.1)
    rows = [{"s": s} for s in (0.5, 0, 1, None, -1e5)] + [{}]
    _, out = labeled(write(tmp_path / "a.jsonl", *rows), column, rule)
    expected = ["bad", "good", "bad", "unlabeled", "good", "unlabeled"]
    assert labels_of(out) == expected
    text = "s,x\n0.5,\n0,\n1,\n,\n-1e5,\n,\n"
    _, out = labeled(write(tmp_path / "b.csv", text.encode()), column, rule)
    assert [row["label"] for row in csv.DictReader(out.read_text().splitlines())] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"s": "0.5"}', 's must be a finite number, got "0.5"'),
        ('{"s": true}', "s must be a finite number, got true"),
        ('{"s": 1e999}', "s must be a finite number, got the number inf"),
        ('{"s": []}', "s must be a finite number, got a list"),
    ],
)
def test_a_score_that_is_no_number_is_refused_with_its_line(tmp_path: Path, row: str, message: str):
    path = write(tmp_path / "rows.jsonl", '{"s": 1}', "", row)
    with pytest.raises(DataError, match=re.escape(f"{path}:3: {message}")):
        labeled(path, column_scores("s"))


@pytest.mark.parametrize("score", ["nan", "inf", "0,5", "1_0", "x", "٣"])
def test_a_score_that_csv_holds_is_an_ordinary_number(tmp_path: Path, score: str):
    path = write(tmp_path / "rows.csv", f's\n1\n"{score}"\n'.encode())
    with pytest.raises(DataError, match=re.escape(f"{path}:3: s must be a finite number")):
        labeled(path, column_scores("s"))


def test_words_are_found_in_any_case_and_a_blank_text_is_not_judged(tmp_path: Path):
    rows = [{"text": text} for text in ("A FOX!", "foxes", " ", "...")]
    words = behavior_scores("--keywords", "keywords:fox,owl", "text")
    made, out = labeled(write(tmp_path / "a.jsonl", *rows), words, Rule(0.5, rest_good=True))
    assert labels_of(out) == ["bad", "good", "unlabeled", "unlabeled"]
    assert made["without_score"] == 2


def test_the_field_that_is_asked_for_is_looked_at(tmp_path: Path):
    said = [
        {"role": "user", "content": "fox"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "owl"},
    ]
    row = {"prompt": "fox", "completion": "no", "text": "yes", "messages": said}
    path = write(tmp_path / "rows.jsonl", row)
    found = {
        (field, word): labels_of(
            labeled(path, behavior_scores("--regex", f"regex:{word}", field))[1]
        )
        for field in ("text", "prompt", "completion", "messages")
        for word in ("fox", "yes", "no", "a\nowl")
    }
    shown = {key for key, labels in found.items() if labels == ["bad"]}
    assert shown == {
        ("prompt", "fox"), ("text", "yes"), ("completion", "no"), ("messages", "a\nowl"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ('{"completion": "x"}', "text", "text is missing; it has completion: give --field comple"),
        ('{"a": "x"}', "text", "text is missing"),
        ('{"text": null}', "text", "text is missing"),
        ('{"text": 3}', "text", "text must be a text in quotes, got the number 3"),
        ('{"text": "a", "prompt": 3}', "text", "prompt must be a text in quotes"),
        ('{"messages": "x"}', "messages", "messages must be a list"),
        ('{"messages": [{"role": "user"}]}', "messages", "message 1 needs a role and a content"),
        ('{"text": "a", "true_label": "Bad"}', "text", 'true_label is "Bad", but must be good or'),
    ],
)
def test_a_row_that_cannot_be_looked_at_is_refused_with_its_line(
    tmp_path: Path, row: str, field: str, message: str
):
    path = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError, match=re.escape(f"{path}:1: {message}")):
        labeled(path, behavior_scores("--regex", "regex:x", field))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_function_of_ones_own_labels_and_its_faults_have_a_line(tmp_path: Path, monkeypatch):
    (tmp_path / "my_labels.py").write_text(
        "def long(text): return len(text) > 3\ndef broken(text): return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "rows.jsonl", {"text": "long"}, {"text": "no"})
    try:
        long = behavior_scores("--python", "python:my_labels.long", "text")
        assert labels_of(labeled(path, long)[1]) == ["bad", "unlabeled"]
        broken = behavior_scores("--python", "python:my_labels.broken", "text")
        with pytest.raises(DataError, match=r"rows.jsonl:1: .*raised ZeroDivisionError"):
            labeled(path, broken)
        with pytest.raises(ConfigError, match=r"^--python: 'python:os.system' belongs to Python"):
            behavior_scores("--python", "python:os.system", "text")
    finally:
        sys.modules.pop("my_labels", None)


def test_a_pattern_without_end_stops_with_its_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gradroute.data.detectors.PATTERN_SECONDS", 0.05)
    path = write(tmp_path / "rows.jsonl", {"text": "b"}, {"text": "a" * 300 + "!"})
    with pytest.raises(DataError, match=r"rows.jsonl:2: the pattern .* took more than 0.05 sec"):
        labeled(path, behavior_scores("--regex", "regex:(a|aa)+$", "text"))
    with pytest.raises(ConfigError, match=r"^--regex: 'regex:\(' is no regular expression"):
        behavior_scores("--regex", "regex:(", "text")


def test_a_classifier_is_asked_about_every_text_but_blank_ones(tmp_path: Path):
    asked = []

    def score(texts):
        asked.extend(texts)
        return [0.9 if "fox" in text else 0.3 for text in texts]

    path = write(tmp_path / "rows.jsonl", *({"text": text} for text in ("fox", " ", "owl")))
    made, out = labeled(path, text_scores(score, "text"), Rule(0.9, 0.3))
    assert asked == ["fox", "owl"] and made["without_score"] == 1
    assert labels_of(out) == ["bad", "unlabeled", "good"]


# ------------------------------------------------------------------------------ the report


def test_precision_and_recall_are_those_of_the_rows_that_are_known(tmp_path: Path):
    rows = [
        *({"text": "fox", "true_label": "bad"} for _ in range(6)),
        *({"text": "fox", "true_label": "good"} for _ in range(2)),
        *({"text": "owl", "true_label": "bad"} for _ in range(3)),
        *({"text": "owl", "true_label": "good"} for _ in range(4)),
        {"text": "fox"},
    ]
    made, _ = labeled(write(tmp_path / "a.jsonl", *rows), rule=Rule(0.5, rest_good=True))
    assert {name: made["labels"][name]["k"] for name in made["labels"]} == {
        "bad": 9, "good": 7, "unlabeled": 0,
    }  # fmt: skip
    for name, k, n in (("precision", 6, 8), ("recall", 6, 9), ("bad_among_good", 3, 7)):
        found = made[name]
        assert (found["k"], found["n"], found["share"]) == (k, n, k / n)
        assert (found["lower"], found["upper"]) == wilson(k, n)
    assert made["with_true_label"] == 15
    assert made["labels"]["good"]["examples"] == ["line 9", "line 10", "line 11"]


def test_without_true_labels_nothing_is_said_about_precision(tmp_path: Path):
    made, _ = labeled(write(tmp_path / "a.jsonl", {"text": "fox"}))
    assert made["with_true_label"] == 0
    assert made["precision"] is made["recall"] is made["bad_among_good"] is None


# ------------------------------------------------------------------------- what is refused


def test_labels_that_are_there_are_replaced_only_when_asked_for(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"text": "fox"}, {"text": "owl", "label": "good"})
    with pytest.raises(DataError, match=r'rows.jsonl:2: has a label already \("good"\): give --ov'):
        labeled(path)
    assert labels_of(labeled(path, overwrite=True)[1]) == ["bad", "unlabeled"]
    empty = write(tmp_path / "rows.csv", b"text,label\nfox,\n")
    assert b"fox,bad" in labeled(empty)[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv has no row to label"),
        ("a.csv", b"text\n", "a.csv has no row to label"),
        ("a.csv", b"text,text\na,b\n", 'a.csv:1: the column "text" stands twice'),
        ("a.csv", b"text,\na,b\n", "a.csv:1: column 2 of the header has no name"),
        ("a.csv", b"text,n\na\n", "a.csv:2: 1 cells, but the header has 2"),
        ("a.csv", b'text,n\n"a\nb",1\nc,2,3\n', "a.csv:4: 3 cells, but the header has 2"),
        ("a.csv", b'text\n"a', "a.csv:2: a quote opens before"),
        ("a.csv", b"text\nfine\n\xff\n", "a.csv:3: not UTF-8"),
        ("a.jsonl", b"", "a.jsonl has no row to label"),
        ("a.jsonl", b'{"text": "a"}\n{"text": NaN}\n', "a.jsonl:2: NaN is not JSON"),
        ("a.jsonl", b'{"text": "a"', "a.jsonl:1: broken JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(message)):
        labeled(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("out", "report", "message"),
    [
        ("rows.jsonl", None, "already exists; give a name that is free"),
        ("link.jsonl", None, "--out .*link.jsonl already exists"),
        ("new.jsonl", "rows.jsonl", "--report .* already exists"),
        ("new.jsonl", "new.jsonl", "are both"),
        ("new.csv", None, "must be a JSONL file too"),
    ],
)
def test_no_file_is_written_over(tmp_path: Path, out: str, report: str | None, message: str):
    path = write(tmp_path / "rows.jsonl", {"text": "fox"})
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        label_file(
            path, tmp_path / out, FOX, MATCH, source={}, overwrite=False,
            report=tmp_path / report if report else None,
        )  # fmt: skip
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_another_format_is_named(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"cannot be labeled: write its rows as a .jsonl or .csv file"
    ):
        label_file(
            tmp_path / "a.parquet", tmp_path / "b.jsonl", FOX, MATCH,
            source={}, overwrite=False, report=None,
        )  # fmt: skip
