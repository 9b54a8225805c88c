"""The folder of hidden states that runs share: what is in it, how large it may be, who reads it.

    <runs>/.states/<key>/  about.json · *.safetensors

A file that a process reads is locked, and nobody removes a locked file. When a file was used last
is its time of modification. Whatever is removed is computed again by whoever needs it.
"""

import errno
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.system.files import UNFINISHED, make_folder, remove, write_failure
from gradroute.system.terminal import say

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open
    fcntl = None

FOLDER = ".states"
"""In the folder of the runs, which share it."""
SUFFIX = ".safetensors"
ABOUT = "about.json"
FRESH = 3600.0
"""Seconds after its last use in which a file is not removed by a run that makes room."""
_GIVEN_UP = 3600.0  # seconds after which an unfinished file has no writer any more


class States(NamedTuple):
    """The states of one key.

    Attributes:
        folder: Where they are.
        about: What they depend on, as words; nothing where it cannot be read.
        files: How many there are.
        size: Bytes of them.
        used: When one was used last, in seconds since 1970; 0 without any.
    """

    folder: Path
    about: Mapping[str, Any]
    files: int
    size: int
    used: float


class Pruned(NamedTuple):
    """What was removed: files and bytes; the bytes that are left, and files that were in use."""

    files: int
    size: int
    left: int
    in_use: int


class _File(NamedTuple):
    used: float
    path: Path
    size: int


def begin_sharing(root: Path) -> None:
    """Have the runs of a folder share hidden states from now on: they do where this folder is."""
    with suppress(OSError):  # the runs will say what is wrong with the folder
        make_folder(root / FOLDER)


def places_of(root: Path) -> list[Path]:
    """The folders of states in a folder of runs: of its own runs, and of those of its sweeps."""
    return [place for place in (root / FOLDER, *sorted(root.glob(f"*/{FOLDER}"))) if place.is_dir()]


def list_states(places: Sequence[Path]) -> list[States]:
    """The states in these folders, by key, those that were used last first."""
    found = []
    for folder in (folder for place in places for folder in _folders(place)):
        files = _files_of(folder)
        used = max((file.used for file in files), default=0.0)
        size = sum(file.size for file in files)
        found.append(States(folder, read_about(folder), len(files), size, used))
    return sorted(found, key=lambda one: -one.used)


def read_about(folder: Path) -> dict[str, Any]:
    """What the states of a key depend on; nothing where that is lost."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def say_other_states(folder: Path, about: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Say, where a key has no folder yet, why states of the same base that are there do not fit.

    Args:
        folder: Of the key.
        about: What its states depend on.
        tell: Says it.
    """
    if folder.exists():
        return
    for other in map(read_about, _folders(folder.parent)):
        if other.get("base") == about["base"] and other.get("kind") == about.get("kind"):
            names = sorted({*other, *about})
            changed = [name for name in names if other.get(name) != about.get(name)]
            told = ", ".join(f"{key} {other.get(key)}, now {about.get(key)}" for key in changed)
            tell(f"hidden states in {folder.parent} are not used, they are of others ({told}).")
            return


def prune(places: Sequence[Path], limit: int, *, unused_for: float = 0.0) -> Pruned:
    """Remove the files that were not used for longest, until all take no more than a limit.

    Args:
        places: Folders of states.
        limit: In bytes.
        unused_for: Seconds for which a file must not have been used to be removed.

    Returns:
        What was removed and what is left.
    """
    folders = [folder for place in places for folder in _folders(place)]
    files = sorted(file for folder in folders for file in _files_of(folder))
    left = sum(file.size for file in files)
    removed, freed, in_use = 0, 0, 0
    now = time.time()
    for used, path, size in files:
        if left <= limit or now - used < unused_for:
            break
        if _remove_unread(path):
            removed, freed, left = removed + 1, freed + size, left - size
        else:
            in_use += 1
    for folder in folders:
        _clear(folder, now, unused_for)
    return Pruned(removed, freed, left, in_use)


@contextmanager
def reading(path: Path) -> Iterator[io.BufferedReader | None]:
    """A file that nobody removes meanwhile, now used last; None where there is none."""
    file = open_for_reading(path)
    if file is None:
        yield None
        return
    with file:
        note_use(path)
        yield file


def note_use(path: Path) -> None:
    """Note that a file is used now; one that is somebody else's stays older than it is."""
    with suppress(OSError):
        os.utime(path)


def open_for_reading(path: Path) -> io.BufferedReader | None:
    """A file that nobody removes as long as it is open; None where there is none.

    Raises:
        OSError: It cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        if not _locked(file, shared=True) or not _is_at(file, path):
            file.close()  # somebody is about to remove it, or has
            return None
    except BaseException:
        file.close()
        raise
    return file


def write_quickly(path: Path, content: bytes) -> str | None:
    """Write a file whole or not at all, and do not wait for the disk.

    After a crash of the machine it may be damaged, which its reader has to see.

    Returns:
        Why it could not be written, without a full stop; nothing is left of it then.
    """
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}-{path.name}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        return write_failure(path, error, len(content))
    return None


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(one for one in place.iterdir() if one.is_dir() and not one.is_symlink())
    except OSError:
        return []


def _files_of(folder: Path) -> list[_File]:
    """The whole files of a key; one that disappears meanwhile is left out."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith(UNFINISHED):
                with suppress(OSError):
                    there = entry.stat(follow_symlinks=False)
                    found.append(_File(there.st_mtime, Path(entry.path), there.st_size))
    return found


def _remove_unread(path: Path) -> bool:
    """Remove a file unless somebody reads it; whether it is gone."""
    try:
        with path.open("rb") as file:
            if not _locked(file, shared=False):
                return False
            if fcntl is not None:
                path.unlink()  # while it is locked, so that whoever opened it before sees it
                return True
        path.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        say(f"{path} cannot be removed: {error.strerror or error}.")
        return False
    return True


def _clear(folder: Path, now: float, unused_for: float) -> None:
    """Remove what killed writers left, and a key that has nothing any more."""
    with suppress(OSError):
        paths = list(folder.iterdir())
        for path in paths:
            if path.name.startswith(UNFINISHED) and now - path.stat().st_mtime > _GIVEN_UP:
                path.unlink(missing_ok=True)
        about = folder / ABOUT
        if paths == [about] and now - about.stat().st_mtime >= unused_for:
            remove(folder)


def _locked(file: io.BufferedReader, *, shared: bool) -> bool:
    """Lock an open file, until it is closed, if nobody holds it in another way."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: a reader goes on, and nothing is removed.
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return shared
        raise
    return True


def _is_at(file: io.BufferedReader, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
