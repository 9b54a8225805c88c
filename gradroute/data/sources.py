"""Sources of examples: a file on this machine, or a split of a data set on the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradroute.data.hub import find_split, is_hub_id
from gradroute.data.reading import ExampleFile, Load, read_parts
from gradroute.errors import ConfigError


def read_source(
    path: str,
    *,
    split: str,
    revision: str | None,
    labels: Sequence[str],
    columns: Mapping[str, str] | None,
    label_map: Mapping[str, str] | None,
    tokenizer: Load,
    template: str,
    skip_bad_rows: bool,
    group: str | None = None,
    span_unit: str = "code_points",
    on_conflict: str = "refuse",
) -> tuple[ExampleFile, str]:
    """Read what `data.path` or `data.eval_path` names.

    Args:
        path: A file (`~` is the home folder), or `owner/name` for a data set on the hub.
        split: Which split of a data set on the hub; a file has none.
        revision: Which commit, tag or branch of it.
        labels: As for `read_examples`, like all that follows.
        columns: See there.
        label_map: See there.
        tokenizer: Called where the first conversation, or prompt with a completion, stands.
        template: See there.
        skip_bad_rows: See there.
        group: See there.
        span_unit: See there.
        on_conflict: See there.

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
    file = read_parts(
        files,
        labels=labels,
        columns=columns,
        label_map=label_map,
        tokenizer=tokenizer,
        template=template,
        most=most,
        skip_bad_rows=skip_bad_rows,
        group=group,
        span_unit=span_unit,
        on_conflict=on_conflict,
    )
    return file, f"{name}, sha256 {file.sha256}"
