"""Rows in the export formats of Prodigy, Label Studio, doccano and Argilla, made plain ones.

A plain row has its text, label and spans in fields of their own. What these tools write around
them keeps its name and is counted as not read. Nothing is refused here: a row in which nothing is
recognized stays as it is.

The forms are those that the tools document, and that label-studio-sdk 2.1 and argilla 2.8 write:

- Prodigy: `spans`, `label` or `accept` beside `_input_hash`, and `answer`.
- Label Studio, JSON-MIN: a column per control of the interface, spans as a list of objects.
- Label Studio, JSON: `data`, and `annotations` with a `result` for each mark.
- doccano: `label`, `labels` or `entities`, spans as lists or objects; before version 1,
  `annotations` of the text, each with its user.
- Argilla: see `argilla`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gradroute.data.argilla import RESPONSES, annotator, rows_of_record
from gradroute.data.columns import Names
from gradroute.data.jsonl import show, strict_json
from gradroute.data.spans import are_spans, is_place

_ENTITIES = "entities"
_ELSEWHERE = ("labels", _ENTITIES)
"""Columns that hold spans, or one label, where a row has none of its own."""

_TOOLS = (
    *("data", "annotations"),
    *("fields", "responses"),
    *("_input_hash", "answer", "accept"),
    "relations",
)


def says_more(column: str) -> bool:
    """Whether a column that is no field may say what a row of a labeling tool means."""
    return column in (*_ELSEWHERE, *_TOOLS) or RESPONSES in column


class _Unfolded(NamedTuple):
    """What a row of a file stands for.

    Attributes:
        rows: Column -> value; more than one where several people labeled a text in one row.
        set_aside: See `plain_rows`.
    """

    rows: list[dict[str, Any]]
    set_aside: tuple[str, ...] = ()


def plain_rows(
    table: Iterable[tuple[int, dict[str, Any]]],
    names: Names,
    set_aside: Counter[str],
    *,
    cells: bool,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file as (line, column -> value), those of labeling tools in plain form.

    Args:
        table: The same, as they stand in the file.
        names: How columns are called.
        set_aside: Counts what is left out although it looks like a label; each is a sentence
            without the number that it begins with.
        cells: Whether the values are cells of a CSV file, where a list of spans is a text.
    """
    label = names.column_of.get("label", "")
    for line, values in table:
        if cells and (given := _spans_in(values.get(label))):
            values = {**values, label: given}
        found = (
            _of_label_studio(values)
            or _of_argilla(values)
            or _of_prodigy(values, names)
            or _of_doccano(values, names)
        )
        rows, aside = found or _Unfolded([values])
        set_aside.update(aside)
        plain = [_with_fields(row, names, found is not None, set_aside) for row in rows]
        if plain[1:] and all(row == plain[0] for row in plain):
            set_aside["texts have several annotations that agree, and are read once"] += 1
            plain = plain[:1]
        for row in plain:
            if found is not None and row.get(label) is None:
                _say_other_labels(row, names, set_aside)
            yield line, row


def _of_label_studio(values: Mapping[str, Any]) -> _Unfolded | None:
    """Rows of a task of Label Studio, one per annotation; None for any other row."""
    data, annotations = values.get("data"), values.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return None
    if not all(
        isinstance(one, dict) and isinstance(one.get("result"), list) for one in annotations
    ):
        return None
    rest = {key: value for key, value in values.items() if key not in ("data", "annotations")}
    kept = [one for one in annotations if not one.get("was_cancelled")]
    marked = [_marks(one["result"]) for one in kept]
    rows = [{**rest, **data, **marks} for marks, _ in marked]
    skipped, unread = len(annotations) - len(kept), sum(unread for _, unread in marked)
    aside = ("annotations that their annotator skipped are left out (was_cancelled)",) * skipped
    aside += (
        "marks are no characters of a text (paths, times, pictures) and are left out",
    ) * unread
    return _Unfolded(rows or [{**rest, **data}], aside)


def _marks(result: list[Any]) -> tuple[dict[str, Any], int]:
    """Control -> what was marked with it: spans, chosen labels, or another value.

    Returns:
        The marks, and how many are of places that are no characters of a text.
    """
    marks: dict[str, Any] = {}
    unread = 0
    for one in result:
        name, value = (one.get("from_name"), one.get("value")) if isinstance(one, dict) else ("", 0)
        if not isinstance(name, str) or not isinstance(value, dict):
            continue
        if value.get("start") is not None or value.get("end") is not None:
            # In a hypertext the places are paths; its own offsets are counted in all of its text.
            places = value.get("globalOffsets")
            span = {**value, **places} if isinstance(places, dict) else value
            if is_place(span.get("start")) and span.get("paragraphlabels") is None:
                marks.setdefault(name, []).append(span)
            else:
                unread += 1
        else:  # {"choices": ["bad"]}
            marks[name] = next((one for one in value.values() if one is not None), None)
    return marks, unread


