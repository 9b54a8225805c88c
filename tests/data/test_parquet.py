"""Parquet files: values have the types that the file says, and none is turned into another."""

import datetime
import decimal
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import chat_templates
import pyarrow
import pytest
import template_tokenizers
from byte_tokenizer import byte_tokenizer
from pyarrow import parquet

from gradroute.data.parquet import read_parquet
from gradroute.data.reading import ExampleFile, read_examples
from gradroute.errors import DataError, MachineError


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def read(path: Path, **given: Any) -> ExampleFile:
    return read_examples(path, **given)


def test_rows_are_read_in_order_over_row_groups_with_the_hash_of_the_file(tmp_path: Path):
    texts = [f"2024-01-0{i}" for i in range(1, 8)]
    path = write(tmp_path, text=texts, label=["bad", "good"] * 3 + ["bad"], id=list(range(7)))
    found = read(path)
    assert [(e.id, e.text, e.label) for e in found.examples[:2]] == [
        ("0", "2024-01-01", "bad"),
        ("1", "2024-01-02", "good"),
    ]
    assert [e.text for e in found.examples] == texts
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_lists_structs_and_categories_are_what_json_would_have(tmp_path: Path):
    path = write(
        tmp_path,
        text=["abc", "def"],
        label=pyarrow.array(["bad", "good"]).dictionary_encode(),
        weight=pyarrow.array([2, None], pyarrow.float32()),
        spans=[[{"start": 0, "end": 2, "label": "good"}], None],
    )
    one, two = read(path).examples
    assert (one.label, one.weight, one.spans) == ("bad", 2.0, ((0, 2, "good"),))
    assert (two.label, two.weight, two.spans) == ("good", 1.0, ())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([datetime.datetime(2020, 1, 1)], "timestamp"),
        ([datetime.date(2020, 1, 1)], "date32"),
        ([decimal.Decimal("1.0")], "decimal128"),
        ([b"bad"], "binary"),
        ([[datetime.date(2020, 1, 1)]], "date32"),
        ([{"a": b"x"}], "binary"),
    ],
)
@pytest.mark.parametrize("field", ["label", "text"])
def test_a_column_of_a_type_that_json_lacks_is_refused_by_name(
    tmp_path: Path, field: str, values: list, kind: str
):
    path = write(tmp_path, **{"text": ["a"], field: values})
    with pytest.raises(
        DataError, match=rf'rows\.parquet:1: the column "{field}" has the type {kind}'
    ):
        read(path)


def as_json(*values: Any) -> pyarrow.Array:
    """A column of the JSON type, as `datasets` writes it; None is missing."""
    texts = [None if one is None else json.dumps(one, separators=(",", ":")) for one in values]
    return pyarrow.array(texts, pyarrow.json_())


@pytest.mark.parametrize("schema", [True, False])
def test_values_of_the_json_type_are_what_their_texts_say(tmp_path: Path, schema: bool):
    """With and without the Arrow schema: polars and DuckDB keep only Parquet's own types."""
    path = tmp_path / "rows.parquet"
    columns = {"text": as_json("a", "b", "c", '"d"'), "label": as_json("bad", 0, True, None)}
    parquet.write_table(pyarrow.table(columns), path, store_schema=schema)
    label_map = {"bad": "bad", "0": "good", "true": "bad", "null": "unlabeled"}
    assert [(e.text, e.label) for e in read(path, label_map=label_map).examples] == [
        ("a", "bad"),
        ("b", "good"),
        ("c", "bad"),
        ('"d"', "unlabeled"),
    ]


def test_json_inside_of_lists_and_structs_is_decoded_too(tmp_path: Path):
    mixed = pyarrow.ListArray.from_arrays([0, 3, 3], as_json(0, 2, "bad"))
    spans = pyarrow.ListArray.from_arrays([0, 1, 1], mixed.slice(0, 1))
    path = write(tmp_path, text=["abc", "def"], spans=spans)
    assert [e.spans for e in read(path).examples] == [((0, 2, "bad"),), ()]
    parts = [pyarrow.array([0]), pyarrow.array([2]), as_json(["bad"])]
    structs = pyarrow.StructArray.from_arrays(parts, ["start", "end", "label"])
    path = write(tmp_path, text=["abc"], spans=pyarrow.ListArray.from_arrays([0, 1], structs))
    assert [e.spans for e in read(path).examples] == [((0, 2, "bad"),)]


def test_messages_of_the_json_type_or_filled_with_nulls_are_those_of_jsonl(tmp_path: Path):
    rows = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "label": "bad"}],
        [{"role": "user", "content": "Ho"}, {"role": "assistant", "content": "B"}],
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps({"messages": one}) + "\n" for one in rows))
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = chat_templates.CHATML
    right = read(lines, tokenizer=tokenizer).examples
    assert [e.spans != () for e in right] == [True, False]
    each = as_json(*(message for one in rows for message in one))
    for messages in (pyarrow.ListArray.from_arrays([0, 2, 4], each), as_json(*rows), rows):
        path = write(tmp_path, messages=messages)
        assert read(path, tokenizer=tokenizer).examples == right


