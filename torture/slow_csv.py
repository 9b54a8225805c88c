"""A slow and obvious reader of CSV, letter by letter; see `slow_reader`."""

from typing import Any

from torture.slow_json import Wrong, parsed

IN_JSON = ("weight", "spans", "messages")


class Broken(Exception):
    """Nobody knows where the rows of this file end, or what its columns are."""

    def __init__(self, line: int):
        super().__init__(line)
        self.line = line


def lines_of(content: bytes, limit: int) -> tuple[list[tuple[int, dict[Any, Any]]], int]:
    """Line and values of the rows after the header; a row that is wrong has a key None too.

    Returns:
        The rows, and the line of what is broken behind them; 0 where nothing is.
    """
    header: list[str] | None = None
    rows: list[tuple[int, dict[Any, Any]]] = []
    given, broken = _records(content, limit)
    for line, size, cells in given:
        if header is None:
            header = _header(line, cells, size > limit)
            continue
        values: dict[Any, Any] = {
            name: cell.decode("utf-8", "replace") or None
            for name, cell in zip(header, cells, strict=False)
        }
        if size > limit:
            values = dict.fromkeys([*header, None], "something")
        elif len(cells) != len(header) or not all(map(_is_utf8, cells)):
            values[None] = None
        else:
            values = {name: _value(name, cell) for name, cell in values.items()}
        rows.append((line, values))
    return rows, broken


def _header(line: int, cells: list[bytes], too_long: bool) -> list[str]:
    names = [cell.decode("utf-8", "replace") for cell in cells]
    wrong = too_long or not all(map(_is_utf8, cells)) or len(set(names)) < len(names)
    other = len(names) == 1 and set(names[0]) & set(";\t|")
    if wrong or other or not all(name.strip() for name in names):
        raise Broken(line)
    return names


def _records(content: bytes, limit: int) -> tuple[list[tuple[int, int, list[bytes]]], int]:
    """(first line, bytes, cells) of the rows that are not blank; the broken line, or 0."""
    records: list[tuple[int, int, list[bytes]]] = []
    at, line = 0, 1
    while at < len(content):
        start, first = at, line
        end = content.find(b"\n", at) + 1 or len(content)
        if not content[at:end].strip() and end - at <= limit:
            at, line = end, line + 1
            continue
        cells: list[bytes] = []
        while True:
            cell, here = bytearray(), line
            if content[at : at + 1] == b'"':
                at += 1
                while True:
                    if at >= len(content):
                        return records, here
                    if content[at] == 34:
                        if content[at + 1 : at + 2] != b'"':
                            break
                        at += 1
                    line += content[at] == 10
                    cell.append(content[at])
                    at += 1
                at += 1
            else:
                while at < len(content) and content[at] not in b',"\r\n':
                    cell.append(content[at])
                    at += 1
            cells.append(bytes(cell))
            if content[at : at + 1] == b",":
                at += 1
                continue
            if content[at : at + 2] == b"\r\n":
                at += 1
            elif at < len(content) and content[at] != 10:
                return records, here
            break
        at, line = at + 1, line + 1
        records.append((first, min(at, len(content)) - start, cells))
    return records, 0


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _value(name: Any, cell: Any) -> Any:
    """The value in JSON of some columns, where it is strict JSON; else the text."""
    if cell is None or name not in IN_JSON:
        return cell
    try:
        [(_, value)] = parsed(b'{"value": ' + cell.encode() + b"}").items()
    except (Wrong, ValueError):
        return cell
    return value
