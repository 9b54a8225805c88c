"""What may stand in the fields of a row; no value is turned into another kind of value."""

import math
from collections.abc import Mapping
from typing import Any

from gradroute.data.columns import Names
from gradroute.data.examples import Span
from gradroute.data.jsonl import shown


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
        raise Unusable(field, f"must be a text in quotes, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = shown(value[error.start])
        raise Unusable(field, f"holds half of a surrogate pair ({half}): remove it") from None
    return value


def read_id(values: Mapping[str, Any]) -> str | None:
    """A row's own id; whole numbers are common there, and lose nothing as texts.

    Raises:
        Unusable: It is empty or something else.
    """
    value = values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = read_text(values, "id")
    if name == "":
        raise Unusable("id", "is empty: give a unique name, or leave it out")
    return name


def read_label(field: str, value: Any, names: Names) -> str | None:
    """The label that a value stands for, or None where the row leaves it open.

    With a label map only its values are read: a text as it is, any other value as JSON writes it,
    so that `0`, `true` and `null` are those of the file. `null` is also a label that is missing,
    but never a true label.

    Args:
        field: "label" or "true_label", or that of a span or message in words.
        value: As it stands in the file.
        names: How labels are to be read.

    Raises:
        Unusable: The value stands for no label.
    """
    known = [one for one in names.labels if field != "true_label" or one != "unlabeled"]
    if value is None and (
        names.label_map is None or field != "label" or "null" not in names.label_map
    ):
        return None
    if names.label_map is None:
        if isinstance(value, str) and value in known:
            return value
        raise Unusable(
            field,
            f"is {shown(value)}, but must be one of {', '.join(known)}: write the name (true, "
            "false, 0 and 1 are never guessed), or say in data.label_map what it stands for",
        )
    label = names.label_map.get(_as_key(value))
    if label is None:
        listed = ", ".join(shown(key) for key in names.label_map)
        raise Unusable(field, f"is {shown(value)}, which is not in data.label_map ({listed})")
    if label not in known:
        raise Unusable(
            field, f"is {shown(value)}, {label} in data.label_map, but must be {', '.join(known)}"
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
        raise Unusable("weight", f"must be a number, got {shown(value)}")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    if not 0 < weight < math.inf:
        raise Unusable("weight", f"must be finite and above 0, got {shown(value)}")
    return weight


def read_spans(values: Mapping[str, Any], text: str, names: Names) -> tuple[Span, ...]:
    """Parts of a text with labels of their own, in order; those that overlap are merged.

    Written as `[{"start": 0, "end": 5, "label": "bad"}]` or `[[0, 5, "bad"]]`, in characters
    (Unicode code points) of the text, the end left out.

    Raises:
        Unusable: One is not of that form, is empty, leaves the text, or overlaps with another of
            another label.
    """
    value = values.get("spans")
    if value is None:
        return ()
    if not isinstance(value, list):
        form = '[{"start": 0, "end": 5, "label": "bad"}]'
        raise Unusable("spans", f"must be a list such as {form}, got {shown(value)}")
    merged: list[Span] = []
    for span in sorted(_span(at, one, text, names) for at, one in enumerate(value, 1)):
        before = merged[-1] if merged else None
        if before is None or before.end <= span.start:
            merged.append(span)
        elif before.label == span.label:
            merged[-1] = Span(before.start, max(before.end, span.end), span.label)
        else:
            raise Unusable(
                "spans",
                f"overlap with different labels: [{before.start}, {before.end}) is {before.label}, "
                f"[{span.start}, {span.end}) is {span.label}",
            )
    return tuple(merged)


def _span(number: int, value: Any, text: str, names: Names) -> Span:
    if isinstance(value, dict) and value.keys() == {"start", "end", "label"}:
        value = [value["start"], value["end"], value["label"]]
    if not isinstance(value, list) or len(value) != 3:
        raise Unusable(
            "spans",
            f"must hold objects with start, end and label, or lists [start, end, label]; number "
            f"{number} is neither",
        )
    start, end, label = value
    for place in (start, end):
        if isinstance(place, bool) or not isinstance(place, int):
            raise Unusable(
                "spans", f"must begin and end at whole numbers; number {number} has {shown(place)}"
            )
    if not 0 <= start < end <= len(text):
        raise Unusable(
            "spans",
            f"must lie in the text, which has {len(text)} characters, and hold at least one; "
            f"number {number} is from {start!r:.40} to {end!r:.40}",
        )
    named = read_label(f"label of span {number}", label, names)
    if named is None:
        raise Unusable("spans", f"need a label each; number {number} has none")
    return Span(start, end, named)
