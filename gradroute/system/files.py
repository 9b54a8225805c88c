"""Reading and writing the files of a run: files and folders atomically, JSON lines one by one.

What is not finished is called `.tmp-*`: rubbish once its writer is gone.

A JSON file has no word for NaN or infinity, and strict readers refuse the words that Python
writes for them: here they are written as null, and a null is read back as None ("not known").
"""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradroute.errors import DataError, MachineError

UNFINISHED = ".tmp-"
"""How the names of files and folders begin that are being written."""

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""The flag that opens no link; Windows has none, and makes links for administrators only."""

_REPLACED = f"{UNFINISHED}was-"  # a folder that another one is about to replace
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically and durably; its folder is made if needed.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed over the old one; then the folder is flushed. After a crash at any moment the path holds
    the old bytes or the new ones. (A killed process may leave a `.tmp-*` file beside it.)

    Raises:
        MachineError: the disk refuses; an older file is then still whole.
    """
    temporary = path.parent / f"{UNFINISHED}{path.name[:100]}-{secrets.token_hex(8)}"
    try:
        make_folder(path.parent)
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
        raise MachineError(f"{write_failure(path, error, len(content))}.") from error


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


def append_line(path: Path, row: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append one row to a JSON-lines file, whole or not at all; a link is not followed.

    A last line that is cut, of a writer that was killed, is removed first.

    Args:
        path: the file; its folder must be there.
        row: what `write_json` takes.
        durable: force it through to the disk.

    Raises:
        MachineError: the disk refuses.
    """
    line = _line(row).encode("utf-8", errors="backslashreplace")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
        try:
            end = _drop_partial_line(handle)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                if durable:
                    os.fsync(handle)
            except OSError:
                os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise MachineError(f"{write_failure(path, error, len(line))}.") from error


def _drop_partial_line(handle: int) -> int:
    """Cut a file behind its last line break; its size then."""
    size = end = os.fstat(handle).st_size
    while end:
        start = max(0, end - 4096)
        os.lseek(handle, start, os.SEEK_SET)
        at = os.read(handle, end - start).rfind(b"\n")
        end = start + at + 1
        if at >= 0:
            break
    if end < size:
        os.ftruncate(handle, end)
    return end


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """A JSON file that gradroute wrote.

    Raises:
        DataError: there is none, it cannot be read, or it is damaged.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant)
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

    A last line without its line break was cut by a kill or a full disk, and does not count.

    Raises:
        DataError: the file cannot be read, or a line is damaged.
    """
    if not path.is_file():
        return
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number} is damaged ({error}). Put the file back from a copy, or delete "
                f"this line if its contents are dispensable."
            ) from error
        yield row


def replace_folder(finished: Path, final: Path) -> None:
    """Rename a finished folder to its place, durably.

    One that is there is moved aside first and removed last; see `clear_unfinished` for a kill in
    between.

    Raises:
        OSError: the disk refuses.
    """
    before = final.with_name(_REPLACED + final.name)
    if os.path.lexists(final):
        os.replace(final, before)
    os.replace(finished, final)
    sync(final.parent)
    remove(before)


def clear_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder; only for whoever alone writes there.

    A folder that was being replaced when its writer died is put back.

    Raises:
        MachineError: the disk refuses.
    """
    try:
        for path in sorted(folder.glob(f"{UNFINISHED}*")):
            whole = folder / path.name.removeprefix(_REPLACED)
            if path.name.startswith(_REPLACED) and not os.path.lexists(whole):
                path.rename(whole)
            else:
                remove(path)
    except OSError as error:
        raise MachineError(
            f"{folder} holds files of a writer that was stopped, which cannot be removed: {error}."
        ) from error


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there.

    Raises:
        OSError: the disk refuses.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, durably.

    Raises:
        OSError: the disk refuses.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, through to the disk."""
    if path.is_dir() and os.name != "posix":  # folders cannot be opened elsewhere
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


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


def free_bytes(folder: Path) -> int | None:
    """Bytes that can still be written to the disk of a folder, None where it does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest above it at which there is something."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))


def write_failure(path: Path, error: Exception, needed: int) -> str:
    """That a path cannot be written and why, without a full stop.

    Args:
        path: the file or folder.
        error: what the disk answered.
        needed: bytes that were to be written.
    """
    if isinstance(error, FileNotFoundError):
        gone = next((p for p in reversed(path.parents) if not p.exists()), path)
        return f"{path} cannot be written: {gone} is not there any more"
    why = str(error)
    if isinstance(error, OSError):
        why = f"{error.strerror or error}"
        if error.errno == errno.ELOOP:
            why = "it is a link, which is not followed"
        if error.errno not in _NO_ROOM:
            return f"{path} cannot be written: {why}"
    free = free_bytes(path.parent)
    room = "" if free is None else f", {format_bytes(free)} free"
    return f"{path} cannot be written: {why} ({format_bytes(needed)} needed{room})"


def format_bytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size} bytes" if size < 100_000 else f"{size / 1e6:.1f} MB"
