"""A reader of Parquet files, for which no type is guessed or turned into another.

Only columns that are asked for are read, and only if their type is one that JSON has too: a date
or a decimal is refused by name, never written out as some text.
"""

import struct
from collections.abc import Callable, Collection, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.data.jsonl import open_file, refuse, shown
from gradroute.errors import DataError, MachineError

if TYPE_CHECKING:
    import pyarrow

_MAGIC = b"PAR1"
_BATCH = 256
"""Rows that are in memory at a time."""
MAX_FOOTER = 64 * 2**20
"""Bytes of the description at a file's end; that of a thousand columns has about one million."""
MAX_GROUP = 2**33
"""Bytes of a row group, unpacked, as the file itself states them."""


def read_parquet(
    path: str | PathLike[str],
    digest: Callable[[bytes], None],
    wanted: Collection[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the row from 1, column -> value) for every row.

    Args:
        path: The file.
        digest: Is given every byte of the file before its first row is read.
        wanted: The columns that are read; any other is None in every row.

    Raises:
        DataError: The file is no whole Parquet file, or a wanted column has a type that JSON does
            not have. The message names the row, 1 for the file as a whole.
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
            arrow_extensions_enabled=False,
        )
        schema = file.schema_arrow
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        refuse(path, 1, f"no whole Parquet file ({_first_line(error)})")
    names = list(schema.names)
    _check_schema(path, schema, wanted)
    _check_groups(path, file)
    others = dict.fromkeys(name for name in names if name not in wanted)
    number = 0
    try:
        batches = file.iter_batches(_BATCH, columns=[name for name in names if name in wanted])
        for batch in batches:
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for at in range(batch.num_rows):
                number += 1
                row = {name: values[at] for name, values in columns.items()}
                yield number, others | row
    except (OSError, pyarrow.ArrowException) as error:
        refuse(path, number + 1, f"the file is damaged ({_first_line(error)})")


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MachineError(
            "Parquet files are read by pyarrow, which is not installed: "
            "pip install 'gradroute[data]', or save the file as JSONL."
        ) from None
    return parquet


def _check_ends(path: str | PathLike[str], digest: Callable[[bytes], None]) -> None:
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
        refuse(path, 1, f"the description at the file's end is said to have {footer:,} bytes")


def _check_schema(
    path: str | PathLike[str], schema: "pyarrow.Schema", wanted: Collection[str]
) -> None:
    for at, name in enumerate(schema.names):
        if name in schema.names[:at]:
            refuse(path, 1, f"the column {shown(name)} stands twice")
    for field in schema:
        if field.name in wanted and (other := _not_json(field.type)):
            refuse(
                path,
                1,
                f"the column {shown(field.name)} has the type {other}; texts, whole numbers, "
                "numbers, booleans, and lists and structs of them are read: convert it (a date is "
                "never turned into a text)",
            )


def _not_json(kind: "pyarrow.DataType") -> str:
    """The type, or the first type inside of it, that JSON does not have; empty if there is none."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _not_json(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return _not_json(kind.value_type)
    if types.is_struct(kind):
        inner = (_not_json(kind.field(at).type) for at in range(kind.num_fields))
        return next((other for other in inner if other), "")
    text = types.is_string(kind) or types.is_large_string(kind)
    number = types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    return "" if text or number or types.is_boolean(kind) or types.is_null(kind) else str(kind)


def _check_groups(path: str | PathLike[str], file: Any) -> None:
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
