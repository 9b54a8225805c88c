"""Reading and writing the files of a run: whole files atomically, JSON lines one by one.

A JSON file has no word for NaN or infinity, and strict readers refuse the words that Python
writes for them: here they are written as null, and a null is read back as None ("not known").
"""

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradroute.errors import DataError, MachineError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically and durably; its folder is made if needed.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed over the old one; then the folder is flushed. After a crash at any moment the path holds
    the old bytes or the new ones. (A killed process may leave a `.tmp-*` file beside it.)

    Raises:
        MachineError: the disk refuses; an older file is then still whole.
    """
    temporary = path.parent / f".tmp-{path.name[:100]}-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile.mkstemp: its files are private to the user even where the umask says not.
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise MachineError(_refusal(path, error, len(content))) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, see `write_bytes`."""
    # Lone surrogates cannot be UTF-8; as the escape that JSON has for them, nothing is lost.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, see `write_bytes`; the same value gives the same bytes.

    Args:
        path: the file.
        value: mappings with text keys, lists, tuples, texts, numbers, booleans and None.

    Raises:
        TypeError: the value holds anything else.
        MachineError: the disk refuses.
    """
    text = json.dumps(_strict(value, "$"), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file as a whole, see `write_bytes`."""
    write_text(path, "".join(_line(row) for row in rows))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON-lines file.

    Raises:
        MachineError: the disk refuses.
    """
    line = _line(row).encode("utf-8", errors="backslashreplace")
    try:
        with path.open("ab") as file:
            file.write(line)
    except OSError as error:
        raise MachineError(_refusal(path, error, len(line))) from error


def read_json(path: Path) -> Any:
    """A JSON file that gradroute wrote.

    Raises:
        DataError: there is none, it cannot be read, or it is damaged.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: run the command that makes it first") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({error}): delete it and run the command that makes it again"
        ) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file that gradroute wrote; none where there is no file.

    Raises:
        DataError: a line is damaged.
    """
    if path.is_file():
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is damaged ({error}).") from error


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, through to the disk."""
    if path.is_dir() and os.name != "posix":  # folders cannot be opened elsewhere
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_strict(row, "$"), ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: Any, where: str) -> Any:
    """A copy that every JSON reader reads; `where` names the place in errors."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: a JSON key must be text, got {key!r}")
        return {key: _strict(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    raise TypeError(f"{where}: {type(value).__name__} cannot be written as JSON")


def _refusal(path: Path, error: OSError, size: int) -> str:
    return f"{path} cannot be written: {error.strerror or error} ({size} bytes needed)"
