"""Rows as Prodigy, Label Studio, doccano and Argilla export them, turned into plain ones.

A plain row has its text, label and spans in fields of their own. What these tools write around
them keeps its name and is counted as not read. Nothing is refused here: a row in which nothing is
recognized stays as it is.

The forms are those that the tools document, and that label-studio-sdk 2.1 and argilla 2.8 write:

- Prodigy: `spans`, `label` or `accept` beside `_input_hash`, and `answer`.
- Label Studio, JSON-MIN: a column per control of the interface, spans as a list of objects.
- Label Studio, JSON: `data`, and `annotations` with a `result` for each mark.
- doccano: `label`, `labels` or `entities`, spans as lists or objects.
- Argilla: `fields`, and `responses` by question, each with the value of every annotator; or the
  same flattened, with columns such as `question.responses`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gradroute.data.columns import Names
from gradroute.data.jsonl import strict_json
from gradroute.data.spans import are_spans

_ELSEWHERE = ("labels", "entities")
"""Columns that hold spans, or one label, where a row has none of its own."""

_RESPONSES = ".responses"

_TOOLS = ("data", "annotations", "fields", "responses", "_input_hash", "answer", "accept")


def says_more(column: str) -> bool:
    """Whether a column that is no field may say what a row of a labeling tool means."""
    return column in (*_ELSEWHERE, *_TOOLS) or _RESPONSES in column


class _Unfolded(NamedTuple):
    """What a row of a file stands for.

    Attributes:
        rows: Column -> value; more than one where several people labeled a text in one row.
        set_aside: What no label is taken from although it looks like one, in words each.
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
        set_aside: Counts what no label is taken from although it looks like one, in words each.
        cells: Whether the values are cells of a CSV file, where a list of spans is a text.
    """
    label = names.column_of.get("label", "")
    for line, values in table:
        if cells and (given := _spans_in(values.get(label))):
            values = {**values, label: given}
        found = _of_label_studio(values) or _of_argilla(values) or _of_prodigy(values, names)
        rows, aside = found or _Unfolded([values])
        set_aside.update(aside)
        for row in rows:
            yield line, _with_fields(row, names, found is not None)


def _of_label_studio(values: Mapping[str, Any]) -> _Unfolded | None:
    """Rows of a task of Label Studio, one per annotation; None for any other row."""
    data, annotations = values.get("data"), values.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return None
    if not all(isinstance(one, dict) and isinstance(one.get("result"), list) for one in annotations):
        return None
    rest = {key: value for key, value in values.items() if key not in ("data", "annotations")}
    kept = [one for one in annotations if not one.get("was_cancelled")]
    rows = [{**rest, **data, **_marks(one["result"])} for one in kept]
    skipped = len(annotations) - len(kept)
    aside = ("annotations that their annotator skipped (was_cancelled)",) * skipped
    return _Unfolded(rows or [{**rest, **data}], aside)


def _marks(result: list[Any]) -> dict[str, Any]:
    """Control -> what was marked with it: spans, chosen labels, or another value."""
    marks: dict[str, Any] = {}
    for one in result:
        name, value = (one.get("from_name"), one.get("value")) if isinstance(one, dict) else ("", 0)
        if not isinstance(name, str) or not isinstance(value, dict):
            continue
        if "start" in value or "end" in value:
            marks.setdefault(name, []).append(value)
        else:
            marks[name] = next(iter(value.values()), None)  # {"choices": ["bad"]}
    return marks


def _of_argilla(values: Mapping[str, Any]) -> _Unfolded | None:
    """Rows of a record of Argilla, one per annotator; None for any other row."""
    fields, responses = values.get("fields"), values.get("responses")
    by_user: dict[Any, dict[str, Any]] = defaultdict(dict)
    if isinstance(fields, dict) and isinstance(responses, dict):
        rest = {key: value for key, value in values.items() if key not in ("fields", "responses")}
        for question, given in responses.items():
            for one in given if isinstance(given, list) else ():
                if isinstance(one, dict):
                    by_user[one.get("user_id")][question] = one.get("value")
        return _Unfolded([{**rest, **fields, **one} for one in by_user.values()] or [rest | fields])
    questions = [
        name.removesuffix(_RESPONSES)
        for name in values
        if name.endswith(_RESPONSES) and f"{name}.users" in values
    ]
    if not questions:
        return None
    discarded: set[Any] = set()
    read: set[str] = set()
    for question in questions:
        column = f"{question}{_RESPONSES}"
        read |= {column, f"{column}.users", f"{column}.status"}
        given, users = values[column] or [], values[f"{column}.users"] or []
        for at, (value, user) in enumerate(zip(given, users, strict=False)):
            by_user[user][question] = value
            if (values.get(f"{column}.status") or ["submitted"] * len(users))[at] == "discarded":
                discarded.add(user)
    rest = {key: value for key, value in values.items() if key not in read}
    rows = [{**rest, **one} for user, one in by_user.items() if user not in discarded]
    return _Unfolded(rows or [rest], ("responses that are discarded",) * len(discarded))


def _of_prodigy(values: dict[str, Any], names: Names) -> _Unfolded | None:
    """The row of a task of Prodigy; None for any other row.

    What was rejected or ignored is no label: the row is unlabeled.
    """
    answer = values.get("answer")
    if "_input_hash" not in values or answer not in ("accept", "reject", "ignore"):
        return None
    row = {key: value for key, value in values.items() if key != "answer"}
    label, spans = (names.column_of.get(field) for field in ("label", "spans"))
    if answer != "accept":
        for column in (label, spans, "accept"):
            row.pop(column or "", None)
        if label is not None and values.get(label) is not None:
            row[label] = _unlabeled(names)
        return _Unfolded([row], (f"rows with the answer {answer}",))
    if label is not None and label not in row and isinstance(row.get("accept"), list):
        row[label] = row.pop("accept")
    return _Unfolded([row])


def _unlabeled(names: Names) -> str | None:
    """What stands in this file for the label `unlabeled`; None where nothing does."""
    if names.label_map is None:
        return "unlabeled" if "unlabeled" in names.labels else None
    return next((key for key, label in names.label_map.items() if label == "unlabeled"), None)


def _with_fields(values: dict[str, Any], names: Names, tool: bool) -> dict[str, Any]:
    """A row with spans in the column of spans, where they stand in that of labels or elsewhere.

    Args:
        values: Column -> value.
        names: How columns are called.
        tool: Whether the row is known to come from a labeling tool, so that a column of spans by
            any name may be what was labeled.
    """
    label, spans = (names.column_of.get(field) for field in ("label", "spans"))
    if spans is None or values.get(spans) is not None:
        return values
    given = values.get(label) if label is not None else None
    if label is not None and isinstance(given, list) and _no_names(given):
        row = {**values, spans: given}
        del row[label]
        return row
    if given is not None:
        return values
    for column in _ELSEWHERE:
        value = values.get(column)
        if column in names.columns or value is None:
            continue
        if value == [] or are_spans(value):
            row = {**values, spans: value}
            del row[column]
            return row
        if label is not None and _one_name(value):
            row = {**values, label: value}
            del row[column]
            return row
    marked = [name for name, value in values.items() if are_spans(value)] if tool else []
    if len(marked) == 1 and marked[0] not in names.columns:
        row = {**values, spans: values[marked[0]]}
        del row[marked[0]]
        return row
    return values


def _spans_in(cell: Any) -> list[Any] | None:
    """The spans that a cell holds, written as JSON; None where it holds something else."""
    try:
        value = strict_json(cell) if isinstance(cell, str) and cell.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value if are_spans(value) else None


def _no_names(value: list[Any]) -> bool:
    """Whether a list in the column of labels holds spans (or nothing), and no names of labels."""
    return all(isinstance(one, list | dict) for one in value)


def _one_name(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
