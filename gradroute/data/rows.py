"""The rows of a file of examples: which fields they have, and what may stand in them."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple, NoReturn

from gradroute.data.jsonl import read_objects, refuse, shown
from gradroute.errors import DataError

_FIELDS = ("id", "text", "prompt", "label", "true_label")
# A label, null apart, in the bytes of a row that cannot be read, and how much of it may hang over
# the end of a piece.
_LABEL_IN_BYTES = re.compile(rb'"((?:true_)?label)"\s*:\s*[^\sn]')
_OVERHANG = 64


class Row(NamedTuple):
    """One row as it stands in the file; None is what the row leaves open."""

    line: int
    id: str | None
    text: str
    prompt: str
    label: str | None
    true_label: str | None


class BadRow(NamedTuple):
    """A row that cannot be used: where it stands and why."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class _Fields:
    """Which fields occurred: first line with and without each known one, and the unknown ones."""

    line_with: dict[str, int] = field(default_factory=dict)
    line_without: dict[str, int] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_line: dict[str, int] = field(default_factory=dict)


def read_rows(
    path: str | PathLike[str],
    digest: Callable[[bytes], None],
    labels: Sequence[str],
    max_row_bytes: int,
    *,
    skip_bad_rows: bool,
) -> tuple[list[Row], list[BadRow], list[str]]:
    """Read and check every row.

    Args:
        path: The file.
        digest: Is given every byte of the file.
        labels: The label names that are allowed.
        max_row_bytes: A longer row is refused.
        skip_bad_rows: Leave out a row that is wrong in itself. What only shows between rows is
            refused all the same, for nobody knows which of them is wrong.

    Returns:
        The rows, at least one; the bad ones; and a sentence for each thing that was passed over.

    Raises:
        DataError: If the file cannot be read, a row is wrong, or only some rows have labels.
    """
    fields, rows = _Fields(), list[Row]()
    skipped: list[BadRow] = []

    def skip(line: int, error: DataError) -> None:
        reason = str(error).removeprefix(f"{path}:{line}: ")
        skipped.append(BadRow(str(path), line, reason))

    def skip_unreadable(line: int, error: DataError, pieces: Iterator[bytes]) -> None:
        skip(line, error)
        before = b""
        for piece in pieces:
            for name in _LABEL_IN_BYTES.findall(before + piece):
                fields.line_with.setdefault(name.decode(), line)
            before = piece[-_OVERHANG:]

    on_bad_row = skip_unreadable if skip_bad_rows else None
    for line, values in read_objects(path, digest, max_row_bytes, on_bad_row):
        try:
            rows.append(_row(path, line, values, labels))
        except DataError as error:
            if not skip_bad_rows:
                raise
            skip(line, error)
            _count_fields(fields, line, values, used=False)
        else:
            _count_fields(fields, line, values, used=True)
    if not rows:
        _refuse_without_rows(path, skipped)
    _refuse_mixed(path, fields)
    _refuse_misspelt(path, fields)
    return rows, skipped, [*_skip_notes(path, rows, skipped), *_notes(path, fields)]


def _refuse_without_rows(path: str | PathLike[str], skipped: Sequence[BadRow]) -> NoReturn:
    if not skipped:
        refuse(path, 1, 'the file is empty: it needs one {"text": "..."} object per line')
    _, line, reason = skipped[0]
    refuse(path, line, f"{reason} (none of the {len(skipped)} rows can be used)")


def _count_fields(fields: _Fields, line: int, values: dict[str, Any], *, used: bool) -> None:
    """Count the fields of a row.

    A row that is skipped counts for what it has, so that a file does not look unlabelled for want
    of it, and not for what it lacks.
    """
    for name in _FIELDS:
        if values.get(name) is not None:
            fields.line_with.setdefault(name, line)
        elif used:
            fields.line_without.setdefault(name, line)
    for name in values:
        if name not in _FIELDS:
            fields.unknown[name] += used
            fields.unknown_line.setdefault(name, line)


def _row(
    path: str | PathLike[str], line: int, values: dict[str, Any], labels: Sequence[str]
) -> Row:
    text = _text(path, line, values, "text")
    if text is None:
        if "messages" in values:
            refuse(
                path,
                line,
                'text is missing, and chat rows ("messages") cannot be read yet: write one row per '
                "answer, the answer as text and all that stands before it as prompt",
            )
        names = ", ".join(shown(name) for name in list(values)[:5]) or "no fields"
        refuse(path, line, f"text is missing: every row needs one (this row has {names})")
    if not text.strip():
        refuse(path, line, "text is empty or blank: every row needs one to train on")
    number = values.get("id")
    if isinstance(number, int) and not isinstance(number, bool):  # common, and it loses nothing
        values = {**values, "id": str(number)}
    name = _text(path, line, values, "id")
    if name == "":
        refuse(path, line, "id is empty: give a unique name, or leave it out")
    known = [label for label in labels if label != "unlabeled"]
    return Row(
        line=line,
        id=name,
        text=text,
        prompt=_text(path, line, values, "prompt") or "",
        label=_label(path, line, values, "label", labels),
        true_label=_label(path, line, values, "true_label", known),
    )


def _text(path: str | PathLike[str], line: int, values: dict[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        refuse(path, line, f"{name} must be a text in quotes, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = shown(value[error.start])
        refuse(path, line, f"{name} holds half of a surrogate pair ({half}): remove it")
    return value


def _label(
    path: str | PathLike[str], line: int, values: dict[str, Any], name: str, known: Sequence[str]
) -> str | None:
    value = values.get(name)
    if value is None or (isinstance(value, str) and value in known):
        return value
    refuse(
        path,
        line,
        f"{name} is {shown(value)}, but must be one of {', '.join(known)}: write the name "
        "(true, false, 0 and 1 are never guessed)",
    )


def _refuse_mixed(path: str | PathLike[str], fields: _Fields) -> None:
    for name, advice in (("label", ' ("unlabeled" where it is unknown)'), ("true_label", "")):
        line, other = fields.line_without.get(name), fields.line_with.get(name)
        if line is not None and other is not None:
            what = f"no {name}, but line {other} has one: give one to every row{advice} or to none"
            refuse(path, line, what)


def _refuse_misspelt(path: str | PathLike[str], fields: _Fields) -> None:
    """Refuse `Label` or `prompts`: passing over them would train on something else."""
    for name, line in fields.unknown_line.items():
        if len(name) > 20:
            continue  # unlike any of them, and slow to compare
        for meant in ("label", "true_label", "prompt"):
            alike = difflib.SequenceMatcher(None, name.lower(), meant).ratio() > 0.85
            swapped = sorted(name.lower()) == sorted(meant)
            if (alike or swapped) and meant not in fields.line_with:
                refuse(path, line, f"unknown field {shown(name)}; if it is {meant}, rename it")


def _skip_notes(
    path: str | PathLike[str], rows: Sequence[Row], skipped: Sequence[BadRow]
) -> Iterator[str]:
    if skipped:
        total = len(rows) + len(skipped)
        _, line, reason = skipped[0]
        yield (
            f"{path}: {len(skipped)} of {total} rows cannot be used and are skipped, the first in "
            f"line {line}: {reason}."
        )


def _notes(path: str | PathLike[str], fields: _Fields) -> Iterator[str]:
    unknown = {name: count for name, count in fields.unknown.items() if count}
    if unknown:
        named = [f"{shown(name)} ({count} rows)" for name, count in sorted(unknown.items())]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        yield f"{path}: fields that are not read: {', '.join(named[:5])}{more}."