def test_arguments_that_only_other_rows_have_are_not_in_a_tool_call(tmp_path: Path):
    def talk(arguments: dict) -> list:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return [{"role": "user", "content": "Hi"}, answer]

    talks = [talk({"x": 1, "in": {"y": "z"}}), talk({"w": 2.5})]
    model = template_tokenizers.tokenizer("bytes", chat_templates.TOOLS)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in talks))
    found = read(write(tmp_path, messages=talks), tokenizer=model).examples
    assert found == read(path, tokenizer=model).examples
    assert "null" not in found[0].text + found[1].text


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{'a': 1}", 'the column "label": has broken JSON: Expecting property name'),
        ("NaN", 'the column "label": NaN is not JSON'),
        ('{"a": 1, "a": 2}', 'the column "label": the key "a" appears twice in one object'),
        ("[" * 100_000, 'the column "label": has JSON that is nested too deeply'),
        (f'"{"a" * 200_001}"', 'the column "label": has JSON of more than 200000 characters'),
    ],
)
def test_a_value_that_is_no_strict_json_is_refused_or_skipped_by_row(tmp_path, broken, message):
    labels = pyarrow.array(['"bad"', broken, '"good"'], pyarrow.json_())
    path = write(tmp_path, text=["a", "b", "c"], label=labels)
    with pytest.raises(DataError) as caught:
        read(path, max_row_bytes=200_000)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    found = read(path, max_row_bytes=200_000, skip_bad_rows=True)
    assert ([e.label for e in found.examples], [one.line for one in found.skipped]) == (
        ["bad", "good"],
        [2],
    )


@pytest.mark.parametrize(
    "kind", [pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary("int8", "string")]
)
def test_texts_of_every_kind_that_arrow_has_are_texts(tmp_path: Path, kind: pyarrow.DataType):
    path = write(tmp_path, text=pyarrow.array(["a", "b"]).cast(kind), label=["bad", "good"])
    assert [e.text for e in read(path).examples] == ["a", "b"]
    spans = pyarrow.array([[[0, 1]], []], pyarrow.list_(pyarrow.list_(pyarrow.int8(), 2)))
    with pytest.raises(DataError, match="spans must hold objects with start, end and label"):
        read(write(tmp_path, text=["a", "b"], spans=spans))


def test_such_a_column_is_passed_over_where_it_is_not_read(tmp_path: Path):
    path = write(tmp_path, text=["a"], when=[datetime.date(2020, 1, 1)])
    assert read(path).notes == (f'{path}: fields that are not read: "when" (1 rows).',)


@pytest.mark.parametrize("values", [[True, False], [0, 1], [0.0, 1.0]])
def test_truth_values_and_numbers_are_labels_only_through_a_map(tmp_path: Path, values: list):
    path = write(tmp_path, text=["a", "b"], label=values)
    with pytest.raises(DataError, match=r"rows\.parquet:1: label is .*, but must be one of good"):
        read(path)
    keys = [str(value).lower() for value in values]
    found = read(path, label_map=dict(zip(keys, ("bad", "good"), strict=True)))
    assert [e.label for e in found.examples] == ["bad", "good"]


def test_rows_that_are_wrong_in_themselves_are_skipped_and_named(tmp_path: Path):
    path = write(tmp_path, text=["a", " ", "b", None, "c" * 99], label=["bad"] * 5)
    with pytest.raises(DataError, match=r"rows\.parquet:2: text is empty or blank"):
        read(path)
    found = read(path, skip_bad_rows=True, max_row_bytes=50)
    assert [row.line for row in found.skipped] == [2, 4, 5]


def test_a_text_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path):
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")],
    )
    with pytest.raises(DataError, match=r"rows\.parquet:2: text "):
        read(write(tmp_path, text=texts))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: b"", "not Parquet: it begins with"),
        (lambda raw: b'{"text": "a"}\n', "not Parquet: it begins with"),
        (lambda raw: raw[:-5], "the file is cut off"),
        (lambda raw: b"PAR1", "the file is cut off"),
        (lambda raw: raw[:-8] + b"\xff\xff\xff\x7fPAR1", "claims to have 2,147,483,647 bytes"),
        (lambda raw: raw[:-40] + b"\xff" * 32 + raw[-8:], "not a complete Parquet file"),
        (lambda raw: raw[:4] + b"\0" * 60 + raw[64:], "the file is damaged|text |must be"),
    ],
)
def test_a_file_that_is_no_whole_parquet_is_refused_in_a_sentence(tmp_path: Path, spoil, message):
    path = write(tmp_path, text=["abc" * 20, "def" * 20])
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rf"rows\.parquet:[12]: .*({message})"):
        read(path)


def test_a_row_group_that_is_said_to_be_endless_is_not_unpacked(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gradroute.data.parquet.MAX_GROUP", 10)
    with pytest.raises(DataError, match=r"row group 0 has \d+ bytes: write smaller"):
        read(write(tmp_path, text=["abcdefghijklmnop"]))


def test_without_its_library_the_extra_is_named(tmp_path: Path, monkeypatch):
    path = write(tmp_path, text=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match=r"pip install 'gradroute\[data\]'"):
        list(read_parquet(path, lambda _: None, ["text"]))