def _of_argilla(values: Mapping[str, Any]) -> _Unfolded | None:
    """Rows of a record of Argilla, one per annotator; None for any other row."""
    found = rows_of_record(values)
    if found is None:
        return None
    rows, unsubmitted = found
    aside = ("responses that were not submitted (discarded, drafts) are left out",) * unsubmitted
    return _Unfolded(rows, aside)


def _of_prodigy(values: dict[str, Any], names: Names) -> _Unfolded | None:
    """The row of a task of Prodigy; None for any other row.

    A task that was rejected or ignored says nothing about its text, so it is left out.
    """
    answer = values.get("answer")
    if "_input_hash" not in values or answer not in ("accept", "reject", "ignore"):
        return None
    if answer != "accept":
        return _Unfolded([], (f"rows with the answer {answer} are left out",))
    row = {key: value for key, value in values.items() if key != "answer"}
    label = names.column_of.get("label")
    if label is not None and row.get(label) is None and isinstance(row.get("accept"), list):
        return _Unfolded([_moved(row, "accept", label)])
    return _Unfolded([row])


def _of_doccano(values: dict[str, Any], names: Names) -> _Unfolded | None:
    """The rows of a text that was labeled in doccano; None for any other row.

    Before version 1 there is a list of annotations: spans, or labels of the text, of any user.
    """
    if isinstance(values.get("relations"), list) and isinstance(values.get(_ENTITIES), list):
        return _Unfolded([values])
    given = values.get("annotations")
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(one, dict) and {"label", "user"} <= one.keys() for one in given)
    ):
        return None
    rest = {key: value for key, value in values.items() if key != "annotations"}
    by_user: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for at, one in enumerate(given):
        by_user[annotator(one["user"], at)].append(one)
    rows = []
    for own in by_user.values():
        if all("start_offset" in one for one in own):
            rows.append({**rest, names.column_of.get("spans", _ENTITIES): own})
        else:
            labels = [one["label"] for one in own]
            column = names.column_of.get("label", "label")
            rows.append({**rest, column: labels[0] if len(labels) == 1 else labels})
    return _Unfolded(rows)


def _with_fields(
    values: dict[str, Any], names: Names, tool: bool, set_aside: Counter[str]
) -> dict[str, Any]:
    """A row with spans in the column of spans, where they stand in that of labels or elsewhere.

    Args:
        values: Column -> value.
        names: How columns are called.
        tool: Whether the row is known to come from a labeling tool, so that a column of spans by
            any name may be what was labeled.
        set_aside: As for `plain_rows`.
    """
    label, spans = (names.column_of.get(field, "") for field in ("label", "spans"))
    messages = values.get(names.column_of.get("messages", ""))
    if not spans or values.get(spans) is not None or messages is not None:
        return values
    given = values.get(label)
    if isinstance(given, list) and all(isinstance(one, list | dict) for one in given):
        return {**values, spans: given, label: None}
    if given is not None:
        return values
    others = [name for name in _ELSEWHERE if name not in names.columns and name in values]
    for name in others:
        if are_spans(values[name]):
            if name == _ENTITIES and not tool and not _known(values[name], names):
                set_aside[
                    "rows have entities with labels that the table lacks, and stay as is"
                ] += 1
                continue
            return _moved(values, name, spans)
        if label and _one_name(values[name]):
            return _moved(values, name, label)
    empty = [name for name in others if values[name] == []]
    marked = [name for name, value in values.items() if tool and are_spans(value)]
    if len(marked) == 1 and marked[0] not in names.columns:
        return _moved(values, marked[0], spans)
    return _moved(values, empty[0], spans) if empty else values


def _moved(values: Mapping[str, Any], column: str, to: str) -> dict[str, Any]:
    row = {**values, to: values[column]}
    del row[column]
    return row


def _say_other_labels(row: Mapping[str, Any], names: Names, set_aside: Counter[str]) -> None:
    """Count a row without a label of which another column holds one."""
    labels = names.labels if names.label_map is None else names.label_map
    for name, value in row.items():
        one = value[0] if _one_name(value) else value
        if name not in names.columns and isinstance(one, str) and one in labels:
            set_aside[
                f"rows have a label in {show(name)}, which is not read: to read it, say "
                f"data.columns={{label: {name}}}"
            ] += 1


def _known(spans: list[Any], names: Names) -> bool:
    """Whether the label of any span is one that this file may have."""
    labels = names.labels if names.label_map is None else names.label_map
    return any(
        label in labels
        for span in spans
        for label in (span.values() if isinstance(span, dict) else span)
        if isinstance(label, str)
    )


def _spans_in(cell: Any) -> list[Any] | None:
    """The spans that a cell holds, written as JSON; None where it holds something else."""
    try:
        value = strict_json(cell) if isinstance(cell, str) and cell.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value if are_spans(value) else None


def _one_name(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
