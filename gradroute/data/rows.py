"""Rows of files of examples: their fields, and the rules for each."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import fspath
from typing import Any, NamedTuple, NoReturn

from gradroute.data.chat import Renderer
from gradroute.data.chat_rows import chat_notes, conversation, count_chat, wrap_prompt
from gradroute.data.columns import Names, nearest
from gradroute.data.examples import hash_id
from gradroute.data.fields import (
    Unusable,
    read_group,
    read_id,
    read_label,
    read_text,
    read_weight,
)
from gradroute.data.formats import read_table
from gradroute.data.jsonl import FilePath, refuse, show
from gradroute.data.labeling_tools import plain_rows
from gradroute.data.row import BadRow, Place, Row
from gradroute.data.spans import read_spans, unread_keys
from gradroute.errors import DataError

_IN_JSON = ("weight", "spans", "messages", "tools")  # in a cell of a CSV file
_TEXTS = ("text", "completion", "messages")
_ELSEWHERE = {
    **{
        name: f"; if {name} are messages, say data.columns={{messages: {name}}}"
        for name in ("conversations", "conversation")
    },
    "chosen": "; of a pair of answers make two rows, each with prompt, completion and label",
}
"""What rows of other forms have in place of a text, and what to do with them."""
_MISSPELT = ("label", "true_label", "prompt", "weight", "spans")


class Rows(NamedTuple):
    """What files held: rows, the bad ones, and a sentence for each thing that was passed over."""

    rows: list[Row]
    skipped: list[BadRow]
    notes: list[str]
    sha256: str


class Rules(NamedTuple):
    """How rows are read.

    Attributes:
        names: How columns and labels are called.
        chat: Loads what makes texts of conversations, when the first one is met.
        max_row_bytes: A longer row is refused.
        most: Stop after so many rows that can be used; None reads all.
        skip_bad_rows: Leave out a row that is wrong in itself. What only shows between rows is
            refused all the same, for nobody knows which of them is wrong.
    """

    names: Names
    chat: Callable[[], Renderer]
    max_row_bytes: int
    most: int | None
    skip_bad_rows: bool


@dataclass(slots=True)
class _Found:
    """What occurred: rows, first place with and without each field, columns that are not read."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[BadRow] = field(default_factory=list)
    with_it: dict[str, Place] = field(default_factory=dict)
    without_it: dict[str, Place] = field(default_factory=dict)
    columns: dict[str, Place] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    taken_for: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)


def read_rows(files: Iterable[FilePath], rules: Rules) -> Rows:
    """Read and check every row of files that belong together, such as the parts of a data set.

    Returns:
        At least one row.

    Raises:
        DataError: A file cannot be read, a row is wrong, or only some rows have labels.
        MachineError: The library for a file's format is not installed.
    """
    digest, found, first = hashlib.sha256(), _Found(), None
    for path in files:
        first = first or path
        _read_file(path, digest.update, rules, found)
        if found.told["rows"] == rules.most:
            break
    if first is None:
        raise ValueError("at least one file is needed")
    _refuse_missing(first, found, rules.names)
    if not found.rows:
        _refuse_without_rows(first, found)
    _refuse_mixed(found)
    _refuse_misspelt(found, rules.names)
    notes = [*_skip_notes(found), *_notes(first, found)]
    return Rows(found.rows, found.skipped, notes, digest.hexdigest())


def _read_file(
    path: FilePath, digest: Callable[[bytes], None], rules: Rules, found: _Found
) -> None:
    column_of = rules.names.column_of
    labels = {column_of[name]: name for name in ("label", "true_label") if name in column_of}
    json_columns = [column_of[name] for name in _IN_JSON if name in column_of]

    def skip(place: Place, error: DataError) -> None:
        reason = str(error).removeprefix(f"{place.file}:{place.line}: ")
        found.skipped.append(BadRow(place.file, place.line, reason))

    def skip_unreadable(line: int, error: DataError, columns: Iterable[str]) -> None:
        place = Place(str(path), line)
        skip(place, error)
        for column in columns:
            if column in labels:
                found.with_it.setdefault(labels[column], place)

    def refuse_unreadable(_: int, error: DataError, columns: Iterable[str]) -> NoReturn:
        raise DataError(
            f"{error}. Correct the row, or set data.on_bad_row=skip to leave such rows out."
        ) from error

    table = read_table(
        path,
        digest,
        rules.max_row_bytes,
        rules.names.columns,
        json_columns,
        labels,
        skip_unreadable if rules.skip_bad_rows else refuse_unreadable,
    )
    cells = fspath(path).lower().endswith(".csv")
    for line, values in plain_rows(table, rules.names, found.set_aside, cells=cells):
        place = Place(str(path), line)
        fields = {name: values[at] for name, at in column_of.items() if at in values}
        try:
            rows = _rows(place, fields, list(values), rules)
        except DataError as error:
            if not rules.skip_bad_rows:
                raise
            skip(place, error)
            _count_fields(found, rules.names, place, fields, values, None)
        else:
            found.rows += rows
            _count_fields(found, rules.names, place, fields, values, rows[0] if rows else None)
            count_chat(found.told, found.unread, fields, rows, rules.chat)
            if found.told["rows"] == rules.most:
                break


