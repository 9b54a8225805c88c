"""Rows that a finder or its reviewer gave a label, and their labels in training.

A file has a JSON object per line, as `gradroute find` writes it and its page downloads it: `text`
and `label`, `prompt` where there is one. Other keys, such as `score`, `p` and `q`, are for reading.
Rows in the export formats of labeling tools, one object per line, are read too (`labeling_tools`).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.data.columns import read_names
from gradroute.data.examples import Example
from gradroute.data.fields import Unusable, read_label
from gradroute.data.jsonl import read_objects, refuse, show
from gradroute.data.labeling_tools import plain_rows
from gradroute.errors import DataError


class Found(NamedTuple):
    """The rows of a file.

    Attributes:
        labels: (prompt, text) -> label.
        sha256: Of the file.
        rows: The rows with a label, in plain form.
        notes: What was left out, a sentence each.
    """

    labels: Mapping[tuple[str, str], str]
    sha256: str
    rows: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...]


def read_found(path: Path, labels: Iterable[str]) -> Found:
    """The rows of a file and their labels; a row that nobody labeled is left out.

    Args:
        path: The file.
        labels: Labels that may occur.

    Raises:
        DataError: The file cannot be read, a row has no text or a label of another name, one row is
            there twice with different labels, or there are rows and none has a label.
    """
    known = tuple(labels)
    found: dict[tuple[str, str], str] = {}
    rows: list[Mapping[str, Any]] = []
    content, set_aside, unlabeled = hashlib.sha256(), Counter[str](), 0
    table, names = read_objects(path, content.update), read_names(known, None, None)
    for line, row in plain_rows(table, names, set_aside, cells=False):
        text, prompt = row.get("text"), row.get("prompt") or ""
        if not isinstance(text, str) or not isinstance(prompt, str):
            refuse(path, line, "a row needs a text, and a prompt that is a text where it has one.")
        try:
            label = read_label("label", row.get("label"), names)
        except Unusable:
            given = show(row["label"])
            refuse(path, line, f"label must be one of {', '.join(known)}, got {given}.")
        if label is None:
            unlabeled += 1
            continue
        if found.setdefault((prompt, text), label) != label:
            refuse(path, line, f"this row has the label {found[prompt, text]} on an earlier line.")
        rows.append({**row, "label": label})
    if unlabeled and not rows:
        raise DataError(f"{path}: none of the {unlabeled} rows has a label; each needs one.")
    notes = tuple(f"data.found: {count} {what}." for what, count in sorted(set_aside.items()))
    if unlabeled:
        notes += (f"data.found: {unlabeled} rows have no label and are left out.",)
    return Found(found, content.hexdigest(), rows, notes)


def label_found(examples: Sequence[Example], found: Found) -> tuple[list[Example], tuple[str, ...]]:
    """Give the examples that a file names the label that it gives them.

    Returns:
        All examples in their order, and how many have another label than before, and how many rows
        of the file are none of them, to be said once.
    """
    labels = found.labels
    made = [
        replace(e, label=labels[key]) if (key := (e.prompt, e.text)) in labels else e
        for e in examples
    ]
    changed = sum(new.label != old.label for new, old in zip(made, examples, strict=True))
    unknown = len(labels.keys() - {(e.prompt, e.text) for e in examples})
    notes = (f"{changed} training examples have another label by the file of data.found.",)
    if unknown:
        notes += (f"{unknown} of its {len(labels)} rows are no training example.",)
    return made, (*notes, *found.notes)
