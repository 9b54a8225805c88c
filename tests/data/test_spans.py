"""Spans as people and tools write them: units, further keys, and what they say of themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradroute.data.reading import ExampleFile, read_examples
from gradroute.errors import ConfigError, DataError

TEXT = "é💩 LOUD 日本 end"


def read(folder: Path, *rows: object, **given: Any) -> ExampleFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, **given)


def marked(folder: Path, span: object, text: str = TEXT, **given: Any) -> list[tuple[str, str]]:
    """The text and label of each span of a row."""
    [one] = read(folder, {"text": text, "spans": [span]}, **given).examples
    return [(one.text[span.start : span.end], span.label) for span in one.spans]


def place(part: str, unit: str, text: str = TEXT) -> tuple[int, int]:
    """Where a part of a text begins and ends, as tools that count in a unit say it."""
    before, size = (
        text[: text.index(part)],
        {
            "code_points": len,
            "utf16": lambda one: len(one.encode("utf-16-le")) // 2,
            "bytes": lambda one: len(one.encode()),
        }[unit],
    )
    return size(before), size(before + part)


@pytest.mark.parametrize("unit", ["code_points", "utf16", "bytes"])
@pytest.mark.parametrize("part", ["é💩", "LOUD", "日本", "end"])
def test_places_are_read_in_the_unit_that_is_named(tmp_path: Path, unit: str, part: str):
    start, end = place(part, unit)
    assert marked(tmp_path, [start, end, "bad"], span_unit=unit) == [(part, "bad")]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.text(st.sampled_from("aé日💩"), min_size=1, max_size=5),
    st.sampled_from(["utf16", "bytes"]),
    st.integers(-1, 22),
    st.integers(-1, 22),
)
def test_any_place_is_that_of_the_encoded_text_or_is_refused(tmp_path, text, unit, start, end):
    raw = text.encode("utf-16-le" if unit == "utf16" else "utf-8")
    step = 2 if unit == "utf16" else 1
    try:
        right = raw[start * step : end * step].decode("utf-16-le" if unit == "utf16" else "utf-8")
        raw[: start * step].decode("utf-16-le" if unit == "utf16" else "utf-8")
    except UnicodeDecodeError:
        right = ""
    fine = 0 <= start < end <= len(raw) // step and right
    try:
        found = marked(tmp_path, [start, end, "bad"], text, span_unit=unit)
    except DataError:
        assert not fine or not text.strip()
    else:
        assert found == [(right, "bad")]


@pytest.mark.parametrize(
    ("unit", "place", "message"),
    [
        ("utf16", 2, "number 1 has 2, which is inside a character if UTF-16 code units are"),
        ("bytes", 1, "number 1 has 1, which is inside a character if bytes are counted"),
    ],
)
def test_a_place_inside_of_a_character_is_refused(tmp_path: Path, unit, place, message: str):
    with pytest.raises(DataError, match=message):
        marked(tmp_path, [place, 8, "bad"], span_unit=unit)


@pytest.mark.parametrize("unit", ["utf16", "bytes"])
def test_a_text_that_does_not_match_is_refused_with_the_unit_that_would(tmp_path: Path, unit: str):
    start, end = place("LOUD", unit)
    span = {"start": start, "end": end, "text": "LOUD", "labels": ["bad"]}
    message = f'number 1 quotes "LOUD", but from {start} to {end} .* say data.span_unit={unit}'
    with pytest.raises(DataError, match=message):
        marked(tmp_path, span)
    assert marked(tmp_path, span, span_unit=unit) == [("LOUD", "bad")]


def test_a_text_that_matches_in_no_unit_is_refused_without_naming_one(tmp_path: Path):
    with pytest.raises(DataError, match=r"it fits in no unit of data\.span_unit: was the text"):
        marked(tmp_path, {"start": 0, "end": 4, "text": "LOUD", "label": "bad"})


def test_places_behind_the_text_are_refused_with_the_unit_that_reaches_them(tmp_path: Path):
    start, end = place("end", "utf16")
    with pytest.raises(DataError, match=r"if it counts UTF-16 code units or bytes, say data\.spa"):
        marked(tmp_path, [start, end, "bad"])
    with pytest.raises(DataError, match=r"from 1 to 9$"):
        marked(tmp_path, [1, 9, "bad"], "abc")


def test_further_keys_of_spans_are_counted_once_and_null_is_as_good_as_missing(tmp_path: Path):
    span = {"start": 0, "end": 2, "label": "bad", "token_start": 0, "score": None}
    rows = [{"text": f"ab{at}", "spans": [span, {**span, "id": "x"}]} for at in range(3)]
    found = read(tmp_path, *rows)
    assert all(example.spans == ((0, 2, "bad"),) for example in found.examples)
    assert [note for note in found.notes if "not read" in note] == [
        f'{tmp_path / "rows.jsonl"}: fields that are not read: "spans.id" (3 rows), '
        '"spans.token_start" (3 rows).'
    ]


@pytest.mark.parametrize("key", ["label", "labels"])
def test_a_span_has_one_label_also_in_a_list(tmp_path: Path, key: str):
    assert marked(tmp_path, {"start": 0, "end": 2, key: ["bad"]}) == [("é💩", "bad")]
    with pytest.raises(DataError, match="label of span 1 is a list of 2 labels, but one is needed"):
        marked(tmp_path, {"start": 0, "end": 2, key: ["bad", "good"]})
    with pytest.raises(DataError, match="spans need a label each; number 1 has none"):
        marked(tmp_path, {"start": 0, "end": 2, key: []})


def test_labels_in_a_list_are_read_by_the_map_too(tmp_path: Path):
    span = {"start": 0, "end": 2, "labels": ["toxic"]}
    assert marked(tmp_path, span, label_map={"toxic": "bad"}) == [("é💩", "bad")]


def test_an_unknown_unit_is_an_error_of_the_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match=r'data\.span_unit must be one of .*, got "chars"'):
        marked(tmp_path, [0, 1, "bad"], span_unit="chars")


def test_whole_numbers_that_a_table_made_floats_are_places(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "Say LOUD words", "spans": [[4.0, 8.0, "bad"]]}\n')
    assert [tuple(e.spans[0]) for e in read_examples(path).examples] == [(4, 8, "bad")]
    path.write_text('{"text": "Say LOUD words", "spans": [[4.5, 8.0, "bad"]]}\n')
    with pytest.raises(
        DataError, match=r"must begin and end at whole numbers; number 1 has .*4\.5"
    ):
        read_examples(path)


def test_an_empty_span_within_the_text_is_no_matter_of_units(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "Say LOUD words", "spans": [[4, 4, "bad"]]}\n')
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert "span_unit" not in str(caught.value)