def _refuse_without_rows(path: FilePath, found: _Found) -> NoReturn:
    skipped = found.skipped
    if not skipped and found.set_aside:
        left = ", ".join(f"{count} {what}" for what, count in sorted(found.set_aside.items()))
        refuse(path, 1, f"no row is left to train on: {left}")
    if found.told["unlearned"]:
        what = f"none of the {found.told['unlearned']} conversations has an answer to learn"
        refuse(path, 1, f"{what}: all are marked not to be learned. Mark some that are")
    if not skipped:
        needed = 'one {"text": "..."} object per line'
        if fspath(path).lower().endswith((".csv", ".parquet")):
            needed = "columns, one of them text, and at least one row"
        refuse(path, 1, f"the file is empty: it needs {needed}")
    file, line, reason = skipped[0]
    refuse(file, line, f"{reason} (none of the {len(skipped)} rows can be used)")


def _refuse_missing(path: FilePath, found: _Found, names: Names) -> None:
    """Refuse a column that a config names and no row has: it may be misspelled."""
    for name, column in names.renamed.items():
        if found.columns and column not in found.columns:
            hint = nearest(column, found.columns)
            refuse(
                path,
                1,
                f"no row has the column {show(column)}, from which {names.setting(name)} reads "
                f"{name}{hint}; there are {_listed(found.columns)}. Name one of these, or leave "
                f"{name} out of {names.setting(name)}",
            )


def _count_fields(
    found: _Found,
    names: Names,
    place: Place,
    fields: dict[str, Any],
    columns: Iterable[str],
    row: Row | None,
) -> None:
    """Count the fields of a row; None for one that is skipped.

    A row that is skipped counts for what it has, so that a file does not look unlabeled for want
    of it, and not for what it lacks.
    """
    labels = {"label": row and row.label, "true_label": row and row.true_label}
    for name, label in labels.items():
        if fields.get(name) is not None or label is not None:
            found.with_it.setdefault(name, place)
        elif row is not None:
            found.without_it.setdefault(name, place)
    for name in _MISSPELT:
        if fields.get(name) is not None:
            found.with_it.setdefault(name, place)
    for column in columns:
        found.columns.setdefault(column, place)
        if column not in names.columns:
            found.unread[column] += row is not None
    if row is None:
        return
    found.unread.update(f"spans.{key}" for key in unread_keys(fields.get("spans")))
    if row.label is not None and fields.get("label") is None:
        found.taken_for[row.label] += 1


def _check_alone(fields: dict[str, Any]) -> None:
    for name, instead in (("prompt", "the first messages"), ("spans", "the label of a message")):
        if fields.get(name) not in (None, [], ""):
            raise Unusable(name, f"and messages are in one row: use {instead} instead")


def _rows(place: Place, fields: dict[str, Any], columns: Sequence[str], rules: Rules) -> list[Row]:
    """What a row of a file, from field -> value, is read as: one row, or one for each answer."""
    try:
        kinds = [name for name in _TEXTS if fields.get(name) is not None]
        if len(kinds) > 1:
            raise Unusable(kinds[0], f"and {kinds[1]} are in one row: a row has one of them")
        if kinds == ["messages"]:
            _check_alone(fields)
            rows = conversation(place, fields, rules.names, rules.chat())
        else:
            rows = [_plain(place, kinds[0] if kinds else "text", fields, columns, rules)]
        own, weight, group = read_id(fields), read_weight(fields), read_group(fields)
        label = read_label("label", fields.get("label"), rules.names)
        true_label = read_label("true_label", fields.get("true_label"), rules.names)
        return [
            row._replace(
                id=own and own + row.hashed.removeprefix(row.group) if row.group else own,
                group=group or (own or row.group if row.group else ""),
                label=label,
                true_label=true_label,
                weight=weight * row.weight,
            )
            for row in rows
        ]
    except Unusable as error:
        refuse(place.file, place.line, f"{rules.names.shown(error.field)} {error.what}")


