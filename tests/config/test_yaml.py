import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.config.yaml import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ENTRIES,
    Scalar,
    is_null,
    parse_yaml,
    plain_value,
    read_yaml_file,
)
from gradroute.errors import ConfigError

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
    with pytest.raises(ConfigError, match=r"test:1: anchors and aliases are not supported"):
        parse_yaml(bomb, "test")


LAUGHS = "a0: &a0 ha\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
HOSTILE = {
    "a billion laughs": (LAUGHS, "test:1: anchors and aliases are not supported"),
    "an alias of itself": ("a: &a [*a]\n", "anchors and aliases"),
    "an alias as a key": ("? *a\n: 1\n", "a key must be a plain text"),
    "a merge": ("a: {<<: *b}\n", "anchors and aliases"),
    "an object of python": ("a: !!python/object:os.system [ls]\n", "the tag .*os.system.* is not"),
    "a call of python": (
        "a: !!python/object/apply:os.system ['ls']\n",
        "the tag .* is not supported",
    ),
    "a module of python": ("b: 1\na: !!python/module:os ''\n", "test:2: the tag"),
    "a tag of one's own": ("a: !mine {b: 1}\n", "the tag '!mine' is not supported"),
    "a tag that says what is so": ("a: !!str x\n", "the tag .*str' is not supported"),
    "bytes": ("a: !!binary aGk=\n", "the tag"),
    "a key with a tag": ("!!str a: 1\n", "a key must be a plain text"),
    "a list as a key": ("? [a, b]\n: 1\n", "a key must be a plain text"),
    "two documents": ("a: 1\n---\nb: 1\n", "test:2: a second document begins here"),
    "deep lists": ("[" * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
    "deep mappings": ("{a: " * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(500)), "nested deeper than"),
    "deep dashes": ("- " * 100_000, "nested deeper than"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(90_000)), "test:2000: more than 2,000"),
    "many doubles": ("a: 1\n" * 100_000, "more than 2,000 entries"),
    "a long list": ("a: [" + "x," * 100_000 + "]\n", "more than 2,000 entries"),
    "a bell": ("a: \x07\n", "not YAML"),
    "a NUL": ("a: \x00\n", "not YAML"),
    "tabs": ("a:\n\tb: 1\n", "test:2: not YAML"),
    "cut short": ("a: [1, 2\n", "not YAML"),
    "an escape of no character": ('a: "\\U00110000"\n', "not YAML"),
    "an escape of a large number": ('a: "\\UFFFFFFFF"\n', "not YAML"),
    "a large version": (f"%YAML {'9' * 5_000}.1\n---\na: 1\n", "not YAML"),
    "a directive": ("%INCLUDE x\n---\na: %x\n", "not YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_configuration_cannot_need_is_refused_with_its_line(name: str) -> None:
    text, words = HOSTILE[name]
    with pytest.raises(ConfigError, match=words) as caught:
        parse_yaml(text, "test")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@given(
    st.text(max_size=60)
    | st.text("[]{}:,-?&*!|>'\"%@`#\n \t~aé0", max_size=60)
    | st.from_regex(r"a: \"\\[xuUNL_0abefnrtv ][0-9A-F]{0,8}\"", fullmatch=True)
)
def test_any_text_is_read_or_is_an_error_of_ours(text: str) -> None:
    try:
        value = plain_value(parse_yaml(text, "test").value)
    except ConfigError as error:
        assert str(error).startswith("test:")
    else:
        assert json.loads(json.dumps(value)) == value


def test_entries_up_to_the_limit_are_read() -> None:
    text = "[" + ",".join(["x"] * (MAX_ENTRIES - 1)) + "]"
    assert len(parse_yaml(text, "test").value) == MAX_ENTRIES - 1


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a: 1\n" + b"#" * MAX_BYTES, "larger than 1,000,000 bytes"),
        (b"a: 1\nb: \xff\n", "c.yaml:2: not UTF-8"),
        ("a: 1\n".encode("utf-16"), "c.yaml:1: not UTF-8"),
    ],
)
def test_a_file_that_is_too_large_or_no_text_is_refused(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    (tmp_path / "c.yaml").write_bytes(raw)
    with pytest.raises(ConfigError, match=words):
        read_yaml_file(tmp_path / "c.yaml", "c.yaml")


def test_a_file_of_exactly_the_limit_and_one_with_a_byte_order_mark_are_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: 1\n#" + b"x" * (MAX_BYTES - 6))
    assert read_yaml_file(path, "c").value == {"a": "1"}
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml_file(path, "c").value == {"a": "1"}


def test_nothing_in_a_text_is_replaced_by_the_environment() -> None:
    texts = ["$HOME", "${HOME}", "{{ 7 * 7 }}", "%(x)s", "{0.__class__}", "oc.env:HOME"]
    assert parse_yaml(json.dumps(texts), "test").value == texts
