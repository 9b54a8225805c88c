"""Files of rows that get a label and otherwise stay as they are: JSONL byte by byte, CSV as fields.

A line of JSONL is not written anew: the label is put into its bytes, so that numbers, escapes,
spaces and the order of the fields are those of the file.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.data.jsonl import MAX_ROW_BYTES, read_objects, refuse, shown
from gradroute.errors import ConfigError, DataError

LABEL = "label"
"""The field that a label is written to."""

_SPACE = " \t\n\r"  # of JSON


class TableRow(NamedTuple):
    """One row of a file.

    Attributes:
        line: Where it begins, from 1.
        values: Its fields.
        typed: Whether a number is a number; in a CSV file everything is a text.
    """

    line: int
    values: dict[str, Any]
    typed: bool

    def given(self, name: str) -> Any:
        """The value of a field; None where it is missing, null or, in a CSV file, empty."""
        value = self.values.get(name)
        return None if value == "" and not self.typed else value


class Table(NamedTuple):
    """A file of rows.

    Attributes:
        rows: At least one, in order.
        sha256: Of the file's bytes.
        labelled: Gives the file's bytes with a label for each row.
    """

    rows: list[TableRow]
    sha256: str
    labelled: Callable[[Sequence[str]], bytes]


def read_table(path: Path) -> Table:
    """Read a file of rows: CSV by its ending, else JSONL.

    Raises:
        ConfigError: The ending is that of another format.
        DataError: The file cannot be read or has no row; the message names file and line.
    """
    if path.suffix in (".parquet", ".arrow", ".json", ".xlsx", ".tsv", ".gz"):
        raise ConfigError(
            f"{path} is labelled as a .jsonl or .csv file; write its rows as one of these first."
        )
    table = _read_csv(path) if is_csv(path) else _read_jsonl(path)
    if not table.rows:
        raise DataError(f"{path} has no row to label.")
    return table


def is_csv(path: Path) -> bool:
    """Whether a file is CSV, by its ending."""
    return path.suffix.lower() == ".csv"


def _read_jsonl(path: Path) -> Table:
    lines: list[bytes] = []
    digest = hashlib.sha256()

    def keep(line: bytes) -> None:
        lines.append(line)
        digest.update(line)

    rows = [TableRow(n, values, typed=True) for n, values in read_objects(path, keep)]

    def labelled(labels: Sequence[str]) -> bytes:
        new = list(lines)
        for row, label in zip(rows, labels, strict=True):
            new[row.line - 1] = _with_label(new[row.line - 1], label)
        return b"".join(new)

    return Table(rows, digest.hexdigest(), labelled)


def _with_label(line: bytes, label: str) -> bytes:
    """The bytes of a JSON object with its field `label` set, or put at its end."""
    text = line.decode("utf-8")
    value = json.dumps(label)
    if found := _span_of(LABEL, text):
        start, end = found
        return (text[:start] + value + text[end:]).encode()
    before = text[: text.rindex("}")].rstrip(_SPACE)
    comma = "" if before.endswith("{") else ", "
    return f'{before}{comma}"{LABEL}": {value}{text[len(before) :]}'.encode()


def _span_of(name: str, text: str) -> tuple[int, int] | None:
    """Where the value of an object's own field stands in its strict JSON; None without one."""
    decode = json.JSONDecoder().raw_decode
    at = _past(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        start = _past(text, _past(text, at) + 1)
        _, end = decode(text, start)
        if key == name:
            return start, end
        at = _past(text, end)
        if text[at] == ",":
            at = _past(text, at + 1)
    return None


def _past(text: str, at: int) -> int:
    """The place of the next character that is no space."""
    while text[at] in _SPACE:
        at += 1
    return at


def _read_csv(path: Path) -> Table:
    content = _content(path)
    text = _decoded(path, content)
    lines = list(_records(path, text))
    (_, header), *records = lines or [(1, [])]
    _check_header(path, header)
    rows: list[TableRow] = []
    for line, fields in records:
        if fields and len(fields) != len(header):
            refuse(path, line, f"{len(fields)} fields where the first line names {len(header)}")
        if fields:
            rows.append(TableRow(line, dict(zip(header, fields, strict=True)), typed=False))

    def labelled(labels: Sequence[str]) -> bytes:
        names = header if LABEL in header else [*header, LABEL]
        out = io.StringIO(newline="")
        ends = "\r\n" if text.split("\n", 1)[0].endswith("\r") else "\n"
        writer = csv.writer(out, lineterminator=ends)
        writer.writerow(names)
        for row, label in zip(rows, labels, strict=True):
            values = {**row.values, LABEL: label}
            writer.writerow([values[name] for name in names])
        return out.getvalue().encode()

    return Table(rows, hashlib.sha256(content).hexdigest(), labelled)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give the path of a JSONL or CSV file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        refuse(path, line, f"not UTF-8 (byte {error.start + 1} of the file): save it as UTF-8")


def _records(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """(first line, fields) of every record, the blank ones too."""
    before = csv.field_size_limit(MAX_ROW_BYTES)
    found: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        line = 1
        for fields in reader:
            found.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        refuse(path, reader.line_num, f"broken CSV: {error}")
    finally:
        csv.field_size_limit(before)
    return found


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not header:
        refuse(path, 1, "the first line must name the columns, as in text,score")
    for name in header:
        if not name.strip():
            refuse(path, 1, "a column has no name: name every one")
        if header.count(name) > 1:
            refuse(path, 1, f"the column {shown(name)} is named twice: rename one")
