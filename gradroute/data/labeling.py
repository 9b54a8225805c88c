"""Labels for a file: a score for every row, a rule from scores to labels, the rows written back.

    score   how bad a row looks: a match (1 or 0), a column's number, a classifier's probability
    rule    a score of `bad_above` and more is bad, of `good_below` and less good, else unlabeled

A row without a score (a column that is empty, a text too short to judge) is unlabeled: nothing is
guessed. What is known better, in `true_label`, is never looked at when a label is chosen, only when
the labels are counted.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradroute.data.behaviors import get_behavior
from gradroute.data.jsonl import refuse, show
from gradroute.data.label_files import LABEL, Table, TableRow, is_csv, read_table
from gradroute.errors import ConfigError, DataError
from gradroute.system.files import write_bytes, write_json
from gradroute.system.statistics import wilson

SCHEMA_VERSION = 1
"""Of the report."""
FIELDS = ("text", "prompt", "completion", "messages")
"""What of a row can be looked at."""
EXAMPLES = 3
"""Rows of each label that the report names."""

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)

Scores = Callable[[Path, Sequence[TableRow]], list[float | None]]
"""Gives each row of a file its score, None where it has none; raises a DataError with the line."""


@dataclass(frozen=True)
class Rule:
    """What a score means.

    Attributes:
        bad_above: A row with this score or more is bad.
        good_below: One with this score or less is good; None for no such thing.
        rest_good: Every other row that has a score is good too, rather than unlabeled.
    """

    bad_above: float
    good_below: float | None = None
    rest_good: bool = False

    def __post_init__(self) -> None:
        """Refuse bounds that leave no room between them."""
        for name, bound in (("bad-above", self.bad_above), ("good-below", self.good_below)):
            if bound is not None and not math.isfinite(bound):
                raise ConfigError(f"--{name} must be a finite number, got {bound}.")
        if self.good_below is None:
            return
        if self.rest_good:
            raise ConfigError(
                "--rest good and --good-below both choose the good rows; give one of them."
            )
        if self.good_below >= self.bad_above:
            raise ConfigError(
                f"--good-below {self.good_below:g} must be less than --bad-above "
                f"{self.bad_above:g}: a row would be good and bad at once."
            )

    def label(self, score: float | None) -> str:
        """The label of a row with this score."""
        if score is None:
            return "unlabeled"
        if score >= self.bad_above:
            return "bad"
        low = self.good_below is not None and score <= self.good_below
        return "good" if low or self.rest_good else "unlabeled"


def label_file(
    path: Path,
    out: Path,
    scores: Scores,
    rule: Rule,
    *,
    source: Mapping[str, Any],
    overwrite: bool,
    report: Path | None,
) -> dict[str, Any]:
    """Write a file again with a label in every row, all else as it was, in the same order.

    Args:
        path: The file, JSONL or CSV.
        out: The labeled file, of the same format; it must not be there yet.
        scores: Scores the rows.
        rule: Makes labels of scores.
        source: Where the scores come from, for the report.
        overwrite: Replace labels that rows have.
        report: Where the report is written as JSON; None for nowhere.

    Returns:
        The report: counts, and how good the labels are where rows have a `true_label`.

    Raises:
        ConfigError: A file is there already, or the formats differ.
        DataError: The file cannot be read, a row cannot be scored or has a label already.
        MachineError: The disk refuses.
    """
    _check_places(path, out, report)
    table = read_table(path)
    if not overwrite:
        _refuse_labels(path, table)
    truths = [_true_label(path, row) for row in table.rows]
    found = scores(path, table.rows)
    labels = [rule.label(score) for score in found]
    counted = {
        "schema_version": SCHEMA_VERSION,
        "file": path.name,
        "sha256": table.sha256,
        "source": dict(source),
        "bad_above": rule.bad_above,
        "good_below": rule.good_below,
        "rest": "good" if rule.rest_good else "unlabeled",
        "rows": len(labels),
        "without_score": sum(score is None for score in found),
        "labels": _counts(table.rows, labels),
        **_label_quality(labels, truths),
    }
    write_bytes(out, table.with_labels(labels))
    if report:
        write_json(report, counted)
    return counted


def column_scores(name: str) -> Scores:
    """Scores that stand in a column; one that is missing, null or empty is no score."""

    def scores(path: Path, rows: Sequence[TableRow]) -> list[float | None]:
        if not any(name in row.values for row in rows):
            there = ", ".join(show(key) for key in list(rows[0].values)[:8])
            refuse(path, rows[0].line, f"no row has a column {show(name)}; this one has {there}")
        return [_number(path, row, name) for row in rows]

    return scores


def behavior_scores(option: str, behavior: str, field: str) -> Scores:
    """1 for a row that shows a behavior, 0 for one that does not, None where it cannot be judged.

    Args:
        option: What errors call the source, such as `--regex`.
        behavior: What `gradroute.data.behaviors.get_behavior` takes.
        field: What of a row is looked at, one of `FIELDS`.

    Raises:
        ConfigError: There is no such behavior.
    """
    try:
        found = get_behavior(behavior)
    except ConfigError as error:  # it speaks of a configuration
        text = str(error).replace("behavior: ", f"{option}: ", 1)
        raise ConfigError(text) from error

    def scores(path: Path, rows: Sequence[TableRow]) -> list[float | None]:
        judged: list[float | None] = []
        for row in rows:
            text, prompt = text_of(path, row, field)
            try:
                shows = found.shows(text, prompt)
            except DataError as error:
                refuse(path, row.line, str(error))
            judged.append(None if shows is None else float(shows))
        return judged

    return scores


def text_scores(score: Callable[[Sequence[str]], list[float]], field: str) -> Scores:
    """Scores of a classifier of texts; a blank text has none."""

    def scores(path: Path, rows: Sequence[TableRow]) -> list[float | None]:
        texts = [text_of(path, row, field)[0] for row in rows]
        found = iter(score([text for text in texts if text.strip()]))
        return [next(found) if text.strip() else None for text in texts]

    return scores


def text_of(path: Path, row: TableRow, field: str) -> tuple[str, str]:
    """What of a row is looked at, and the prompt before it; of chat rows all that the model said.

    Raises:
        DataError: The row has no such field, or it holds something else.
    """
    if field == "messages":
        return _answers(path, row), ""
    text = _text(path, row, field)
    if text is None:
        others = [name for name in FIELDS if name in row.values]
        hint = f"; it has {', '.join(others)}: give --field {others[0]}" if others else ""
        refuse(path, row.line, f"{field} is missing{hint}")
    return text, "" if field == "prompt" else _text(path, row, "prompt") or ""


def _text(path: Path, row: TableRow, name: str) -> str | None:
    value = row.values.get(name)
    if value is None or isinstance(value, str):
        return value
    refuse(path, row.line, f"{name} must be a text in quotes, got {show(value)}")


def _answers(path: Path, row: TableRow) -> str:
    """The assistant's messages of a chat row, a line break between them."""
    messages = row.values.get("messages")
    if not isinstance(messages, list):
        what = 'messages must be a list of {"role": "...", "content": "..."}'
        refuse(path, row.line, f"{what}, got {show(messages)}")
    found: list[str] = []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            refuse(path, row.line, f"message {number} needs a role and a content, both texts")
        if role == "assistant":
            found.append(content)
    return "\n".join(found)


