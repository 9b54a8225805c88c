"""Parts of a text with labels of their own, as people and labeling tools write them."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from gradroute.data.columns import SPAN_UNITS, Names
from gradroute.data.examples import Span
from gradroute.data.fields import Unusable, read_label
from gradroute.data.jsonl import show

# The keys of a span; the second and later ones are those of Label Studio and doccano.
_STARTS = ("start", "start_offset")
_ENDS = ("end", "end_offset")
_LABELS = ("label", "labels", "hypertextlabels")
_ECHO = "text"
_READ = {*_STARTS, *_ENDS, *_LABELS, _ECHO}

_UNITS_IN_WORDS = {"code_points": "characters", "utf16": "UTF-16 code units", "bytes": "bytes"}


class _Part(NamedTuple):
    """A span as it stands in the file."""

    start: Any
    end: Any
    label: Any
    echo: Any


def read_spans(values: Mapping[str, Any], text: str, names: Names) -> tuple[Span, ...]:
    """Parts of a text with labels of their own, in order; those that overlap are merged.

    Written as `[{"start": 0, "end": 5, "label": "bad"}]` or `[[0, 5, "bad"]]`, in units of the
    text that `names` says, the end left out. An object may also have `start_offset`, `end_offset`
    and `labels` (a list of one); with `text` it says which characters it means. Further keys are
    passed over, see `unread_keys`.

    Returns:
        Spans in characters (code points).

    Raises:
        Unusable: One is not of that form, is empty, leaves the text, begins or ends inside of a
            character, does not hold the text that it says, or overlaps with another of another
            label.
    """
    value = values.get("spans")
    if value is None:
        return ()
    if not isinstance(value, list):
        form = '[{"start": 0, "end": 5, "label": "bad"}]'
        raise Unusable("spans", f"must be a list such as {form}, got {show(value)}")
    places = _Places(text)
    merged: list[Span] = []
    for span in sorted(_span(at, one, places, names) for at, one in enumerate(value, 1)):
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


def unread_keys(value: Any) -> set[str]:
    """The keys of spans that say nothing which is read; a key with null is as good as missing."""
    spans = [span for span in value if isinstance(span, dict)] if isinstance(value, list) else []
    return {
        key for span in spans for key, one in span.items() if one is not None and key not in _READ
    }


def are_spans(value: Any) -> bool:
    """Whether a value has the form of spans: a list of at least one, and of nothing else."""
    parts = [_part(one) for one in value] if isinstance(value, list) else []
    return bool(parts) and all(
        part and is_place(part.start) and isinstance(part.label, str | list) for part in parts
    )


def is_place(value: Any) -> bool:
    """Whether a value can be a place of a text: a whole number, or one that a table made 1.0."""
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )


def _part(value: Any) -> _Part | None:
    """The parts of a span; None for what has another form."""
    if isinstance(value, list) and len(value) == 3:
        start, end, label = value
        return _Part(start, end, label, None)
    if not isinstance(value, dict):
        return None
    start, end, label = (_first(value, keys) for keys in (_STARTS, _ENDS, _LABELS))
    labeled = any(key in value for key in _LABELS)
    if start is None or end is None or not labeled:
        return None
    return _Part(start, end, label, value.get(_ECHO))


def _first(value: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((value[key] for key in keys if value.get(key) is not None), None)


def _span(number: int, value: Any, places: "_Places", names: Names) -> Span:
    part = _part(value)
    if part is None:
        raise Unusable(
            "spans",
            f"must hold objects with start, end and label, or lists [start, end, label]; number "
            f"{number} is neither",
        )
    for place in (part.start, part.end):
        if not is_place(place):
            raise Unusable(
                "spans", f"must begin and end at whole numbers; number {number} has {show(place)}"
            )
    start, end = int(part.start), int(part.end)
    named = read_label(f"label of span {number}", part.label, names)
    if named is None:
        raise Unusable("spans", f"need a label each; number {number} has none")
    unit = names.span_unit
    said = part.echo
    if said is not None and not isinstance(said, str):
        raise Unusable("spans", f"have a value that is not text in number {number}: {show(said)}")
    if said is not None and places.between(start, end, unit) != said:
        _refuse_other_text(number, start, end, said, places, unit)
    size, what = places.size(unit), _UNITS_IN_WORDS[unit]
    if not 0 <= start < end <= size:
        raise Unusable(
            "spans",
            f"must lie in the text, which has {size} {what}, and hold at least one; number {number}"
            f" is from {start!r:.40} to {end!r:.40}{places.hint(end, unit)}",
        )
    first, last = places.character(start, unit), places.character(end, unit)
    if first is None or last is None:
        raise Unusable(
            "spans",
            f"must begin and end between characters; number {number} has "
            f"{start if first is None else end}, which is inside a character if {what} are "
            f"counted, as data.span_unit={unit} says",
        )
    return Span(first, last, named)


def _refuse_other_text(
    number: int, start: int, end: int, stated: str, places: "_Places", unit: str
) -> None:
    """Refuse a span whose text is not the one that it says it has."""
    there = places.between(start, end, unit)
    here = "not a part of the text" if there is None else show(there)
    fits = [one for one in SPAN_UNITS if places.between(start, end, one) == stated]
    advice = (
        f"it fits if {_UNITS_IN_WORDS[fits[0]]} are counted: say data.span_unit={fits[0]}"
        if fits
        else "it fits in no unit of data.span_unit: was the text changed after it was labeled?"
    )
    raise Unusable(
        "spans",
        f"must contain the text that they quote; number {number} quotes {show(stated)}, but from "
        f"{start} "
        f"to {end} in {_UNITS_IN_WORDS[unit]} there is {here}; {advice}",
    )


class _Places:
    """Places in a text by each unit; what is not needed is not counted."""

    def __init__(self, text: str):
        self._text = text
        self._plain = text.isascii()
        self._counted: dict[str, array[int]] = {}

    def size(self, unit: str) -> int:
        """How many units the text has."""
        if self._plain or unit == "code_points":
            return len(self._text)
        return self._boundaries(unit)[-1]

    def character(self, place: int, unit: str) -> int | None:
        """The number of the character that begins at a place, or ends there as the last one."""
        if not 0 <= place <= self.size(unit):
            return None
        if self._plain or unit == "code_points":
            return place
        boundaries = self._boundaries(unit)
        number = bisect_left(boundaries, place)
        return number if boundaries[number] == place else None

    def between(self, start: int, end: int, unit: str) -> str | None:
        """The text of a span; None where it is not one."""
        first, last = self.character(start, unit), self.character(end, unit)
        return None if first is None or last is None else self._text[first:last]

    def hint(self, end: int, unit: str) -> str:
        """What to say of a span that ends behind the text, and would not in another unit."""
        if end <= self.size(unit):
            return ""
        longer = [one for one in SPAN_UNITS if one != unit and 0 < end <= self.size(one)]
        if not longer:
            return ""
        words = " or ".join(_UNITS_IN_WORDS[one] for one in longer)
        return f" (if it counts {words}, say data.span_unit={longer[0]})"

    def _boundaries(self, unit: str) -> "array[int]":
        """Where each character begins in a unit, and where the last one ends."""
        if unit not in self._counted:
            width = partial(_width, unit=unit)
            self._counted[unit] = array("Q", accumulate(map(width, self._text), initial=0))
        return self._counted[unit]


def _width(character: str, unit: str) -> int:
    """How many units a character is long."""
    if unit == "utf16":
        return 1 + (character > "\uffff")
    return len(character.encode("utf-8"))
