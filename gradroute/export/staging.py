"""A folder that is built elsewhere and appears under its name complete or not at all."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gradroute.errors import ConfigError, MachineError
from gradroute.runs.folder import RunFolder
from gradroute.system.files import (
    UNFINISHED,
    append_line,
    make_folder,
    sha256_of,
    sync,
    write_failure,
    write_json,
)
from gradroute.system.terminal import say

CARD = "README.md"
MANIFEST = "manifest.json"
PROOF = "proof.json"
SCHEMA_VERSION = 1
"""Of `proof.json` and `manifest.json`."""


def check_out(out: Path) -> None:
    """See that a folder can be put somewhere: nothing is there, or an empty folder.

    Raises:
        ConfigError: Something is.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise ConfigError(f"--out {out} exists and is not a folder; name one that does not exist.")
    if any(out.iterdir()):
        raise ConfigError(
            f"--out {out} is not empty. An export is a folder of its own, and each of its files is "
            f"searched; name a folder that does not exist."
        )


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, removed unless it was put in place.

    Raises:
        MachineError: The disk refuses.
    """
    built = out.parent / f"{UNFINISHED}{out.name[:100]}-{secrets.token_hex(8)}"
    try:
        make_folder(out.parent)
        built.mkdir()
        yield built
    except OSError as error:
        raise MachineError(f"{write_failure(out, error, 0)}. Nothing is left of it.") from error
    finally:
        shutil.rmtree(built, ignore_errors=True)


def put_in_place(built: Path, out: Path) -> None:
    """Give a finished folder its name, durably."""
    mode = stat.S_IMODE((built / MANIFEST).stat().st_mode)
    for path in [*built.iterdir(), built]:
        if path.is_file():
            path.chmod(mode)  # safetensors writes files that only their owner may read
        sync(path)
    os.rename(built, out)  # over an empty folder, never over another one
    sync(out.parent)


def write_manifest(built: Path) -> None:
    """Write the sha256 of every file but the manifest, the proof and the card."""
    names = sorted(path.name for path in built.iterdir())
    write_json(
        built / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "sha256": {n: sha256_of(built / n) for n in names if n not in (MANIFEST, PROOF, CARD)},
        },
    )


def record(folder: RunFolder, what: str, out: Path, adapters: Sequence[str]) -> None:
    """Keep in the run where something of it was written; the run may be somebody else's."""
    place = os.path.relpath(os.path.realpath(out), os.path.realpath(folder.path))
    try:
        append_line(
            folder.exports,
            {"what": what, "place": place, "adapters": list(adapters)},
        )
    except MachineError as error:
        say(f"{folder.name}: not recorded in the run: {error}")
