"""Rows of a file by its ending: JSONL, CSV or Parquet."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from os import fspath
from typing import Any

from gradroute.data.csv import BadRow, read_csv
from gradroute.data.jsonl import FilePath, read_objects
from gradroute.data.labeling_tools import says_more
from gradroute.data.parquet import read_parquet
from gradroute.errors import DataError

FORMATS = (".jsonl", ".csv", ".parquet")
"""The endings of the files that are read; a local file with any other is read as JSONL."""

# How much of a label in the bytes of a row may hang over the end of a piece.
_OVERHANG = 128


def read_table(
    path: FilePath,
    digest: Callable[[bytes], None],
    max_row_bytes: int,
    columns: Collection[str],
    json_columns: Collection[str],
    label_columns: Collection[str],
    on_bad_row: BadRow | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, column -> value) for every row; the line of a Parquet file is its row, from 1.

    Args:
        path: The file.
        digest: Is given every byte of the file.
        max_row_bytes: A longer row of text is refused.
        columns: The columns that are read; of others only the names matter.
        json_columns: Columns whose cells in a CSV file are values in JSON.
        label_columns: Columns that `on_bad_row` is to know about.
        on_bad_row: Is given line, error, and which of these columns an unreadable row seems to
            have a value in; the row is then passed over. None raises the error.

    Raises:
        DataError: The file cannot be read, or (without `on_bad_row`) a row of it.
        MachineError: The library for the format is not installed.
    """
    ending = fspath(path).lower()
    if ending.endswith(".parquet"):
        return read_parquet(path, digest, columns, max_row_bytes, on_bad_row, says_more)
    if ending.endswith(".csv"):
        return read_csv(path, digest, max_row_bytes, on_bad_row, json_columns)
    if on_bad_row is None:
        return read_objects(path, digest, max_row_bytes)
    report = on_bad_row

    def note(line: int, error: DataError, pieces: Iterator[bytes]) -> None:
        report(line, error, _names_in(pieces, label_columns))

    return read_objects(path, digest, max_row_bytes, note)


def _names_in(pieces: Iterable[bytes], names: Collection[str]) -> Iterator[str]:
    """The names that stand before a colon and a value other than null, in the bytes of a row."""
    listed = b"|".join(re.escape(name.encode()) for name in names)
    pattern = re.compile(rb'"(' + listed + rb')"\s*:\s*[^\sn]')
    before = b""
    for piece in pieces:
        for name in pattern.findall(before + piece):
            yield name.decode()
        before = piece[-_OVERHANG:]
