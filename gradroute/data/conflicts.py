"""One text in several rows: the annotations of several people, combined."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from gradroute.data.jsonl import refuse, show
from gradroute.data.row import Row
from gradroute.errors import ConfigError

Value = TypeVar("Value")

ON_CONFLICT = ("refuse", "majority", "unlabeled")
"""What rows with one text and different labels may mean."""


def one_row_per_text(
    rows: Sequence[Row], on_conflict: str, labels: Sequence[str]
) -> tuple[list[Row], list[str]]:
    """Make one row of all that have the same prompt and text.

    An annotation is a label with all spans: rows that agree on the label and differ in one span
    differ. With `majority` the annotation holds that most rows give; where several are given most
    often, and with `unlabeled` wherever rows differ, the row is unlabeled and has no spans. True
    labels are counted by themselves; they cannot be unlabeled, so they must have a majority.

    Args:
        rows: At least one.
        on_conflict: "majority" or "unlabeled".
        labels: The labels of the routing table.

    Returns:
        The rows in order of the first of each text, and sentences with counts.

    Raises:
        ConfigError: Another choice, or a table without the label `unlabeled`.
        DataError: The true labels of one text contradict each other.
    """
    if on_conflict not in ON_CONFLICT:
        raise ConfigError(
            f"data.on_conflict must be one of {', '.join(ON_CONFLICT)}, got {show(on_conflict)}."
        )
    if "unlabeled" not in labels:
        raise ConfigError(
            f"data.on_conflict={on_conflict} makes texts unlabeled, and the routing table has no "
            "label unlabeled: set it to refuse."
        )
    by_text: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_text.setdefault((row.prompt, row.text), []).append(row)
    merged: list[Row] = []
    several = differ = undecided = 0
    for same in by_text.values():
        row, agreed, decided = _merged(same, on_conflict)
        merged.append(row)
        several += len(same) > 1
        differ += not agreed
        undecided += not decided
    if not several:
        return merged, []
    said = [f"{len(rows)} rows have {len(merged)} texts; one row is kept of each."]
    if differ:
        said.append(
            f"{differ} texts have rows with different labels: {differ - undecided} are labeled as "
            f"most of their rows are, {undecided} are unlabeled (data.on_conflict={on_conflict})."
        )
    return merged, said


def _merged(same: Sequence[Row], on_conflict: str) -> tuple[Row, bool, bool]:
    """One row of those of a text; whether they agree, and whether one annotation holds."""
    ids = sorted(row.id for row in same if row.id is not None)
    annotations = Counter((row.label, row.spans) for row in same)
    agreed = len(annotations) == 1
    won = _most_common(annotations) if agreed or on_conflict == "majority" else None
    kept = same[0] if won is None else next(row for row in same if (row.label, row.spans) == won)
    if won is None:
        label = None if all(row.label is None for row in same) else "unlabeled"
        kept = kept._replace(label=label, spans=())
    true_labels = Counter(row.true_label for row in same)
    true_label = (
        _most_common(true_labels) if len(true_labels) == 1 or on_conflict == "majority" else None
    )
    if true_label is None and len(true_labels) > 1:
        _refuse_true_labels(same)
    row = kept._replace(id=ids[0] if ids else None, true_label=true_label, place=same[0].place)
    return row, agreed, won is not None


def _most_common(counts: Counter[Value]) -> Value | None:
    """What was counted most often; None where several were."""
    (first, most), *others = counts.most_common(2)
    return None if others and others[0][1] == most else first


def _refuse_true_labels(same: Sequence[Row]) -> None:
    first = same[0]
    other = next(row for row in same if row.true_label != first.true_label)
    file, line = other.place
    given = " and ".join(sorted({str(row.true_label) for row in same}))
    refuse(
        file,
        line,
        f"the text {show(first.text)} has the true labels {given}, and no majority: keep one "
        "(a true label cannot be unlabeled)",
    )
