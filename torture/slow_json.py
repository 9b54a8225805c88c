"""A slow and obvious reader of JSON in lines; see `slow_reader`."""

import json
from typing import Any, NoReturn

BLANK = b" \t\n\r\x0b\x0c"
MOST_DIGITS = 640


class Wrong(Exception):
    """A row, or the file, cannot be used."""


def json_lines(content: bytes, limit: int) -> list[tuple[int, bytes]]:
    """Number and bytes of the lines that are not blank."""
    numbered = enumerate(_lines(content), 1)
    return [(n, line) for n, line in numbered if line.strip(BLANK) or len(line) > limit]


def row_of(line: bytes, limit: int) -> dict[str, Any]:
    """The object that a line of a file holds; Wrong if there is none, or it is too long."""
    if len(line) > limit:
        raise Wrong
    return parsed(line)


def _lines(content: bytes) -> list[bytes]:
    pieces = content.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


class Pairs(list[tuple[str, Any]]):
    """An object of JSON as it stands, keys that stand twice included."""


def parsed(line: bytes) -> dict[str, Any]:
    """One line of JSON; Wrong unless it is one strict object."""
    try:
        value = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=Pairs,
            parse_constant=_no_constant,
            parse_int=_whole_number,
        )
    except (ValueError, RecursionError):
        raise Wrong from None
    if not isinstance(value, Pairs):
        raise Wrong
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Pairs):
            keys = [key for key, _ in one]
            if len(set(keys)) != len(keys):
                raise Wrong
            waiting += [inner for _, inner in one]
        elif isinstance(one, list):
            waiting += one
    return dict(value)


def _no_constant(name: str) -> NoReturn:
    raise Wrong(name)


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Wrong
    return int(digits)
