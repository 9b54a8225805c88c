"""The syntax of JSONL files: each way to be broken has its own sentence, with file and line."""

import builtins
import contextlib
import gzip
import hashlib
import io
import json
import re
from pathlib import Path

import pytest

from gradroute.data.jsonl import MAX_ROW_BYTES, read_objects, show
from gradroute.errors import DataError


def read(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> list[tuple[int, dict]]:
    return list(read_objects(path, lambda _: None, max_row_bytes))


def read_bytes(tmp_path: Path, content: bytes, **limits: int) -> list[tuple[int, dict]]:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    return read(path, **limits)


GOOD = b'{"a": 1}\n'


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (GOOD, [(1, {"a": 1})]),
        (b'{"a": 1}', [(1, {"a": 1})]),
        (b"\xef\xbb\xbf" + GOOD, [(1, {"a": 1})]),
        (b'{"a": 1}\r\n{"a": 2}\r\n', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'\n  \n{"a": 1}\n\r\n\t\n{"a": 2}\n\n', [(3, {"a": 1}), (6, {"a": 2})]),
        ('{"a": "x\u2028y\u0085z"}\n'.encode(), [(1, {"a": "x\u2028y\u0085z"})]),
        (b'{"a": "\\u0000\\u001b"}\n', [(1, {"a": "\0\x1b"})]),
        (b"", []),
    ],
)
def test_every_well_formed_file_is_read_with_its_line_numbers(tmp_path: Path, content, rows):
    assert read_bytes(tmp_path, content) == rows


@pytest.mark.parametrize(
    "content",
    [
        b'[{"a": 1}, {"a": 2}]',
        b'\xef\xbb\xbf[\n  {\n    "a": 1\n  }\n]\n',
        b"\n [\n" + b'{"a": 1}\n]',
        b"[ " + b'{"a": 1}, ' * 1000,
    ],
)
def test_an_array_of_objects_is_refused_with_the_way_to_lines(tmp_path: Path, content: bytes):
    skipped = []
    for given in ({}, {"on_bad_row": lambda *row: skipped.append(row)}):
        path = tmp_path / "all my rows.json"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a JSON array, not JSONL.*python -c ") as caught:
            list(read_objects(path, lambda _: None, 2000, **given))
        assert "< 'all my rows.json' > rows.jsonl" in str(caught.value)
    assert not skipped  # it is no row of a file


def test_the_way_to_lines_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": "é\n"}, {"a": 2}], indent=1))
    with pytest.raises(DataError) as caught:
        read(path)
    (code,) = re.findall("python -c '(.*?)'", str(caught.value))
    said = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(path.read_text()))
    with contextlib.redirect_stdout(said):
        exec(code, {})
    lines = tmp_path / "rows.jsonl"
    lines.write_text(said.getvalue())
    assert read(lines) == [(1, {"a": "é\n"}), (2, {"a": 2})]


