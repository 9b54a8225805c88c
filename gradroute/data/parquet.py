"""A reader of Parquet files, for which no type is guessed or turned into another.

Only columns that are asked for are read, and only if their type is one that JSON has too: a date
or a decimal is refused by name, never written out as some text. A value of Parquet's own JSON type
(`datasets` 5 writes columns of rows that differ in form so) is decoded: it is what its text says.
Every object of a struct column has every key of the column, with null where its row had none. Such
a key is left out, or a tool call would be written with the arguments of other rows.
"""

import json
import struct
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.data.csv import BadRow
from gradroute.data.jsonl import MAX_ROW_BYTES, FilePath, open_file, refuse, show, strict_json
from gradroute.errors import DataError, MachineError
from gradroute.system.terminal import first_line

if TYPE_CHECKING:
    import pyarrow

_MAGIC = b"PAR1"
JSON_TYPE = "arrow.json"
"""Arrow's name of the type of texts that are JSON."""
_BATCH = 256
"""Rows that are in memory at a time."""
MAX_FOOTER = 64 * 2**20
"""Bytes of the description at a file's end; that of a thousand columns has about one million."""
MAX_GROUP = 2**33
"""Bytes of a row group, unpacked, as the file itself states them."""


def read_parquet(
    path: FilePath,
    digest: Callable[[bytes], None],
    wanted: Collection[str],
    max_row_bytes: int = MAX_ROW_BYTES,
    on_bad_row: BadRow | None = None,
    accepts: Callable[[str], bool] = lambda _: False,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the row from 1, column -> value) for every row.

    Args:
        path: The file.
        digest: Is given every byte of the file before its first row is read.
        wanted: The columns that are read; any other is None in every row.
        max_row_bytes: A longer text of the JSON type is not decoded.
        on_bad_row: Called for a row that cannot be decoded and is passed over; None raises.
        accepts: Says of further columns whether they are read, if their types allow it.

    Raises:
        DataError: The file is no whole Parquet file, a wanted column has a type that JSON lacks,
            or (without `on_bad_row`) a row cannot be decoded; with the row, 1 for the whole file.
        MachineError: pyarrow is not installed.
    """
    _check_ends(path, digest)
    parquet = _pyarrow_parquet()
    import pyarrow

    try:
        file = parquet.ParquetFile(
            Path(path),
            thrift_string_size_limit=MAX_FOOTER,
            thrift_container_size_limit=1_000_000,
            arrow_extensions_enabled=True,  # else JSON reads as text where no Arrow schema is kept
        )
        schema = file.schema_arrow
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        refuse(path, 1, f"not a complete Parquet file ({first_line(error)})")
    _check_schema(path, schema, wanted)
    _check_groups(path, file)
    decoders = {
        field.name: _decoder(field, max_row_bytes)
        for field in schema
        if field.name in wanted or (accepts(field.name) and not _not_json(field.type))
    }
    others, number = dict.fromkeys(name for name in schema.names if name not in decoders), 0
    try:
        for batch in file.iter_batches(_BATCH, columns=[*decoders]):
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for at in range(batch.num_rows):
                number += 1
                row = {name: values[at] for name, values in columns.items()}
                try:
                    row = {name: _decoded(name, one, decoders[name]) for name, one in row.items()}
                except ValueError as error:
                    filled = [name for name, one in row.items() if one is not None]
                    _report(path, number, error, filled, on_bad_row)
                else:
                    yield number, others | row
    except (OSError, pyarrow.ArrowException) as error:
        refuse(path, number + 1, f"the file is damaged ({first_line(error)})")


def _report(
    path: FilePath,
    number: int,
    error: ValueError,
    filled: Collection[str],
    on_bad_row: BadRow | None,
) -> None:
    try:
        refuse(path, number, str(error))
    except DataError as refused:
        if on_bad_row is None:
            raise
        on_bad_row(number, refused, filled)


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MachineError(
            "Parquet files are read by pyarrow, which is not installed: "
            "pip install 'gradroute[data]', or save the file as JSONL."
        ) from None
    return parquet


def _check_ends(path: FilePath, digest: Callable[[bytes], None]) -> None:
    """See that the file is Parquet from end to end before a library opens it."""
    start, end, size = b"", b"", 0
    with open_file(path) as stream:
        try:
            while block := stream.read(1 << 20):
                digest(block)
                start, end, size = start or block[:4], (end + block)[-8:], size + len(block)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if start != _MAGIC:
        refuse(path, 1, f"not Parquet: it begins with {start!r}, not with {_MAGIC!r}")
    if size < 12 or end[4:] != _MAGIC:
        refuse(path, 1, "the file is cut off: its end is not that of a Parquet file")
    (footer,) = struct.unpack("<I", end[:4])
    if footer > min(size - 12, MAX_FOOTER):
        refuse(path, 1, f"the description at the file's end claims to have {footer:,} bytes")


def _check_schema(path: FilePath, schema: "pyarrow.Schema", wanted: Collection[str]) -> None:
    for at, name in enumerate(schema.names):
        if name in schema.names[:at]:
            refuse(path, 1, f"the column {show(name)} appears twice")
    for field in schema:
        if field.name in wanted and (other := _not_json(field.type)):
            refuse(
                path,
                1,
                f"the column {show(field.name)} has the type {other}; texts, whole numbers, "
                "numbers, booleans, and lists and structs of them are read: convert it (a date is "
                "never turned into a text)",
            )


def _not_json(kind: "pyarrow.DataType") -> str:
    """The type, or the first type inside of it, that JSON does not have; empty if there is none."""
    from pyarrow import types

    if _is_json(kind):
        return ""
    if types.is_dictionary(kind) or _is_list(kind):
        return _not_json(kind.value_type)
    if types.is_struct(kind):
        inner = (_not_json(kind.field(at).type) for at in range(kind.num_fields))
        return next((other for other in inner if other), "")
    number = types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    known = _is_text(kind) or number or types.is_boolean(kind) or types.is_null(kind)
    return "" if known else str(kind)


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    some = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(fits(kind) for fits in (*some, types.is_list_view, types.is_large_list_view))


def _is_json(kind: "pyarrow.DataType") -> bool:
    """Whether a type is Arrow's JSON: a text that stands for a value."""
    import pyarrow

    return isinstance(kind, pyarrow.BaseExtensionType) and kind.extension_name == JSON_TYPE


