"""Sources of examples: a file on this machine, or a split of a data set on the hub."""

from pathlib import Path

from gradroute.data.hub import find_split, is_hub_id
from gradroute.data.reading import ExampleFile, Load, ReadSettings, read_parts
from gradroute.errors import ConfigError


def read_source(
    path: str, settings: ReadSettings, *, split: str, revision: str | None, tokenizer: Load
) -> tuple[ExampleFile, str]:
    """Read what `data.path` or `data.eval_path` names.

    Args:
        path: A file (`~` is the home folder), or `owner/name` for a data set on the hub.
        settings: How rows are read.
        split: Which split of a data set on the hub; a file has none.
        revision: Which commit, tag or branch of it.
        tokenizer: Called at the first conversation, or prompt with a completion.

    Returns:
        What was read, and its identity: what tells it from any other data.

    Raises:
        ConfigError: A split, a column or a label that cannot be.
        DataError: What is there cannot be used.
        MachineError: The hub is out of reach, or a library is not installed.
    """
    most, files = None, [Path(path).expanduser()]
    name = files[0].name
    if is_hub_id(path):
        found = find_split(path, split, revision)
        most, files, name = found.most, found.files(), found.identity
    elif revision is not None:
        raise ConfigError(
            f"data.revision is of a data set on the hub, but {path} is a file: set it to null."
        )
    file = read_parts(files, settings, tokenizer=tokenizer, limit=most)
    return file, f"{name}, sha256 {file.sha256}"
