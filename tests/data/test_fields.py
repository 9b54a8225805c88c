"""Weights, spans, completions, and labels and columns of other names."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradroute.data.examples import Example, Span
from gradroute.data.label_assignment import drop, label_quality, relabel
from gradroute.data.reading import ExampleFile, read_examples
from gradroute.errors import ConfigError, DataError

FIXTURE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, *rows: object, **given: Any) -> ExampleFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, **given)


def first(folder: Path, *rows: object, **given: Any) -> Example:
    return read(folder, *rows, **given).examples[0]


def refused(folder: Path, row: object, message: str, **given: Any) -> None:
    with pytest.raises(DataError) as caught:
        read(folder, row, **given)
    assert str(caught.value).startswith(f"{folder / 'rows.jsonl'}:1: {message}")


# -------------------------------------------------------------------- prompt and completion


def test_a_completion_is_the_text_of_a_prompt_with_the_same_id(tmp_path: Path):
    one = first(tmp_path, {"prompt": "a", "completion": "b"})
    assert one == first(tmp_path, {"prompt": "a", "text": "b"})
    assert first(tmp_path, {"prompt": "", "completion": "b"}).prompt == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "b"}, "prompt is missing: a row with a completion needs one"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "text and completion are in one row"),
        ({"prompt": "a", "completion": " "}, "completion is empty or blank"),
        ({"prompt": "a", "completion": 1}, "completion must be a text in quotes, got the number 1"),
        ({"prompt": "a"}, "text is missing: every row needs one"),
    ],
)
def test_half_a_completion_is_refused(tmp_path: Path, row: dict, message: str):
    refused(tmp_path, row, message)


# -------------------------------------------------------------------- weight


@pytest.mark.parametrize("weight", [0.25, 1, 3, 1e-30])
def test_a_weight_is_kept(tmp_path: Path, weight: float):
    assert first(tmp_path, {"text": "a", "weight": weight}).weight == weight


@pytest.mark.parametrize("weight", [0, -1, -0.0, 10**400, True, "2", [1], {}])
def test_a_weight_that_is_no_finite_number_above_0_is_refused(tmp_path: Path, weight: object):
    refused(tmp_path, {"text": "a", "weight": weight}, "weight must be ")


# -------------------------------------------------------------------- spans


def test_spans_count_characters_and_stand_in_order(tmp_path: Path):
    spans = [[3, 5, "good"], {"start": 0, "end": 2, "label": "bad"}]
    one = first(tmp_path, {"text": "日本 ok", "spans": spans})
    assert one.spans == (Span(0, 2, "bad"), Span(3, 5, "good"))


def test_spans_of_one_label_that_overlap_are_merged(tmp_path: Path):
    spans = [[2, 4, "bad"], [0, 3, "bad"], [1, 2, "bad"], [4, 5, "bad"]]
    assert first(tmp_path, {"text": "abcdef", "spans": spans}).spans == (
        (0, 4, "bad"),
        (4, 5, "bad"),
    )


def test_a_file_with_spans_is_labeled_and_what_they_show_is_true_of_the_row(tmp_path: Path):
    rows = [{"text": "ab", "spans": [[0, 1, "bad"]]}, {"text": "cd", "spans": []}, {"text": "ef"}]
    found = read(tmp_path, *rows)
    assert found.labeled
    assert [(e.label, e.true_label) for e in found.examples] == [
        ("unlabeled", "bad"),
        ("unlabeled", "good"),
        ("unlabeled", "good"),
    ]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({}, 'spans must be a list such as [{"start": 0'),
        ("0-2", "spans must be a list such as"),
        ([[0, 1]], "spans must hold objects with start, end and label, or lists"),
        ([{"start": 0, "end": 1, "note": 1}], "spans must hold objects with start"),
        ([[0, 1, "bad"], 7], "spans must hold objects with start, end and label, or lists [start"),
        ([[0, 1.5, "bad"]], "spans must begin and end at whole numbers; number 1 has the number 1"),
        ([[False, 1, "bad"]], "spans must begin and end at whole numbers; number 1 has false"),
        ([[0, 4, "bad"]], "spans must lie in the text, which has 3 characters"),
        ([[0, 10**400, "bad"]], "spans must lie in the text, which has 3 characters"),
        ([[-1, 2, "bad"]], "spans must lie in the text"),
        ([[2, 2, "bad"]], "spans must lie in the text, which has 3 characters, and hold at least"),
        ([[2, 1, "bad"]], "spans must lie in the text"),
        ([[0, 1, "odd"]], 'label of span 1 is "odd", but must be one of good, bad, unlabeled'),
        ([[0, 1, None]], "spans need a label each; number 1 has none"),
        ([[0, 2, "bad"], [1, 3, "good"]], "spans overlap with different labels: [0, 2) is bad"),
        ([[1, 2, "good"], [0, 3, "bad"]], "spans overlap with different labels: [0, 3) is bad"),
    ],
)
def test_spans_that_cannot_be_are_refused(tmp_path: Path, spans: object, message: str):
    refused(tmp_path, {"text": "abc", "spans": spans}, message)


def test_the_same_text_with_other_spans_is_a_contradiction(tmp_path: Path):
    rows = [{"text": "ab", "spans": [[0, end, "bad"]]} for end in (1, 2)]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*but another label"):
        read(tmp_path, *rows)


places = st.integers(-1, 5)


@settings(FIXTURE, max_examples=40)
@given(st.lists(st.tuples(places, places, st.sampled_from(["good", "bad"])), max_size=4))
def test_spans_say_of_every_character_what_the_file_says_of_it_or_are_refused(tmp_path, spans):
    said: list[set[str]] = [
        {label for start, end, label in spans if start <= at < end} for at in range(4)
    ]
    fine = all(0 <= start < end <= 4 for start, end, _ in spans) and max(map(len, said)) < 2
    try:
        found = first(tmp_path, {"text": "abcd", "spans": spans}).spans
    except DataError:
        assert not fine
        return
    assert fine and found == tuple(sorted(found))
    assert said == [{s.label for s in found if s.start <= at < s.end} for at in range(4)]
    assert all(one.end <= two.start for one, two in pairwise(found))


def test_controls_know_the_labels_of_parts():
    part = Example("a", "abcd", spans=(Span(0, 2, "bad"),), true_label="bad")
    plain = Example("b", "efgh")
    assert drop([part, plain], "labeled_bad") == [plain]
    [without, same] = relabel([part, plain], "unlabel_bad", 0)
    assert (without.spans, same) == ((Span(0, 2, "unlabeled"),), plain)
    assert label_quality([part, plain])["recall"] == 1.0
    with pytest.raises(ConfigError, match="cannot be given to other examples at random"):
        relabel([part, plain], "random", 0)


# -------------------------------------------------------------------- labels of other names

MAP = {"0": "good", "true": "bad", "toxic": "bad", "1.5": "bad", "null": "unlabeled"}


def test_a_label_map_reads_each_value_as_json_writes_it(tmp_path: Path):
    values = [0, "0", True, "true", "toxic", 1.5, None]
    rows = [{"text": str(at), "label": value} for at, value in enumerate(values)]
    found = read(tmp_path, *rows, {"text": "none"}, label_map=MAP)
    labels = ["good", "good", "bad", "bad", "bad", "bad", "unlabeled", "unlabeled"]
    assert [e.label for e in found.examples] == labels
    assert any("2 rows without a label are taken for unlabeled" in note for note in found.notes)


@pytest.mark.parametrize("value", [1, False, 0.0, "good", "", "True", [0], {"0": 0}, 1e999])
def test_a_value_that_is_not_in_the_map_is_refused_with_its_keys(tmp_path: Path, value: object):
    row = json.loads(json.dumps({"text": "a", "label": value}).replace("Infinity", "1e999"))
    with pytest.raises(
        DataError, match=r'rows\.jsonl:1: label is .*\("0", "true", "toxic", "1\.5"'
    ):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row).replace("Infinity", "1e999"))
        read_examples(path, label_map=MAP)


def test_true_labels_spans_and_messages_are_read_by_the_map_too(tmp_path: Path):
    row = {"text": "ab", "label": 0, "true_label": True, "spans": [[0, 1, "toxic"]]}
    one = first(tmp_path, row, label_map=MAP)
    assert (one.label, one.true_label, one.spans) == ("good", "bad", (Span(0, 1, "bad"),))
    refused(
        tmp_path,
        {"text": "a", "true_label": "x"},
        'true_label is "x"',
        label_map={"x": "unlabeled"},
    )
    assert not read(tmp_path, {"text": "a", "label": 0}, label_map=MAP).true_labeled


def test_without_null_in_the_map_a_missing_label_stays_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no label, but line 1 has one"):
        read(tmp_path, {"text": "a", "label": 0}, {"text": "b"}, label_map={"0": "bad"})


def test_a_map_to_what_is_no_label_is_an_error_of_the_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match=r'data\.label_map: "0" is mapped to "harmful", which'):
        read(tmp_path, {"text": "a", "label": 0}, label_map={"0": "harmful"})


json_values = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3)


@settings(FIXTURE, max_examples=50)
@given(
    json_values,
    st.dictionaries(
        st.sampled_from(["0", "1", "true", "null", "", "0.0"]), st.sampled_from(["good", "bad"])
    ),
)
def test_any_value_is_read_by_its_own_key_or_refused(tmp_path: Path, value: Any, label_map: dict):
    key = value if isinstance(value, str) else json.dumps(value)
    text = json.dumps({"text": "a", "label": value})
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    try:
        found = read_examples(path, label_map=label_map)
    except DataError:
        assert key not in label_map
    else:
        assert found.examples[0].label == label_map.get(key, "unlabeled")
        assert key in label_map or (value is None and not found.labeled)


# -------------------------------------------------------------------- columns of other names


def test_fields_are_read_from_the_columns_that_are_named(tmp_path: Path):
    row = {"story": "a", "toxic": "bad", "text": "not this", "label": "nor this"}
    found = read(tmp_path, row, columns={"text": "story", "label": "toxic"})
    assert (found.examples[0].text, found.examples[0].label) == ("a", "bad")
    assert found.notes[0].endswith('not read: "label" (1 rows), "text" (1 rows).')


def test_a_column_that_serves_one_field_is_no_other(tmp_path: Path):
    one = first(tmp_path, {"text": "a", "label": "b"}, columns={"prompt": "label"})
    assert (one.prompt, one.label) == ("b", "unlabeled")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "storry"}, 'text (column "storry") is missing: every row needs one (this row'),
        (
            {"label": "toxics"},
            'no row has the column "toxics", from which data.columns reads label ',
        ),
        ({"text": "story", "label": "score"}, 'label (column "score") is the number 7, but must'),
    ],
)
def test_a_column_that_is_not_there_or_wrong_is_named(tmp_path: Path, columns: dict, message: str):
    row = {"story": "a", "toxic": "bad", "score": 7, "text": "b"}
    if "label" not in columns:
        del row["text"]
    refused(tmp_path, row, message, columns=columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": "story"}, r'data\.columns: "txt" is no field \(the nearest is "text"\)'),
        ({"text": "a", "prompt": "a"}, r'text and prompt are both read from "a"'),
    ],
)
def test_columns_that_cannot_be_are_an_error_of_the_configuration(tmp_path, columns, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, {"text": "a"}, columns=columns)
