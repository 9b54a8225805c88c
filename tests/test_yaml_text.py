import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.errors import ConfigError
from gradroute.yaml_text import Scalar, is_null, parse_yaml, plain_value

words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)


@given(documents)
def test_json_is_read_as_json_reads_it(document: Any) -> None:
    text = json.dumps(document, ensure_ascii=False)
    assert plain_value(parse_yaml(text, "test").value) == document


def test_plain_scalars_stay_as_written_and_quoted_ones_are_texts() -> None:
    value = parse_yaml("[1e-4, no, 0.1_0.0, 2024-01-01, '1', \"no\"]", "test").value
    assert value == ["1e-4", "no", "0.1_0.0", "2024-01-01", "1", "no"]
    assert [type(item) for item in value] == [Scalar] * 4 + [str] * 2
    assert plain_value(value) == [1e-4, "no", "0.1_0.0", "2024-01-01", "1", "no"]


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_null_is_what_yaml_says(text: str) -> None:
    assert parse_yaml(f"key: {text}\n", "test").value == {"key": None}
    assert is_null(Scalar(text))
    assert not is_null(text)


def test_lines_of_keys_and_entries_are_known() -> None:
    lines = parse_yaml("a: 1\nb:\n  - x\n  - c: 2\n", "test").lines
    assert lines["a",] == 1
    assert lines["b", 0] == 3
    assert lines["b", 1, "c"] == 4


def test_every_duplicate_key_is_named_and_the_first_one_counts() -> None:
    text = parse_yaml("a: 1\nb: {c: 1, c: 2}\na: 3\n", "test")
    assert plain_value(text.value) == {"a": 1, "b": {"c": 1}}
    assert text.duplicates == [
        "test:2: b.c is given twice, first on line 2; keep one.",
        "test:3: a is given twice, first on line 1; keep one.",
    ]


def test_aliases_cannot_multiply() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    with pytest.raises(ConfigError, match=r"test:1: anchors and aliases are not read"):
        parse_yaml(bomb, "test")
