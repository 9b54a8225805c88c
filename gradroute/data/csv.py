"""A strict reader of CSV files (RFC 4180): a header, then one row of texts after another.

No type is guessed: every cell is the text in it, and an empty one is missing. Python's own reader,
also with strict=True, takes a quote inside of a cell without quotes for a letter, accepts rows of
any length, and does not say on which line of a row its error is.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO, NoReturn

from gradroute.data.jsonl import (
    MAX_ROW_BYTES,
    FilePath,
    open_file,
    read_line,
    refuse,
    refuse_other_formats,
    show,
    strict_json,
)
from gradroute.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A cell and what ends it. In quotes anything may stand, a quote itself twice.
_CELL = re.compile(rb'(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n]*))(,|\r?\n|\Z)')
_OPEN = re.compile(rb'"[^"]*(?:""[^"]*)*')

BadRow = Callable[[int, DataError, Iterable[str]], None]
"""Is given line number and error of a row, and the names of the columns that it has values in."""


def read_csv(
    path: FilePath,
    digest: Callable[[bytes], None],
    max_row_bytes: int = MAX_ROW_BYTES,
    on_bad_row: BadRow | None = None,
    json_columns: Collection[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of its first line, column -> text or None) for every row after the header.

    UTF-8 with or without byte-order mark; blank lines are passed over. Every row has as many cells
    as the header, with commas between them.

    Args:
        path: The file.
        digest: Is given every byte of the file, such as `hashlib.sha256().update`.
        max_row_bytes: A longer row is refused.
        on_bad_row: Called for a row that has another length, is too long or not UTF-8, which is
            then passed over; None raises the error.
        json_columns: Columns whose cells are values in JSON, such as `[[0, 5, "bad"]]`; a cell that
            is none stays a text.

    Raises:
        DataError: The file cannot be read, its header or its quoting is broken (nobody knows where
            such a row ends), or (without `on_bad_row`) a row cannot be used.
    """
    header: list[str] | None = None
    with open_file(path) as stream:
        for line, raw in _records(path, stream, digest, max_row_bytes):
            cells = None if raw is None else _cells(path, line, raw)
            if header is None:
                header = _header(path, line, cells, max_row_bytes)
                continue
            try:
                row = _row(path, line, header, cells, max_row_bytes)
            except DataError as error:
                if on_bad_row is None:
                    raise
                # Of a row that is too long nothing is known; it may have everything.
                pairs = zip(header, header if cells is None else cells, strict=False)
                on_bad_row(line, error, [name for name, cell in pairs if cell])
            else:
                for name in row.keys() & set(json_columns):
                    row[name] = _from_json(row[name])
                yield line, row


def _records(
    path: FilePath, stream: BinaryIO, digest: Callable[[bytes], None], max_row_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """First line and bytes (None: too long) of the rows that are not blank.

    A row ends where a line does and no quote is open.
    """
    number, first, open_quote, raw = 0, 1, False, b""
    too_long, at_start, whole_line = False, True, True
    while piece := read_line(path, stream, max_row_bytes):
        number += whole_line
        whole_line = piece.endswith(b"\n")
        digest(piece)
        if at_start:
            refuse_other_formats(path, piece)
            piece, at_start = piece.removeprefix(_BYTE_ORDER_MARK), False
        if not raw and not too_long:
            first = number
        open_quote ^= piece.count(b'"') % 2 == 1
        too_long |= len(raw) + len(piece) > max_row_bytes
        raw = b"" if too_long else raw + piece
        if open_quote or not whole_line:
            continue
        if too_long or raw.strip():
            yield first, None if too_long else raw
        raw, too_long = b"", False
    if open_quote and too_long:
        refuse(
            path, first, "a quote that opens in this row is never closed: close it, or double it"
        )
    if too_long or raw.strip():
        yield first, None if too_long else raw


def _cells(path: FilePath, line: int, raw: bytes) -> list[bytes]:
    cells: list[bytes] = []
    at, more = 0, True
    while more:
        found = _CELL.match(raw, at)
        if found is None:
            _refuse_quoting(path, line + raw.count(b"\n", 0, at), raw[at:])
        quoted, plain, end = found.groups()
        cells.append(plain if quoted is None else quoted.replace(b'""', b'"'))
        at, more = found.end(), end == b","
    return cells


def _refuse_quoting(path: FilePath, line: int, rest: bytes) -> NoReturn:
    start = show(rest[:30].decode("utf-8", "replace"))
    if _OPEN.fullmatch(rest):
        refuse(path, line, f"a quote opens before {start} and is never closed: close or double it")
    if re.match(rb'[^",\n]*\r', rest):
        refuse(path, line, f"a carriage return outside of quotes in the cell {start}: remove it")
    refuse(
        path,
        line,
        f"broken quoting in the cell {start}: quotes stand around a whole cell, and a quote inside "
        "of one is doubled",
    )


def _header(path: FilePath, line: int, cells: list[bytes] | None, max_row_bytes: int) -> list[str]:
    if cells is None:
        refuse(path, line, f"the header is longer than {max_row_bytes} bytes: shorten it")
    try:
        names = [cell.decode("utf-8") for cell in cells]
    except UnicodeDecodeError:
        refuse(path, line, "the header is not UTF-8: save the file as UTF-8")
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
        refuse(path, line, f"one column, {show(names[0])}: commas are needed, not {other[0]!r}")
    for at, name in enumerate(names):
        if not name.strip():
            refuse(path, line, f"column {at + 1} of the header has no name")
        if name in names[:at]:
            refuse(path, line, f"the column {show(name)} stands twice in the header")
    return names


def _row(
    path: FilePath, line: int, header: list[str], cells: list[bytes] | None, max_row_bytes: int
) -> dict[str, Any]:
    if cells is None:
        refuse(path, line, f"the row is longer than {max_row_bytes} bytes: shorten it")
    if len(cells) != len(header):
        refuse(
            path,
            line,
            f"{len(cells)} cells, but the header has {len(header)}: put cells with commas in them "
            "into quotes",
        )
    try:
        texts = [cell.decode("utf-8") or None for cell in cells]
    except UnicodeDecodeError:
        refuse(path, line, "not UTF-8: save the file as UTF-8")
    return dict(zip(header, texts, strict=True))


def _from_json(cell: str | None) -> Any:
    try:
        return None if cell is None else strict_json(cell)
    except (ValueError, RecursionError):
        return cell
