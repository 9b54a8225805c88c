"""CSV files are read as they stand: every cell a text, every row as long as the header."""

import csv
import gzip
import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradroute.data.csv import read_csv
from gradroute.errors import DataError

FIXTURE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, content: bytes, limit: int = 10_000) -> list[tuple[int, dict]]:
    path = folder / "rows.csv"
    path.write_bytes(content)
    return list(read_csv(path, lambda _: None, limit, None, ["weight", "spans"]))


def test_cells_are_texts_and_empty_ones_are_missing(tmp_path: Path):
    rows = read(tmp_path, b'text,label\n2024-01-01,1.0\n"","true"\nNULL, \n')
    assert rows == [
        (2, {"text": "2024-01-01", "label": "1.0"}),
        (3, {"text": None, "label": "true"}),
        (4, {"text": "NULL", "label": " "}),
    ]


def test_quotes_commas_and_line_breaks_stand_in_quotes_and_lines_are_those_of_the_file(
    tmp_path: Path,
):
    content = '\ufefftext,b\r\n"a ""b"", c\nd\u2028",x\r\n\r\n \n"é"'.encode() + b",y"
    assert read(tmp_path, content) == [
        (2, {"text": 'a "b", c\nd\u2028', "b": "x"}),
        (6, {"text": "é", "b": "y"}),
    ]


def test_cells_of_columns_in_json_are_values_and_others_never(tmp_path: Path):
    content = b'text,weight,spans\n1,2.5,"[[0, 1, ""bad""]]"\n2,heavy,\n3,NaN,[\n'
    assert [row for _, row in read(tmp_path, content)] == [
        {"text": "1", "weight": 2.5, "spans": [[0, 1, "bad"]]},
        {"text": "2", "weight": "heavy", "spans": None},
        {"text": "3", "weight": "NaN", "spans": "["},
    ]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=9)


@settings(FIXTURE, max_examples=40)
@given(st.lists(st.tuples(cells, cells, st.just("x")), max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_what_pythons_csv_writes_comes_back_as_it_was(tmp_path: Path, rows, end: str):
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator=end)
    writer.writerows([("a", "b", "c"), *rows])
    found = [row for _, row in read(tmp_path, stream.getvalue().encode())]
    assert found == [{"a": a or None, "b": b or None, "c": c} for a, b, c in rows]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na\n", "2: 1 cells, but the header has 2"),
        (b"text,label\na,b,c\n", "2: 3 cells, but the header has 2: put cells with commas"),
        (b"text,label\na,b\n\n\xff,b\n", "4: not UTF-8"),
        (b'text,label\n"a\nb" c,d\n', '2: broken quoting in the cell "\\"a'),
        (b'text,label\n"a\nb",5" pipe\n', '3: broken quoting in the cell "5\\" pipe'),
        (b'text,label\nx,y\n"a\nb,c\nd,e\n', "3: a quote opens before"),
        (b"text,label\ra,b\r", "1: a carriage return outside of quotes"),
        (b"text,text\na,b\n", '1: the column "text" stands twice'),
        (b"text,,label\na,b,c\n", "1: column 2 of the header has no name"),
        (b"text;label\na;b\n", "1: one column, \"text;label\": commas are needed, not ';'"),
        (b"\xff,label\n", "1: the header is not UTF-8"),
        (b"PAR1abc", "1: the file is Parquet"),
        (gzip.compress(b"text\na\n", mtime=0), "1: the file is compressed with gzip"),
        ("text\n".encode("utf-16"), "1: not UTF-8 but UTF-16"),
    ],
)
def test_what_is_no_strict_csv_is_refused_with_its_line(tmp_path: Path, content: bytes, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.csv'}:{message}")


def test_rows_that_are_wrong_in_themselves_are_passed_over_and_say_what_they_have(tmp_path: Path):
    path = tmp_path / "rows.csv"
    content = b'a,b\n1,2\n3\n,5,6\n\xff,\n"' + b"x" * 99 + b'\n",y\n7,8\n'
    path.write_bytes(content)
    bad: list[tuple[int, list[str]]] = []
    digest = hashlib.sha256()
    rows = read_csv(path, digest.update, 60, lambda line, _, has: bad.append((line, [*has])))
    assert list(rows) == [(2, {"a": "1", "b": "2"}), (8, {"a": "7", "b": "8"})]
    # Of the one that is too long nothing is known.
    assert bad == [(3, ["a"]), (4, ["b"]), (5, ["a"]), (6, ["a", "b"])]
    assert digest.digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize("content", [b'a,b\n"1,2\n3,4\n', b'a,b\n1,"2"2\n3,4\n'])
def test_where_nobody_knows_where_a_row_ends_none_is_passed_over(tmp_path: Path, content: bytes):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.csv:2: "):
        list(read_csv(path, lambda _: None, 1000, lambda *_: None))
    with pytest.raises(DataError, match=r"is never closed|longer than 1 bytes"):
        list(read_csv(path, lambda _: None, 1, lambda *_: None))
