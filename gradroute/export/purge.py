"""Files of a run that still hold its bad adapter: found by name and content, deleted on request."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.export.byte_search import Windows, windows_of
from gradroute.export.selection import choose
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.system.files import append_line, read_lines, sync
from gradroute.system.terminal import printable, say

CANNOT_KNOW = (
    "Not checked: copies of the run in other places, uploads, caches, snapshots and "
    "backups of the disk, and the free space of the disk itself, from which deleted files can be "
    "recovered."
)


@dataclass(frozen=True)
class Holder:
    """A file that holds something of a bad adapter.

    Attributes:
        path: The file.
        why: What it holds.
        own: Whether it is in the run's folder, or in one that was moved aside for it.
    """

    path: Path
    why: str
    own: bool


def purge_run(
    folder: RunFolder, *, keep: Sequence[str] | None, delete: bool, confirmed: bool
) -> list[Holder]:
    """List the files that still hold a run's bad adapters; delete those in its own folders.

    Results, logs and what is kept stay. A checkpoint without one of its files is none any more: the
    run cannot go on, be measured or be exported afterwards.

    Args:
        folder: The run.
        keep: The adapters that may stay; None for those that no behavior was routed to.
        delete: Delete.
        confirmed: Whether that was confirmed.

    Raises:
        ConfigError: An adapter is unknown, none would be purged, or deleting was not confirmed.
        MachineError: Another process writes to the run, or a file cannot be read or deleted.
    """
    config = load_config(folder.config)
    adapters, learned = tuple(config.adapters), config.behavior_adapters
    bad = _bad(adapters, keep, learned, config.run_name)
    try:
        found = holders(folder, bad)
        _tell(folder, bad, found, _controls(folder, config.run_name))
        own = [holder.path for holder in found if holder.own]
        if delete and not confirmed and own:
            raise ConfigError(
                f"--delete would delete {len(own)} files of {folder.path} for good, and the run "
                f"could not be continued, measured or exported afterwards. Give --delete --yes to "
                f"confirm."
            )
        if delete and own:
            with write_lock(folder.path, "purging"):
                _delete(own)
                append_line(folder.exports, {"what": "purge", "place": ".", "adapters": bad})
            print(printable(f"deleted: {len(own)} files of {', '.join(bad)}"))
    except OSError as error:
        raise MachineError(f"purging {folder.path}: {error}.") from error
    say(CANNOT_KNOW)
    return found


def holders(folder: RunFolder, bad: Sequence[str]) -> list[Holder]:
    """The files that hold something of these adapters, sorted by path.

    Looked through are the run's folder, those that were moved aside for it, and where it exported
    to. Links are not followed.

    Raises:
        OSError: A file cannot be read.
    """
    aside = sorted(folder.path.parent.glob(f"{folder.path.name}.old-*"))
    own = [path for place in (folder.path, *aside) for path in _files(place)]
    elsewhere = [path for place in _exports(folder) for path in _files(place)]
    elsewhere = [path for path in dict.fromkeys(elsewhere) if path not in set(own)]
    windows = windows_of(_weights(path) for path in own if _is_weights(path, bad))
    found = [(path, _why(path, bad, windows), True) for path in own]
    found += [(path, _why(path, bad, windows), False) for path in elsewhere]
    return [Holder(path, why, mine) for path, why, mine in found if why]


def _bad(
    adapters: Sequence[str], keep: Sequence[str] | None, learned: Collection[str], run_name: str
) -> list[str]:
    if keep is not None:
        return list(choose(keep, adapters, learned=learned, run_name=run_name).left_out)
    if not learned:
        raise ConfigError(
            f"run {run_name}: no adapter was trained on examples labeled as showing the "
            "behavior; name the adapters that may stay with --keep."
        )
    return [name for name in adapters if name in learned]


def _files(place: Path) -> list[Path]:
    found = []
    for where, _, names in os.walk(place):
        found += [path for name in names if not (path := Path(where) / name).is_symlink()]
    return sorted(path for path in found if path.is_file())


def _exports(folder: RunFolder) -> Iterator[Path]:
    """Folders that were written from this run and are still there."""
    try:
        lines = list(read_lines(folder.exports))
    except DataError as error:
        say(f"{folder.name}: {error} Exports named in it are not searched.")
        return
    for line in lines:
        if line.get("what") in ("export", "audit-adapter") and isinstance(line.get("place"), str):
            place = Path(os.path.normpath(folder.path.resolve() / line["place"]))
            if place.is_dir():
                yield place


def _is_weights(path: Path, bad: Sequence[str]) -> bool:
    return path.name == "adapter_model.safetensors" and path.parent.name in bad


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return {}  # damaged: it is found by its name


def _why(path: Path, bad: Sequence[str], windows: Windows) -> str:
    """What a file holds of the adapters, or nothing."""
    if path.parent.name in bad:
        return f"a file of the adapter {path.parent.name}"
    if named := _named_tensors(path, bad):
        return f"{named} tensors named after {' or '.join(bad)} (of an optimizer)"
    if path.name == "optimizer.pt" and (path.parent / "gradroute").is_dir():
        # Of a routed trainer, see `integrations.saved`. It is a pickle, which is not opened.
        return "the optimizer's state of all adapters"
    at = windows.found_in(path)
    return "" if at is None else f"bytes of {' or '.join(bad)}, from byte {at}"


def _named_tensors(path: Path, bad: Sequence[str]) -> int:
    if path.suffix != ".safetensors":
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            return sum(any(f".{name}." in key for name in bad) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0


def _tell(
    folder: RunFolder, bad: Sequence[str], found: Sequence[Holder], controls: Sequence[str]
) -> None:
    for holder in found:
        where = holder.path if holder.own else f"{holder.path} (elsewhere, never deleted from here)"
        print(printable(f"{where}  {holder.why}"))
    size = sum(holder.path.stat().st_size for holder in found)
    print(
        printable(f"{folder.name}: {len(found)} files ({size:,} bytes) hold {', '.join(bad)}")
        if found
        else printable(f"{folder.name}: no file here holds {', '.join(bad)}")
    )
    exported = any(line.get("what") == "export" for line in read_lines(folder.exports))
    if found and not exported:
        say(f"{folder.name}: the run has no recorded export; export before anything is deleted.")
    if controls:
        say(
            f"{folder.name}: its controls {', '.join(controls)} were trained on the same examples; "
            "what they learned of the behavior is in their own weights."
        )


def _controls(folder: RunFolder, run_name: str) -> list[str]:
    """Names of the folders beside it that hold controls of the run."""
    found = []
    for path in sorted(folder.path.resolve().parent.glob("*/config.yaml")):
        try:
            if load_config(path).control_of == run_name:
                found.append(path.parent.name)
        except ConfigError:
            continue
    return found


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
    for place in sorted({path.parent for path in paths}):
        sync(place)
        if not any(place.iterdir()):
            place.rmdir()
