"""A strict reader of JSONL files: one JSON object per line, or an error with file and line.

Python's own json lets NaN, keys that stand twice and (with a RecursionError) bottomless nesting
pass; a line that is cut, not UTF-8 or endless needs a sentence of its own.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from gradroute.errors import DataError

MAX_ROW_BYTES = 16 * 2**20
"""A longer row is refused before all of it is read into memory."""

_MAX_DIGITS = 640  # of a whole number: what every Python reads, however it was set up
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

FilePath = str | PathLike[str]
"""A file of examples; its text is what messages call it."""
BadRow = Callable[[int, DataError, Iterator[bytes]], None]
"""Is given line number and error of a row that cannot be read, and its bytes in pieces."""


def read_objects(
    path: FilePath,
    digest: Callable[[bytes], None],
    max_row_bytes: int = MAX_ROW_BYTES,
    on_bad_row: BadRow | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Yield (line number, object) for every line that is not blank.

    UTF-8 with or without byte-order mark. Only \n ends a line, so \r\n is fine and U+2028 may stand
    in a text.

    Args:
        path: The file.
        digest: Is given every byte of the file, such as `hashlib.sha256().update`.
        max_row_bytes: A longer line is refused.
        on_bad_row: Called for a line that is not one object of strict JSON, which is then passed
            over; None raises the error.

    Raises:
        DataError: If the file cannot be read, is of another format, such as one JSON array, or
            (without `on_bad_row`) a line is not one object of strict JSON.
    """
    with open_file(path) as stream:
        number, begun = 0, False
        while raw := read_line(path, stream, max_row_bytes):
            number += 1
            digest(raw)
            if number == 1:
                refuse_other_formats(path, raw)
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            if not raw.strip() and len(raw) <= max_row_bytes:
                continue
            if not begun:
                _refuse_whole_json(path, number, raw)
            begun = True
            try:
                row = _parse(path, number, raw, max_row_bytes)
            except DataError as error:
                if on_bad_row is None:
                    raise
                pieces = _pieces(path, stream, raw, digest, max_row_bytes)
                on_bad_row(number, error, pieces)
                for _ in pieces:  # whatever was not asked for
                    pass
            else:
                yield number, row


def refuse(path: FilePath, line: int, what: str) -> NoReturn:
    """Raise the DataError about a line of a file."""
    raise DataError(f"{path}:{line}: {what}")


def show(value: object) -> str:
    """Name a value from a file in an error: short, on one line, without control characters."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 40 else value[:40] + "...")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value!r:.40}"
    return "a list" if isinstance(value, list) else "an object"


def open_file(path: FilePath) -> BinaryIO:
    """Open a file of examples to read its bytes.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give the path of a JSONL file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder: give the JSONL file in it") from None
    except PermissionError:
        raise DataError(f"{path} may not be read by this user: change its permissions") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_line(path: FilePath, stream: BinaryIO, max_row_bytes: int) -> bytes:
    """The next line, or so much of it that it is seen to be too long.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return stream.readline(max_row_bytes + 4)  # a byte-order mark, and one byte too many
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _pieces(
    path: FilePath,
    stream: BinaryIO,
    raw: bytes,
    digest: Callable[[bytes], None],
    max_row_bytes: int,
) -> Iterator[bytes]:
    """The bytes of a line; of one that is too long, piece by piece to its end."""
    yield raw
    while not raw.endswith(b"\n") and (raw := read_line(path, stream, max_row_bytes)):
        digest(raw)
        yield raw


def refuse_other_formats(path: FilePath, raw: bytes) -> None:
    """Refuse a file whose first bytes are those of no text in UTF-8.

    Raises:
        DataError: It is compressed, UTF-16 or Parquet under another name.
    """
    if raw.startswith(b"\x1f\x8b"):
        refuse(path, 1, "the file is compressed with gzip: unpack it first (gunzip)")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        refuse(path, 1, "not UTF-8 but UTF-16 (byte 1): save the file as UTF-8")
    if raw.startswith(b"PAR1"):
        refuse(path, 1, "the file is Parquet: give it a name that ends in .parquet")


def _refuse_whole_json(path: FilePath, number: int, raw: bytes) -> None:
    """Refuse a file that is one value in JSON rather than lines, by the first line in it.

    Raises:
        DataError: It begins an array of objects, or an object that goes on in the next line.
    """
    start = raw.strip()
    into = "rows.jsonl, and give that file"
    if re.match(rb"\[\s*(\{|$)", start):
        refuse(
            path,
            number,
            "a JSON array, not JSONL, which has one object per line: write it as lines with "
            "python -c 'import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]'"
            f" < {_named(path)} > {into}",
        )
    if start.startswith(b"{") and raw.endswith(b"\n") and start.endswith((b"{", b"[")):
        refuse(
            path,
            number,
            "a JSON object over several lines, not JSONL, which has one object per line: write "
            f"each object on one line with jq -c . {_named(path)} > {into}",
        )


def _named(path: FilePath) -> str:
    """The name of a file as a shell reads it."""
    return shlex.quote(Path(str(path)).name)


def _parse(path: FilePath, number: int, raw: bytes, max_row_bytes: int) -> dict[str, Any]:
    if len(raw) > max_row_bytes:
        refuse(path, number, f"the row is longer than {max_row_bytes} bytes: shorten it")
    if raw.startswith(_BYTE_ORDER_MARK):
        refuse(path, number, "a byte-order mark inside the file: remove it")
    hint = "" if raw.endswith(b"\n") else "; the file has no newline at its end and may be cut off"
    try:
        value = strict_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        refuse(path, number, f"not UTF-8 (byte {error.start + 1} of the line){hint}")
    except json.JSONDecodeError as error:
        fault = error.msg.removesuffix(" at").removesuffix(" starting")  # where follows in words
        refuse(path, number, f"broken JSON: {fault} (column {error.colno}){hint}")
    except RecursionError:
        refuse(path, number, "the row is nested too deeply")
    except ValueError as error:
        refuse(path, number, str(error))
    if not isinstance(value, dict):
        refuse(path, number, f"expected an object, got {show(value)}")
    return value


def strict_json(text: str) -> Any:
    """The value of a text in JSON, without NaN, keys that stand twice and endless numbers.

    Raises:
        ValueError: It is not strict JSON.
        RecursionError: It is nested too deeply.
    """
    return json.loads(
        text,
        parse_constant=_refuse_constant,
        parse_int=_whole_number,
        object_pairs_hook=_refuse_repeated_keys,
    )


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON: write a number or null")


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too long: write it as a text")
    return int(digits)


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        [(name, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {show(name)} appears twice in one object")
    return row