@pytest.mark.parametrize("content", [b'{\n  "a": 1\n}\n', b'{"data": [\n{"a": 1}]}\n'])
def test_an_object_over_several_lines_is_refused_as_such(tmp_path: Path, content: bytes):
    with pytest.raises(DataError, match=r":1: a JSON object over several lines, .* jq -c \. data"):
        read_bytes(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"a": }\n', ":2: broken JSON: Expecting value (column 7)"),
        (GOOD + b"{'a': 1}\n", ":2: broken JSON: Expecting property name"),
        (GOOD + b'{"a": 1} {"a": 2}\n', ":2: broken JSON: Extra data (column 10)"),
        (GOOD + b'{"a": "x\ny"}\n', ":2: broken JSON: Invalid control character (column 9)"),
        (GOOD + b'{"a": "x\n', ":2: broken JSON: Invalid control character (column 9)"),
        (GOOD + b'{"a": "x\x00"}\n', ":2: broken JSON: Invalid control character (column 9)"),
        (b"[1, 2]\n", ":1: expected an object, got a list"),
        (GOOD + b'[{"a": 1}]\n', ":2: expected an object, got a list"),
        (GOOD + b"[1, 2]\n", ":2: expected an object, got a list"),
        (GOOD + b'"text"\n', ':2: expected an object, got "text"'),
        (GOOD + b"17\n", ":2: expected an object, got the number 17"),
        (GOOD + b"null\n", ":2: expected an object, got null"),
        (GOOD + b"true\n", ":2: expected an object, got true"),
        (GOOD + b'{"a": "\xff"}\n', ":2: not UTF-8 (byte 8 of the line)"),
        (GOOD + b'{"a": "\xed\xa0\x80"}\n', ":2: not UTF-8 (byte 8 of the line)"),
        (GOOD + b'{"a": 1, "a": 2}\n', ':2: the key "a" appears twice in one object'),
        (GOOD + b'{"b": {"a": 1, "a": 1}}\n', ':2: the key "a" appears twice in one object'),
        (GOOD + b'{"a": NaN}\n', ":2: NaN is not JSON"),
        (GOOD + b'{"a": [-Infinity]}\n', ":2: -Infinity is not JSON"),
        (GOOD + b'{"a": ' + b"[" * 100_000 + b"\n", ":2: the row is nested too deeply"),
        (GOOD + b'{"a":' * 100_000 + b"\n", ":2: the row is nested too deeply"),
        (GOOD + b'{"a": ' + b"9" * 5000 + b"}\n", ":2: a number of 5000 digits is too long"),
        (GOOD + b'{"a": [-' + b"9" * 640 + b"]}\n", ":2: a number of 641 digits is too long"),
        (GOOD + b"\xef\xbb\xbf" + GOOD, ":2: a byte-order mark inside the file: remove it"),
        (b"\xef\xbb\xbf" * 2 + GOOD, ":1: a byte-order mark inside the file: remove it"),
        ('{"a": 1}\n'.encode("utf-16"), ":1: not UTF-8 but UTF-16 (byte 1)"),
        ('{"a": 1}\n'.encode("utf-16-le"), ":1: broken JSON"),
    ],
)
def test_every_broken_line_is_refused_with_file_and_line(tmp_path: Path, content, message: str):
    with pytest.raises(DataError) as caught:
        read_bytes(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'data.jsonl'}{message}")
    assert "cut off" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_cut_anywhere_is_whole_or_said_to_be_cut(tmp_path: Path):
    lines = ['{"text": "a fox", "id": 1}', '{"text": "ein Bär", "b": [2]}', '{"text": "日本"}']
    content = ("\n".join(lines) + "\n").encode()
    complete = {0}
    for line in lines:
        complete |= {max(complete) + len(line.encode()) + 1}
    for cut in range(len(content)):
        whole = cut in complete or cut + 1 in complete
        if whole:
            expected = content[:cut].decode().split("\n")
            expected = [json.loads(line) for line in expected if line]
            assert [row for _, row in read_bytes(tmp_path, content[:cut])] == expected
        else:
            number = 1 + content[:cut].count(b"\n")
            place = rf"data\.jsonl:{number}: .*no newline at its end and may be cut off"
            with pytest.raises(DataError, match=place):
                read_bytes(tmp_path, content[:cut])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_row_over_the_limit_is_refused_and_one_at_the_limit_is_not(tmp_path: Path, mark: bytes):
    assert len(read_bytes(tmp_path, mark + GOOD + GOOD, max_row_bytes=len(GOOD))) == 2
    for content in (mark + b" " + GOOD, mark + GOOD + b" " + GOOD):
        with pytest.raises(DataError, match=f"row is longer than {len(GOOD)} bytes"):
            read_bytes(tmp_path, content, max_row_bytes=len(GOOD))


