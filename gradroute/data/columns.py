"""Names of a file's columns and labels, where they differ from gradroute's."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gradroute.data.jsonl import show
from gradroute.errors import ConfigError

FIELDS = (
    "id",
    "text",
    "prompt",
    "completion",
    "messages",
    "label",
    "true_label",
    "weight",
    "spans",
    "tools",
)
"""Everything that a row may say."""

SPAN_UNITS = ("code_points", "utf16", "bytes")
"""What the places of spans may count: characters, UTF-16 code units, or bytes of UTF-8."""


@dataclass(frozen=True)
class Names:
    """How the columns and labels of a file are called.

    Attributes:
        labels: The label names of the routing table.
        column_of: Field -> the column that it stands in, for every field.
        label_map: Value in the file, as a text -> label; None where labels stand as they are.
        renamed: Field -> column as the user gave it; `group` is read from no other.
        span_unit: What the places of spans count, one of `SPAN_UNITS`.
    """

    labels: tuple[str, ...]
    column_of: Mapping[str, str]
    label_map: Mapping[str, str] | None
    renamed: Mapping[str, str]
    span_unit: str = "code_points"

    @property
    def columns(self) -> Collection[str]:
        """The columns that are read."""
        return self.column_of.values()

    def shown(self, field: str) -> str:
        """A field as messages name it."""
        column = self.renamed.get(field)
        return field if column is None else f"{field} (column {show(column)})"

    def setting(self, field: str) -> str:
        """The key of the configuration that says from which column a field is read."""
        return "data.group" if field == "group" else "data.columns"


def read_names(
    labels: Sequence[str],
    columns: Mapping[str, str] | None,
    label_map: Mapping[str, str] | None,
    group: str | None = None,
    span_unit: str = "code_points",
) -> Names:
    """Check what a config says about names.

    Args:
        labels: The label names of the routing table.
        columns: Field -> column.
        label_map: Value in the file -> label.
        group: Column by whose value rows are kept together; it may serve a field too.
        span_unit: What the places of spans count.

    Raises:
        ConfigError: An unknown field or unit, one column for two fields, or a label the table
            lacks.
    """
    if span_unit not in SPAN_UNITS:
        raise ConfigError(
            f"data.span_unit must be one of {', '.join(SPAN_UNITS)}, got {show(span_unit)}."
        )
    columns = columns or {}
    for field, column in columns.items():
        if field not in FIELDS:
            hint = nearest(field, FIELDS)
            raise ConfigError(
                f"data.columns: {show(field)} is no field{hint}; the fields are "
                f"{', '.join(FIELDS)}."
            )
        twins = [other for other, same in columns.items() if same == column and other != field]
        if twins:
            raise ConfigError(
                f"data.columns: {field} and {twins[0]} are both read from {show(column)}."
            )
    for value, label in (label_map or {}).items():
        if label not in labels:
            raise ConfigError(
                f"data.label_map: {show(value)} is mapped to {show(label)}, which is not a label "
                f"of the routing table: its labels are {', '.join(labels)}."
            )
    # A column that serves another field is not its own field any more.
    taken = set(columns.values())
    column_of = {
        field: columns.get(field, field)
        for field in FIELDS
        if field in columns or field not in taken
    }
    if group is not None:
        column_of["group"] = group
        columns = {**columns, "group": group}
    return Names(tuple(labels), column_of, label_map, columns, span_unit)


def nearest(name: str, names: Collection[str]) -> str:
    """A hint at the one of some names that is most like one; empty where none is."""
    found = difflib.get_close_matches(name[:80], [one for one in names if len(one) <= 80], n=1)
    return f" (the nearest is {show(found[0])})" if found else ""