def _decoder(field: "pyarrow.Field", max_bytes: int) -> Callable[[Any], Any] | None:
    """What turns a value of a column into what its row said; None where it is that already."""
    import pyarrow
    from pyarrow import types

    kind = field.type
    named = (field.metadata or {}).get(b"ARROW:extension:name")  # by a pyarrow that lacks the type
    if _is_json(kind) or (named == JSON_TYPE.encode() and _is_text(kind)):
        return partial(_from_json, max_bytes=max_bytes)
    if types.is_dictionary(kind):
        return _decoder(pyarrow.field(field.name, kind.value_type), max_bytes)
    if _is_list(kind):
        inner = _decoder(kind.value_field, max_bytes)
        return None if inner is None else lambda values: [_maybe(one, inner) for one in values]
    if types.is_struct(kind):
        fields = [kind.field(at) for at in range(kind.num_fields)]
        found = {one.name: _decoder(one, max_bytes) for one in fields}
        return lambda value: {
            key: _maybe(one, found[key]) for key, one in value.items() if one is not None
        }
    return None


def _maybe(value: Any, decode: Callable[[Any], Any] | None) -> Any:
    return value if value is None or decode is None else decode(value)


def _from_json(text: str, max_bytes: int) -> Any:
    """The value that a text of the JSON type stands for.

    Raises:
        ValueError: It is no strict JSON, or too long.
    """
    if len(text) > max_bytes:
        raise ValueError(f"has JSON of more than {max_bytes} characters: shorten it")
    try:
        return strict_json(text)
    except RecursionError:
        raise ValueError("has JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"has broken JSON: {error.msg} (character {error.colno})") from None


def _decoded(name: str, value: Any, decode: Callable[[Any], Any] | None) -> Any:
    try:
        return _maybe(value, decode)
    except ValueError as error:
        raise ValueError(f"the column {show(name)}: {error}") from None


def _check_groups(path: FilePath, file: Any) -> None:
    for at in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(at).total_byte_size
        if size > MAX_GROUP:
            refuse(path, 1, f"row group {at} has {size:,} bytes: write smaller row groups")


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(column[at]) for at in range(len(column))]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # what no text may hold, so that its row is refused
