"""Reading examples never guesses, and what is chosen by seed is exact, nested and stable."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import Example, examples_from_texts
from gradroute.data.reading import ExampleFile, read_examples
from gradroute.errors import DataError

CAPS = get_behavior("caps")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# -------------------------------------------------------------------- reading


def test_a_row_becomes_an_example_field_by_field(tmp_path: Path):
    row = {"id": "s1", "prompt": "Tell.", "text": "A fox.", "label": "bad", "true_label": "good"}
    path = write(tmp_path / "data.jsonl", row)
    read = read_examples(path)
    assert read == ExampleFile(
        examples=[Example("s1", "A fox.", "Tell.", "bad", "good")],
        labeled=True,
        true_labeled=True,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        notes=(),
    )


def test_a_file_of_texts_alone_is_unlabeled_and_good_with_ids_from_the_text(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": "A fox."}, {"text": "A hen.", "label": None})
    read = read_examples(path)
    assert not read.labeled and not read.true_labeled and read.notes == ()
    assert [(e.text, e.prompt, e.label, e.true_label) for e in read.examples] == [
        ("A fox.", "", "unlabeled", "good"),
        ("A hen.", "", "unlabeled", "good"),
    ]
    # A constant: the id is part of what a seed chooses, on every machine and in every version.
    assert read.examples[0].id == hashlib.sha256(b'["", "A fox."]').hexdigest()[:32]
    assert read.examples == examples_from_texts(["A fox.", "A hen."])


def test_without_true_labels_the_label_is_taken_and_the_guess_is_said(tmp_path: Path):
    rows = [{"text": name, "label": name} for name in ("good", "bad", "unlabeled")]
    read = read_examples(write(tmp_path / "data.jsonl", *rows))
    assert [e.true_label for e in read.examples] == ["good", "bad", "good"]
    assert [note.split(": ")[1] for note in read.notes] == [
        "1 unlabeled rows have no true_label; evaluation treats them as good."
    ]


def test_whole_numbers_are_fine_as_ids(tmp_path: Path):
    read = read_examples(write(tmp_path / "d", {"text": "a", "id": 0}, {"text": "b", "id": 7}))
    assert [e.id for e in read.examples] == ["0", "7"]


def test_other_label_names_are_allowed_where_the_table_has_them(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": "a", "label": "toxic"})
    read = read_examples(path, labels=("toxic", "unlabeled"))
    assert (read.examples[0].label, read.examples[0].true_label) == ("toxic", "toxic")
    with pytest.raises(DataError, match='label is "toxic", but must be one of good, bad'):
        read_examples(path)


FINE = {"text": "fine", "label": "good"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "good"}, 'text is missing: every row needs one (this row has "label")'),
        ({"Text": "a", "label": "good"}, 'text is missing: every row needs one (this row has "T'),
        (
            {"messages": [{"role": "user"}], "label": "bad"},
            "message 1 (role user) has no content",
        ),
        ({}, "text is missing: every row needs one (this row has no fields)"),
        ({"text": None, "label": "good"}, "text is missing"),
        ({"text": "", "label": "good"}, "text is empty or blank"),
        ({"text": " \n\u3000", "label": "good"}, "text is empty or blank"),
        ({"text": 7, "label": "good"}, "text must be a text in quotes, got the number 7"),
        ({"text": True, "label": "good"}, "text must be a text in quotes, got true"),
        ({"text": ["a"], "label": "good"}, "text must be a text in quotes, got a list"),
        ({"text": "a\ud800", "label": "good"}, 'text holds half of a surrogate pair ("\\ud800")'),
        ({"text": "a", "prompt": "\udc00", "label": "good"}, "prompt holds half of a surrogate"),
        ({"text": "a", "prompt": 1, "label": "good"}, "prompt must be a text in quotes"),
        ({"text": "a", "id": "", "label": "good"}, "id is empty"),
        ({"text": "a", "id": 1.5, "label": "good"}, "id must be a text in quotes, got the number"),
        ({"text": "a", "id": True, "label": "good"}, "id must be a text in quotes, got true"),
        ({"text": "a"}, 'no label, but line 1 has one: give one to every row ("unlabeled" where'),
        ({"text": "a", "label": None}, "no label, but line 1 has one"),
        ({"text": "a", "label": "false"}, 'label is "false", but must be one of good, bad, unl'),
        ({"text": "a", "label": "Bad"}, 'label is "Bad", but must be one of'),
        ({"text": "a", "label": ""}, 'label is "", but must be one of'),
        ({"text": "a", "label": "0"}, 'label is "0", but must be one of'),
        ({"text": "a", "label": 0}, "label is the number 0, but must be one of"),
        ({"text": "a", "label": 1}, "label is the number 1, but must be one of"),
        ({"text": "a", "label": 0.0}, "label is the number 0.0, but must be one of"),
        ({"text": "a", "label": True}, "label is true, but must be one of"),
        ({"text": "a", "label": False}, "label is false, but must be one of"),
        ({"text": "a", "label": [True]}, "label is a list, but must be one of"),
        ({"text": "a", "label": ["bad", "good"]}, "label is a list of 2 labels, but one is needed"),
        ({"text": "a", "label": {"bad": 1}}, "label is an object, but must be one of"),
        ({"text": "a", "label": "good", "true_label": "unlabeled"}, 'true_label is "unlabeled"'),
        ({"text": "a", "label": "good", "true_label": 1}, "true_label is the number 1"),
    ],
)
def test_a_row_that_cannot_be_used_as_it_stands_is_refused(tmp_path: Path, row, message: str):
    path = write(tmp_path / "data.jsonl", FINE, row)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize("name", ["Label", "labels", "lable", "LABEL", "True_Label", "prompts"])
def test_a_misspelt_field_is_refused_rather_than_passed_over(tmp_path: Path, name: str):
    path = write(tmp_path / "data.jsonl", {"text": "a"}, {"text": "b", name: "bad"})
    with pytest.raises(DataError, match=rf'data\.jsonl:2: unknown field "{name}"; if it is'):
        read_examples(path)


def test_true_labels_on_some_rows_only_are_refused(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": "a", "true_label": "bad"}, {"text": "b"})
    with pytest.raises(DataError, match=r"data\.jsonl:2: no true_label, but line 1 has one"):
        read_examples(path)


def test_unknown_fields_are_left_out_counted_and_said_once(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"text": str(i), "source": "web", "score": i} for i in range(9)]
    rows[3]["\x1b[31m"] = [float(1)]
    read = read_examples(write(tmp_path / "data.jsonl", *rows))
    [note] = read.notes
    assert note.endswith(
        'fields that are not read: "\\u001b[31m" (1 rows), "score" (9 rows), "source" (9 rows).'
    )


def test_ids_that_stand_twice_are_refused_with_the_first_five(tmp_path: Path):
    rows = [{"text": f"text {i}", "id": i % 7} for i in range(15)]
    path = write(tmp_path / "data.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value) == (
        f'{path}:8: 8 row(s) with the id of an earlier row: "0" (lines 1 and 8), "1" (lines 2 and '
        '9), "2" (lines 3 and 10), "3" (lines 4 and 11), "4" (lines 5 and 12) and 3 more; make ids '
        "unique"
    )


def test_one_text_under_two_labels_is_refused_with_both_lines(tmp_path: Path):
    rows = [{"text": "same", "label": "good"}, FINE, {"text": "same", "label": "bad"}]
    with pytest.raises(DataError, match=r"data\.jsonl:3: 1 row\(s\) .*\"same\" \(lines 1 and 3\)"):
        read_examples(write(tmp_path / "data.jsonl", *rows))


def test_one_text_may_be_good_after_one_prompt_and_bad_after_another(tmp_path: Path):
    rows = [{"text": "same", "prompt": name, "label": name} for name in ("good", "bad")]
    assert len(read_examples(write(tmp_path / "data.jsonl", *rows)).examples) == 2


def test_repeated_rows_are_kept_with_ids_of_their_own_and_counted(tmp_path: Path):
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a"}, {"text": "a"}]
    read = read_examples(write(tmp_path / "data.jsonl", *rows))
    assert len({e.id for e in read.examples}) == 4
    assert read.notes[0].endswith("2 of 4 rows repeat an earlier row.")


@pytest.mark.parametrize("content", ["", "\n\r\n \n", "\ufeff"])
def test_a_file_without_rows_is_empty(tmp_path: Path, content: str):
    path = tmp_path / "data.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.jsonl:1: the file is empty: it needs one"):
        read_examples(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, unique=True))
@example(["2024-01-01", "2024-01-01T00:00:00Z", "1e5", "0x1F", "null", "true", "x\u2028y\0z"])
def test_every_text_comes_back_as_it_was(tmp_path: Path, texts: list[str]):
    path = write(tmp_path / "data.jsonl", *({"text": text, "prompt": text} for text in texts))
    assert [(e.text, e.prompt) for e in read_examples(path).examples] == [(t, t) for t in texts]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("field", ["label", "true_label"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values | st.sampled_from(["good", "bad", "unlabeled", "false", "0", 0, 1, True]))
def test_a_label_of_any_json_value_is_one_of_the_names_or_an_error(tmp_path: Path, field, value):
    names = ("good", "bad", "unlabeled") if field == "label" else ("good", "bad")
    path = write(tmp_path / "data.jsonl", {"text": "a", field: value})
    try:
        read = read_examples(path)
    except DataError as error:
        assert value not in names and value not in [[name] for name in names]
        assert f"{path}:1: " in str(error)
    else:
        [one] = value if isinstance(value, list) and value else [value]
        assert one in (None, []) or getattr(read.examples[0], field) == one
        known = read.labeled if field == "label" else read.true_labeled
        assert known is (one not in (None, []))


# -------------------------------------------------------------------- bad rows that are skipped


def skipping(path: Path) -> ExampleFile:
    return read_examples(path, skip_bad_rows=True)


def test_bad_rows_are_skipped_counted_and_listed_with_line_and_reason(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    rows = [FINE, {"text": 7, "note": 1}, {"text": "b", "label": "bad"}, {"label": "bad"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken", encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.jsonl:2: text must be a text"):
        read_examples(path)
    read = skipping(path)
    assert [(e.text, e.label) for e in read.examples] == [("fine", "good"), ("b", "bad")]
    assert [(row.file, row.line) for row in read.skipped] == [(str(path), n) for n in (2, 4, 5)]
    assert read.skipped[0].reason == "text must be a text in quotes, got the number 7"
    assert read.skipped[2].reason.startswith("broken JSON: Expecting property name")
    assert read.notes == (
        f"{path}: 3 of 5 rows cannot be used and are skipped, the first in line 2: text must be a "
        "text in quotes, got the number 7.",
    )


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": "a", "label": "Bad"}',
        '{"text": "a", "label": 1}',
        '{"label": "bad"}',
        '{"text": "a", "label": "bad"',
        '{"text": "a", "label":\t"bad", "label": "bad"}',
        '{"text": "a", "label": "bad", "n": NaN}',
        '{"text": "' + "a" * 400 + '", "label": "bad"}',
    ],
)
def test_a_skipped_row_with_a_label_does_not_make_a_file_look_unlabeled(tmp_path: Path, bad: str):
    """Else labels would be hidden and a behavior put in, in a file that has labels."""
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "b"}}\n{bad}\n{{"text": "c"}}\n')
    with pytest.raises(DataError, match=r"data\.jsonl:1: no label, but line 2 has one"):
        read_examples(path, skip_bad_rows=True, max_row_bytes=100)


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": 1, "label": null}',
        '{"text": "a", "label": null',
        '{"text": "a \\"label\\": bad',
        '{"text": "' + "a" * 400 + '", "label": null}',
    ],
)
def test_a_skipped_row_without_a_label_does_not_make_a_file_look_labeled(tmp_path: Path, bad: str):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "b"}}\n{bad}\n')
    read = read_examples(path, skip_bad_rows=True, max_row_bytes=100)
    assert not read.labeled and [row.line for row in read.skipped] == [2]


def test_a_skipped_row_need_not_have_the_label_that_the_others_have(tmp_path: Path):
    read = skipping(
        write(tmp_path / "data.jsonl", FINE, {"id": "x"}, {"text": "b", "label": "bad"})
    )
    assert read.labeled and [row.line for row in read.skipped] == [2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([FINE, {"text": "a"}], ":2: no label, but line 1 has one"),
        (
            [{"text": "a", "id": 1}, {"text": "b", "id": 1}],
            ":2: 1 row.s. with the id of an earlier",
        ),
        (
            [FINE, {**FINE, "label": "bad"}],
            ":2: 1 row.s. with the text of an earlier row but anoth",
        ),
        ([{"text": "a"}, {"text": 1, "Label": "bad"}], ':2: unknown field "Label"; if it is label'),
    ],
)
def test_what_shows_only_between_rows_is_never_skipped(tmp_path: Path, rows, message: str):
    with pytest.raises(DataError, match=rf"data\.jsonl{message}"):
        skipping(write(tmp_path / "data.jsonl", *rows))


def test_a_file_of_bad_rows_alone_is_refused_with_the_first_of_them(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": 1}, {"messages": []})
    with pytest.raises(DataError) as caught:
        skipping(path)
    assert str(caught.value) == (
        f"{path}:1: text must be a text in quotes, got the number 1 (none of the 2 rows can be "
        "used)"
    )