@pytest.mark.parametrize("limit", [20, 25, 40])
def test_a_bad_row_that_is_passed_over_is_given_whole_and_the_others_are_read(
    tmp_path: Path, limit: int
):
    """Also one that is too long: piece by piece, of which none is longer than the limit allows."""
    bad = [b'{"a": }\n', b'{"b": "' + b"x" * 100 + b'"}\n', b"\xff\n", b'{"c": "' + b"y" * 90]
    content = b"\xef\xbb\xbf" + GOOD + bad[0] + GOOD + bad[1] + b"\n" + bad[2] + GOOD + bad[3]
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    seen: list[tuple[int, str, bytes]] = []

    def note(line: int, error: DataError, pieces) -> None:
        pieces = list(pieces)
        assert max(map(len, pieces)) <= limit + 4
        seen.append((line, str(error).removeprefix(f"{path}:{line}: ")[:11], b"".join(pieces)))

    digest = hashlib.sha256()
    rows = list(read_objects(path, digest.update, limit, note))
    assert rows == [(1, {"a": 1}), (3, {"a": 1}), (7, {"a": 1})]
    reasons = ["broken JSON", "the row is ", "not UTF-8 (", "the row is "]
    assert seen == list(zip((2, 4, 6, 8), reasons, bad, strict=True))
    assert digest.digest() == hashlib.sha256(content).digest()


def test_what_is_not_asked_for_of_a_bad_row_is_passed_over_and_counted_in_the_digest(
    tmp_path: Path,
):
    content = GOOD + b"x" * 1000 + b"\n" + GOOD
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    digest, bad = hashlib.sha256(), []
    rows = list(read_objects(path, digest.update, 20, lambda line, *_: bad.append(line)))
    assert (rows, bad) == ([(1, {"a": 1}), (3, {"a": 1})], [2])
    assert digest.digest() == hashlib.sha256(content).digest()


def test_another_format_is_refused_also_where_bad_rows_are_passed_over(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    for content in (gzip.compress(GOOD), '{"a": 1}\n'.encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.jsonl:1: "):
            list(read_objects(path, lambda _: None, on_bad_row=lambda *_: None))


def test_a_file_without_newlines_is_refused_before_it_is_in_memory():
    with pytest.raises(DataError, match="/dev/zero:1: the row is longer than 1000 bytes"):
        read(Path("/dev/zero"), max_row_bytes=1000)


def _denied(*_):
    raise PermissionError(13, "Permission denied")


def test_what_is_no_readable_file_is_named_each_in_its_own_words(tmp_path: Path, monkeypatch):
    zipped = tmp_path / "data.jsonl"
    zipped.write_bytes(gzip.compress(GOOD))
    sentences = []
    for path in (tmp_path / "nothing.jsonl", tmp_path, zipped, "nul\0.jsonl"):
        with pytest.raises(DataError) as caught:
            read(path)  # pyright: ignore[reportArgumentType]
        sentences.append(str(caught.value).removeprefix(str(path)))
    monkeypatch.setattr(Path, "open", _denied)
    with pytest.raises(DataError) as caught:
        read(zipped)
    sentences.append(str(caught.value).removeprefix(str(zipped)))
    assert sentences == [
        " does not exist: give the path of a JSONL file",
        " is a folder: give the JSONL file in it",
        ":1: the file is compressed with gzip: unpack it first (gunzip)",
        " cannot be read: embedded null byte",
        " may not be read by this user: change its permissions",
    ]


def test_the_digest_is_that_of_the_whole_file(tmp_path: Path):
    content = b"\xef\xbb\xbf" + GOOD + b"\r\n\n" + GOOD
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    digest = hashlib.sha256()
    assert len(list(read_objects(path, digest.update))) == 2
    assert digest.digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b[31m\n\x7f\ud800", '"a\\u001b[31m\\n\\u007f\\ud800"'),
        ("x" * 99, '"' + "x" * 40 + '..."'),
        (None, "null"),
        (False, "false"),
        (0, "the number 0"),
        (0.5, "the number 0.5"),
        ([1], "a list"),
        ({}, "an object"),
    ],
)
def test_a_value_is_shown_short_and_without_control_characters(value, text: str):
    assert show(value) == text
    assert builtins.ascii(show(value)).strip("'").isprintable()
