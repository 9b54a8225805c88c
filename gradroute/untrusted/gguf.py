"""The header of a GGUF file, walked before a library opens it: every count and place in bounds.

A GGUF file is magic, version, counts, then typed key-value pairs, then a table of tensors, then
their data (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Its readers take the counts
as they stand; an untrusted file may hold any.
"""

import mmap
import struct
from pathlib import Path

MAX_ENTRIES = 65_536
"""Pairs, and tensors, of a header; the largest published models have some thousand."""
MAX_NAME = 65_535
"""Bytes of a key, as the format has it."""
MAX_DIMENSIONS = 4

_VERSIONS = (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9
_INTEGERS = {0: "<B", 2: "<H", 4: "<I", 10: "<Q"}  # of those that a count can stand in


class NotGguf(ValueError):
    """What is wrong with a file, in words that follow its name."""


def check_gguf(path: Path) -> str:
    """Walk a file's header; no tensor is read.

    Returns:
        The architecture that it names, such as llama.

    Raises:
        NotGguf: It is no whole GGUF file.
        OSError: It cannot be read.
    """
    if path.stat().st_size < 24:
        raise NotGguf("is too short to be a GGUF file.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _walk(_Cursor(data))


class _Cursor:
    """A place in a file that does not leave it."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def skip(self, count: int) -> int:
        """Go on by so many bytes; where they began."""
        start, end = self.at, self.at + count
        if end > len(self.data):
            raise NotGguf(f"is cut short or damaged: its header leads beyond its end, to {end:,}.")
        self.at = end
        return start

    def number(self, form: str) -> int:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def text(self, longest: int) -> str:
        length = self.number("<Q")
        if length > longest:
            raise NotGguf(f"is damaged: a name in its header is {length:,} bytes long.")
        start = self.skip(length)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotGguf("is damaged: a name in its header is not text.") from error


def _walk(cursor: _Cursor) -> str:
    if cursor.data[: cursor.skip(4) + 4] != b"GGUF":
        raise NotGguf("is not a GGUF file: it does not begin with the letters GGUF.")
    version = cursor.number("<I")
    if version not in _VERSIONS:
        raise NotGguf(f"is of GGUF version {version}; versions 2 and 3 are read, little-endian.")
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    for count, what in ((tensors, "tensors"), (pairs, "keys")):
        if not 0 < count <= MAX_ENTRIES:
            raise NotGguf(f"is damaged: its header counts {count:,} {what}.")
    facts = _pairs(cursor, pairs)
    _tensors(cursor, tensors)
    if int(facts.get("split.count", 0)) > 1:
        raise NotGguf("is one part of several; join them first (llama-gguf-split --merge).")
    if not facts.get("general.architecture"):
        raise NotGguf("does not name its architecture.")
    return str(facts["general.architecture"])


def _pairs(cursor: _Cursor, count: int) -> dict[str, str | int]:
    """The few values that are looked at, every other one skipped."""
    found: dict[str, str | int] = {}
    seen: set[str] = set()
    for _ in range(count):
        key, kind = cursor.text(MAX_NAME), cursor.number("<I")
        if key in seen:
            raise NotGguf(f"is damaged: its key {key[:80]!r} is there twice.")
        seen.add(key)
        if key == "general.architecture" and kind == _TEXT:
            found[key] = cursor.text(64)
        elif key == "split.count" and kind in _INTEGERS:
            found[key] = cursor.number(_INTEGERS[kind])
        else:
            _skip_value(cursor, kind, key)
    return found


def _skip_value(cursor: _Cursor, kind: int, key: str) -> None:
    if kind in _WIDTHS:
        cursor.skip(_WIDTHS[kind])
    elif kind == _TEXT:
        cursor.skip(cursor.number("<Q"))
    elif kind == _ARRAY:
        inner, count = cursor.number("<I"), cursor.number("<Q")
        if inner in _WIDTHS:
            cursor.skip(_WIDTHS[inner] * count)
        elif inner == _TEXT:
            for _ in range(count):
                cursor.skip(cursor.number("<Q"))
        else:
            raise NotGguf(f"is damaged: its key {key[:80]!r} is a list of the kind {inner}.")
    else:
        raise NotGguf(f"is damaged: its key {key[:80]!r} is of the kind {kind}.")


def _tensors(cursor: _Cursor, count: int) -> None:
    """The table of tensors: each a name of its own, few dimensions, and a place in the file."""
    seen: set[str] = set()
    size = len(cursor.data)
    for _ in range(count):
        name, dimensions = cursor.text(MAX_NAME), cursor.number("<I")
        if name in seen or not 0 < dimensions <= MAX_DIMENSIONS:
            raise NotGguf(f"is damaged: its tensor {name[:80]!r} is there twice or has no shape.")
        seen.add(name)
        elements = 1
        for _ in range(dimensions):
            elements *= cursor.number("<Q")
        cursor.skip(4)  # how it is packed: the library knows its kinds
        # No kind takes less than a bit for a number.
        if cursor.number("<Q") >= size or not 0 < elements <= 8 * size:
            raise NotGguf(f"is cut short or damaged: its tensor {name[:80]!r} lies beyond its end.")