def _number(path: Path, row: TableRow, name: str) -> float | None:
    value = row.values.get(name)
    if value is None:
        return None
    if not row.typed and _NUMBER.fullmatch(value):
        value = float(value)
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or abs(value) > 1e300:  # also infinity, which 1e999 is read as
        refuse(path, row.line, f"{name} must be a finite number, got {show(value)}")
    return float(value)


def _true_label(path: Path, row: TableRow) -> str | None:
    value = row.values.get("true_label")
    if value is None or value in ("good", "bad"):
        return value
    refuse(path, row.line, f"true_label is {show(value)}, but must be good or bad")


def _check_places(path: Path, out: Path, report: Path | None) -> None:
    if is_csv(path) != is_csv(out):
        kind = "a CSV" if is_csv(path) else "a JSONL"
        raise ConfigError(f"--out {out} must be {kind} file too, as {path} is.")
    for option, place in (("--out", out), ("--report", report)):
        if place and os.path.lexists(place):
            raise ConfigError(f"{option} {place} already exists; give a name that is free.")
    if report and report.absolute() == out.absolute():
        raise ConfigError(f"--out and --report are both {out}; give two names.")


def _refuse_labels(path: Path, table: Table) -> None:
    labeled = [row for row in table.rows if row.values.get(LABEL) is not None]
    if labeled:
        first = labeled[0]
        what = f"has a label already ({show(first.values.get(LABEL))})"
        also = f", as {len(labeled) - 1} others have" if len(labeled) > 1 else ""
        refuse(path, first.line, f"{what}{also}: give --overwrite-labels to replace them")


def _counts(rows: Sequence[TableRow], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per label: how many rows, their share, and the first of them."""
    found: dict[str, dict[str, Any]] = {}
    for label in ("bad", "good", "unlabeled"):
        own = [row for row, given in zip(rows, labels, strict=True) if given == label]
        found[label] = {
            "k": len(own),
            "n": len(rows),
            "share": len(own) / len(rows),
            "examples": [_name(row) for row in own[:EXAMPLES]],
        }
    return found


def _name(row: TableRow) -> str:
    name = row.values.get("id")
    return str(name) if isinstance(name, str | int) else f"line {row.line}"


def _label_quality(labels: Sequence[str], truths: Sequence[str | None]) -> dict[str, Any]:
    """Precision and recall of `bad`, and how many of `good` are truly bad, over known rows.

    Precision: of the rows labeled bad, the share that truly is. Recall: of those that truly are,
    the share that is labeled so. With 95 % Wilson intervals; None without such a row.
    """
    known = [(label, true) for label, true in zip(labels, truths, strict=True) if true is not None]
    hits = sum(pair == ("bad", "bad") for pair in known)
    named = sum(label == "bad" for label, _ in known)
    truly = sum(true == "bad" for _, true in known)
    missed = sum(pair == ("good", "bad") for pair in known)
    good = sum(label == "good" for label, _ in known)
    return {
        "with_true_label": len(known),
        "precision": _share(hits, named) if named else None,
        "recall": _share(hits, truly) if truly else None,
        "bad_among_good": _share(missed, good) if good else None,
    }


def _share(k: int, n: int) -> dict[str, Any]:
    lower, upper = wilson(k, n)
    return {"k": k, "n": n, "share": k / n, "lower": lower, "upper": upper}
