"""Rules for the fields of a row; no value is turned into another kind of value."""

import math
from collections.abc import Mapping
from typing import Any

from gradroute.data.columns import Names
from gradroute.data.jsonl import show

_EXACT = 2**53
"""Up to here a float holds every whole number."""


class Unusable(ValueError):
    """What is wrong with a field of a row.

    Attributes:
        field: The field.
        what: What follows its name in a sentence.
    """

    def __init__(self, field: str, what: str):
        super().__init__(f"{field} {what}")
        self.field, self.what = field, what


def read_text(values: Mapping[str, Any], field: str) -> str | None:
    """A text, or None where there is none.

    Raises:
        Unusable: It is anything else, or cannot be written as UTF-8.
    """
    value = values.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Unusable(field, f"must be a text in quotes, got {show(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = show(value[error.start])
        raise Unusable(field, f"holds half of a surrogate pair ({half}): remove it") from None
    return value


def read_id(values: Mapping[str, Any]) -> str | None:
    """A row's own id; whole numbers are common there, and lose nothing as texts.

    A table library makes floats of a column of whole numbers in which one is missing, so 1.0 is
    read as 1. The text "1.0" stays as it is.

    Raises:
        Unusable: It is empty or something else.
    """
    name = _name(values, "id")
    if name == "":
        raise Unusable("id", "is empty: give a unique name, or leave it out")
    return name


def read_group(values: Mapping[str, Any]) -> str:
    """What a row shares with the rows of its group, read as an id is; empty where there is none.

    Raises:
        Unusable: It is neither a text nor a whole number.
    """
    return _name(values, "group") or ""


def _name(values: Mapping[str, Any], field: str) -> str | None:
    value = values.get(field)
    if isinstance(value, float):
        if not value.is_integer():
            raise Unusable(field, f"must be a text in quotes, got {show(value)}")
        if abs(value) > _EXACT:
            raise Unusable(
                field,
                f"is {show(value)}, a float above 2**53, whose last digits may be lost: write it "
                "as a text",
            )
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return read_text(values, field)


def read_label(field: str, value: Any, names: Names) -> str | None:
    """The label that a value stands for, or None where the row leaves it open.

    With a label map only its values are read: a text as it is, any other value as JSON writes it,
    so that `0`, `true` and `null` are those of the file. `null` is also a label that is missing,
    but never a true label. Labeling tools write a list where several labels could be given: one
    of a single text stands for it, an empty one for null.

    Args:
        field: "label" or "true_label", or that of a span or message in words.
        value: As it stands in the file.
        names: How labels are to be read.

    Raises:
        Unusable: The value stands for no label.
    """
    known = [one for one in names.labels if field != "true_label" or one != "unlabeled"]
    if isinstance(value, list) and len(value) > 1:
        raise Unusable(field, f"is a list of {len(value)} labels, but one is needed: keep one")
    if value == [] or (isinstance(value, list) and isinstance(value[0], str)):
        value = value[0] if value else None
    if value is None and (
        names.label_map is None or field != "label" or "null" not in names.label_map
    ):
        return None
    if names.label_map is None:
        if isinstance(value, str) and value in known:
            return value
        raise Unusable(
            field,
            f"is {show(value)}, but must be one of {', '.join(known)}: write the name (true, "
            "false, 0 and 1 are never guessed), or give its meaning in data.label_map",
        )
    label = names.label_map.get(_as_key(value))
    if label is None:
        listed = ", ".join(show(key) for key in names.label_map)
        raise Unusable(field, f"is {show(value)}, which is not in data.label_map ({listed})")
    if label not in known:
        raise Unusable(
            field, f"is {show(value)}, {label} in data.label_map, but must be {', '.join(known)}"
        )
    return label


def _as_key(value: Any) -> str:
    """A value as a key of the label map; of a list or an object, what no key can be."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else "\0"


def read_weight(values: Mapping[str, Any]) -> float:
    """The factor on a row's loss; 1 where there is none.

    Raises:
        Unusable: It is no finite number above 0.
    """
    value = values.get("weight")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable("weight", f"must be a number, got {show(value)}")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    if not 0 < weight < math.inf:
        raise Unusable("weight", f"must be finite and above 0, got {show(value)}")
    return weight
