"""Rows that a finder or its reviewer gave a label, and their labels in training.

A file has a JSON object per line, as `gradroute find` writes it and its page downloads it: `text`
and `label`, `prompt` where there is one. Other keys, such as `score`, `p` and `q`, are for reading.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gradroute.data.examples import Example
from gradroute.data.jsonl import read_objects, refuse, show


class Found(NamedTuple):
    """The rows of a file.

    Attributes:
        labels: (prompt, text) -> label.
        sha256: Of the file.
    """

    labels: Mapping[tuple[str, str], str]
    sha256: str


def read_found(path: Path, labels: Iterable[str]) -> Found:
    """The rows of a file and their labels.

    Args:
        path: The file.
        labels: Labels that may occur.

    Raises:
        DataError: The file cannot be read, a row has no text or a label of another name, or one row
            is there twice with different labels.
    """
    known = tuple(labels)
    found: dict[tuple[str, str], str] = {}
    content = hashlib.sha256()
    for line, row in read_objects(path, content.update):
        text, prompt, label = row.get("text"), row.get("prompt", ""), row.get("label")
        if not isinstance(text, str) or not isinstance(prompt, str):
            refuse(path, line, "a row needs a text, and a prompt that is a text where it has one.")
        if label not in known:
            refuse(path, line, f"label must be one of {', '.join(known)}, got {show(label)}.")
        if found.setdefault((prompt, text), label) != label:
            refuse(path, line, f"this row has the label {found[prompt, text]} on an earlier line.")
    return Found(found, content.hexdigest())


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
    return made, notes
