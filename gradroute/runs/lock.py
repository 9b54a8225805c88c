"""One writer per run folder; readers take no lock.

The lock is the kernel's, taken by `filelock` on a small file beside the run folder, so that it also
holds while the folder is moved aside. It is gone with the process that holds it, however that ends;
what the file says (who, since when) is for messages, and tells a holder that has just died.

`filelock` locks a descriptor and leaves the file itself to us: `FileLock` would keep the file after
the release, and its holder would have no place to say who it is.
"""

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from gradroute.errors import ConfigError, MachineError
from gradroute.system.files import NO_FOLLOW, make_folder, write_failure
from gradroute.system.terminal import say

_SPOKEN_WITHIN = 1.0  # seconds that a new holder is given to write down who it is
_LEFT_WITHIN = 2.0  # seconds that what a dead holder was starting is given to let go
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

# Folders that this process writes to: (path, process, thread). A fork inherits the list but must
# not think the lock its own, and neither must another thread.
_held: set[tuple[Path, int, int]] = set()


@contextmanager
def write_lock(folder: Path, verb: str) -> Iterator[None]:
    """Be the only process that writes to a run folder, for as long as the context lasts.

    The same thread may enter again for the same folder. A lock whose process is dead is taken over
    with a note. On a file system that knows no locks the work goes on, and that is said.

    Args:
        folder: the run folder; it need not be there yet, its parent is made. The same folder by
            another path, or through a link, is the same lock.
        verb: what is done to it, such as "training"; others are told.

    Raises:
        ConfigError: the folder, or one directly in it, is a link that leads out of where it is.
        MachineError: another process writes to the folder, or the lock cannot be made.
    """
    real = _real_folder(folder)
    held = (real, os.getpid(), threading.get_ident())
    if held in _held:
        yield
        return
    path = real.parent / f".{real.name}.lock"
    handle = _acquire(path, folder, verb)
    _held.add(held)
    try:
        yield
    finally:
        _held.discard(held)
        if handle is not None:
            _release(handle, path)


def in_use(folder: Path) -> str:
    """Who writes to a run folder, as the end of a sentence; empty for nobody.

    Looks at what is written beside the lock, and never takes it. Of a process that was killed on
    another machine nobody knows here that it is gone.
    """
    real = Path(os.path.realpath(folder))
    record = _holder(real.parent / f".{real.name}.lock", within=0.0)
    return "" if not record or _is_dead(record) else _holder_text(record)


def _real_folder(folder: Path) -> Path:
    """The real path of a run folder that does not lead out of its place, nor do folders in it."""
    try:
        real = Path(os.path.realpath(folder))
        own = [entry.path for entry in os.scandir(real)] if real.is_dir() else []
        places = {str(folder): os.path.realpath(folder.parent), **dict.fromkeys(own, str(real))}
        for link, place in places.items():
            if os.path.islink(link) and not Path(os.path.realpath(link)).is_relative_to(place):
                raise ConfigError(
                    f"{link} is a link that leads out of {place}, to {os.path.realpath(link)}. "
                    "Nothing is written through it; give the folder itself, or put it in place of "
                    "the link."
                )
    except OSError as error:
        raise MachineError(f"run folder {folder} cannot be read: {error.strerror}.") from error
    return real


def _acquire(path: Path, folder: Path, verb: str) -> int | None:
    """An open file that holds the lock; None where the file system has no locks."""
    me = {
        "pid": os.getpid(),
        "host": platform.node(),
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "verb": verb,
    }
    handle = None
    try:
        make_folder(path.parent)
        handle = _open_once_left(path)
        before = _read_record(handle)
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(me).encode())
    except BlockingIOError:
        raise MachineError(
            f"run folder {folder} is in use: {_holder_text(_holder(path))}. Wait for it or stop "
            "it; "
            "reading is fine meanwhile."
        ) from None
    except OSError as error:
        if handle is not None:
            _release(handle, path)
        elif error.errno in _UNSUPPORTED:
            with suppress(OSError):
                path.unlink()
            say(
                f"{folder.name}: the file system of {path.parent} has no file locks "
                f"({error.strerror}): nothing keeps a second process from writing to this run "
                "folder, so start only one."
            )
            return None
        raise MachineError(
            f"run folder {folder} cannot be locked: "
            f"{write_failure(path, error, len(json.dumps(me)))}. "
            "Make that possible, or choose another folder with --runs."
        ) from error
    if before:
        _say_taken_over(folder, before, me["host"])
    return handle


def _open_once_left(path: Path) -> int:
    """As `_open_locked`; a holder that is dead is given a moment to be gone with all it started.

    A program that the holder was starting when it died (git, say) has the lock as well, between
    its fork and its exec, and lives on for that moment.
    """
    until = time.monotonic() + _LEFT_WITHIN
    while True:
        try:
            return _open_locked(path)
        except BlockingIOError:
            if time.monotonic() > until or not _is_dead(_holder(path)):
                raise
        time.sleep(0.02)


def _is_dead(record: dict[str, Any]) -> bool:
    """Whether the process that wrote a record ran on this machine and is gone."""
    pid = record.get("pid")
    if os.name != "posix" or record.get("host") != platform.node() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # somebody else's, or no process id
    return False


def _open_locked(path: Path) -> int:
    """Open and lock the file that is at `path` at that moment.

    Whoever releases a lock removes its file while holding it. Who has opened the file before that
    may lock it after that; a lock on a file that is gone is worth nothing, so it is tried again.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        try:
            if not lock_descriptor(handle, blocking=False):
                raise BlockingIOError
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _release(handle: int, path: Path) -> None:
    try:
        if _is_at(handle, path):
            path.unlink()  # while it is locked, so that nobody else can hold this file
    except OSError:  # it stays behind unlocked; empty, so that no holder is said to have died
        with suppress(OSError):
            os.ftruncate(handle, 0)
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _holder(path: Path, within: float = _SPOKEN_WITHIN) -> dict[str, Any]:
    """What the holder of a lock wrote down; it may be about to, and is given some seconds."""
    until = time.monotonic() + within
    while True:
        try:
            handle = os.open(path, os.O_RDONLY | NO_FOLLOW)
        except OSError:
            return {}
        try:
            said = _read_record(handle)
        finally:
            os.close(handle)
        if said or time.monotonic() > until:
            return said
        time.sleep(0.01)


def _read_record(handle: int) -> dict[str, Any]:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        said = json.loads(os.read(handle, 4096))
    except (ValueError, RecursionError, OSError):
        return {}
    return said if isinstance(said, dict) else {}


def _holder_text(record: dict[str, Any]) -> str:
    if not {"pid", "host", "started", "verb"} <= record.keys():
        return "another process is writing to it"
    return (
        f"process {record['pid']} on host {record['host']} has been {record['verb']} since "
        f"{record['started']}"
    )


def _say_taken_over(folder: Path, before: dict[str, Any], host: str) -> None:
    note = (
        f"{folder.name}: the lock of a process that is gone is taken over ({_holder_text(before)})."
    )
    if before.get("host", host) != host:
        note += " It is of another machine: if that process still runs, stop one of the two."
    say(note)
