"""Contents of a scikit-learn classifier's file, checked before a library opens it.

A `.skops` file is a zip archive with a description in JSON and arrays. Whose types it may name is
the library's to say, once it is known that the archive is one, and how large it is.
"""

import re
import zipfile
from pathlib import Path

from gradroute.errors import ConfigError, MachineError

MAX_SCHEMA = 256 * 2**20
"""Bytes of the description; 100,000 words of a vocabulary take about 60 million."""
MAX_UNPACKED = 2**31
"""Bytes of all files in the archive together, unpacked."""

_MEMBER = re.compile(r"[A-Za-z0-9_-]{1,100}\.(npy|npz|bin|json)")
_PICKLES = (".pkl", ".pickle", ".joblib", ".dill")


def check_skops_file(path: Path) -> None:
    """See that a file is a skops archive and holds nothing but plain files of bearable size.

    Raises:
        ConfigError: It is not, or it is of a format that runs code when it is read.
        MachineError: It cannot be read.
    """
    if path.suffix in _PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which runs code when it is read, so it is never read. Save the "
            "classifier with skops.io.dump(classifier, 'NAME.skops'), where it was made."
        )
    try:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; give a classifier saved as .skops.")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ConfigError(
            f"{path} is not a skops file: it is not a zip archive ({error})."
        ) from error
    except OSError as error:
        raise MachineError(f"{path} cannot be read ({error.strerror or error}).") from error
    schema = [member for member in members if member.filename == "schema.json"]
    if len(schema) != 1:
        raise ConfigError(
            f"{path} is not a skops file: it needs one schema.json, not {len(schema)}."
        )
    if schema[0].file_size > MAX_SCHEMA:
        raise ConfigError(f"{path}: its schema.json is larger than {MAX_SCHEMA:,} bytes.")
    for member in members:
        if not _MEMBER.fullmatch(member.filename) or member.flag_bits & 1:
            raise ConfigError(f"{path}: {member.filename[:80]!r} does not belong in a skops file.")
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise ConfigError(f"{path}: unpacked it is larger than {MAX_UNPACKED:,} bytes.")