def _plain(
    place: Place, kind: str, fields: dict[str, Any], columns: Sequence[str], rules: Rules
) -> Row:
    if kind == "completion" and isinstance(fields.get(kind), list):
        raise Unusable(kind, "is a list, and must be a text: write a conversation in messages")
    text = read_text(fields, kind)
    if text is None:
        has = _listed(columns) or "no fields"
        hint = nearest(rules.names.column_of.get("text", "text"), columns)
        hint += next((what for name, what in _ELSEWHERE.items() if name in columns), "")
        raise Unusable("text", f"is missing: every row needs one (this row has {has}){hint}")
    if not text.strip():
        raise Unusable(kind, "is empty or blank: every row needs one to train on")
    prompt = read_text(fields, "prompt")
    if kind == "completion" and prompt is None:
        raise Unusable("prompt", "is missing: a row with a completion needs one")
    for name, value in ((kind, text), ("prompt", prompt or "")):
        if len(value) > rules.max_row_bytes:  # only Parquet has such rows at all
            raise Unusable(name, f"is longer than {rules.max_row_bytes} characters: shorten it")
    spans, hashed = read_spans(fields, text, rules.names), hash_id([prompt or "", text])
    asked = prompt if kind == "completion" and prompt and prompt.strip() else ""
    if asked and (row := wrap_prompt(place, rules.chat(), asked, text, spans)):
        return row._replace(hashed=hashed)
    return Row(
        place=place,
        id=None,
        text=text,
        prompt=prompt or "",
        label=None,
        true_label=None,
        hashed=hashed,
        spans=spans,
    )


def _refuse_mixed(found: _Found) -> None:
    for name, advice in (("label", ' ("unlabeled" where it is unknown)'), ("true_label", "")):
        place, other = found.without_it.get(name), found.with_it.get(name)
        if place is not None and other is not None:
            there = f"line {other.line}" + (f" of {other.file}" * (other.file != place.file))
            what = f"no {name}, but {there} has one: give one to every row{advice} or to none"
            if name == "label":
                what += ", or give the meaning of null in data.label_map"
            refuse(place.file, place.line, what)


def _refuse_misspelt(found: _Found, names: Names) -> None:
    """Refuse `Label` or `prompts`: passing over them would train on something else."""
    for column, place in found.columns.items():
        if column in names.columns or len(column) > 20:
            continue  # what is long is unlike any of them, and slow to compare
        for meant in _MISSPELT:
            alike = difflib.SequenceMatcher(None, column.lower(), meant).ratio() > 0.85
            swapped = sorted(column.lower()) == sorted(meant)
            if (alike or swapped) and meant not in found.with_it:
                what = f"unknown field {show(column)}; if it is {meant}, rename it"
                refuse(place.file, place.line, what)


def _skip_notes(found: _Found) -> Iterator[str]:
    if found.skipped:
        total = len(found.rows) + len(found.skipped)
        file, line, reason = found.skipped[0]
        yield (
            f"{file}: {len(found.skipped)} of {total} rows cannot be used and are skipped, the "
            f"first in line {line}: {reason}."
        )


def _notes(path: FilePath, found: _Found) -> Iterator[str]:
    unread = {name: count for name, count in found.unread.items() if count}
    if unread:
        named = [f"{show(name)} ({count} rows)" for name, count in sorted(unread.items())]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        yield f"{path}: fields that are not read: {', '.join(named[:5])}{more}."
    for what, count in sorted(found.set_aside.items()):
        yield f"{path}: {count} {what}."
    for label, count in found.taken_for.items():
        yield f"{path}: {count} rows without a label are taken for {label} (data.label_map)."
    yield from chat_notes(path, found.told)


def _listed(columns: Iterable[str]) -> str:
    """The first names of some, and how many more there are."""
    names = [show(name) for name in columns]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
