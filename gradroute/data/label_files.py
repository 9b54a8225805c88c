"""Files of rows that get a label and otherwise stay unchanged: JSONL byte by byte, CSV as fields.

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

from gradroute.data.csv import read_csv
from gradroute.data.jsonl import read_objects
from gradroute.errors import ConfigError, DataError

LABEL = "label"
"""The field that a label is written to."""

_SPACE = " \t\n\r"  # of JSON


class TableRow(NamedTuple):
    """One row of a file.

    Attributes:
        line: Where it begins, from 1.
        values: Its fields; None is one that is null or, in a CSV file, empty.
        typed: Whether a number is a number; in a CSV file everything is a text.
    """

    line: int
    values: dict[str, Any]
    typed: bool


class Table(NamedTuple):
    """A file of rows.

    Attributes:
        rows: At least one, in order.
        sha256: Of the file's bytes.
        with_labels: Gives the file's bytes with a label for each row.
    """

    rows: list[TableRow]
    sha256: str
    with_labels: Callable[[Sequence[str]], bytes]


def read_table(path: Path) -> Table:
    """Read a file of rows: CSV by its ending, else JSONL.

    Raises:
        ConfigError: The ending is that of another format.
        DataError: The file cannot be read or has no row; the message names file and line.
    """
    if path.suffix in (".parquet", ".arrow", ".json", ".xlsx", ".tsv", ".gz"):
        raise ConfigError(
            f"{path} cannot be labeled: write its rows as a .jsonl or .csv file first."
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

    def labeled(labels: Sequence[str]) -> bytes:
        new = list(lines)
        for row, label in zip(rows, labels, strict=True):
            new[row.line - 1] = _with_label(new[row.line - 1], label)
        return b"".join(new)

    return Table(rows, digest.hexdigest(), labeled)


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
    first: list[bytes] = []
    digest = hashlib.sha256()

    def keep(piece: bytes) -> None:
        first.extend([] if first else [piece])
        digest.update(piece)

    rows = [TableRow(line, values, typed=False) for line, values in read_csv(path, keep)]

    def labeled(labels: Sequence[str]) -> bytes:
        header = list(rows[0].values)
        names = header if LABEL in header else [*header, LABEL]
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\r\n" if first[0].endswith(b"\r\n") else "\n")
        writer.writerow(names)
        for row, label in zip(rows, labels, strict=True):
            values = {**row.values, LABEL: label}
            writer.writerow([values[name] for name in names])  # None is written as an empty cell
        return out.getvalue().encode()

    return Table(rows, digest.hexdigest(), labeled)
