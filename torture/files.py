"""Data files, whole and damaged: none is read as anything but what it says.

Files are drawn from a seed, a good part of them valid and of known content, the others damaged in
every way that files are. Each is read twice, refusing and skipping bad rows. A refusal must name
file and line; what is read must equal, row by row, what a slow and obvious reader reads.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradroute.config.run_config import load_config
from gradroute.data.examples import Example
from gradroute.data.jsonl import MAX_ROW_BYTES
from gradroute.data.reading import read_examples
from gradroute.errors import DataError
from gradroute.models.base import EMBEDDED, load_tokenizer
from gradroute.prepare import prepare
from torture.drawn_files import damaged_file, valid_file
from torture.slow_reader import TEMPLATE, Known, Labels, Verdict, read

VALID = 0.4
"""Share of the files that are valid by construction."""
PREPARED = 5
"""One valid file in so many is followed on, to the examples that a run trains on."""
MAPS: tuple[Labels, ...] = (
    None,
    None,
    {"good": "good", "bad": "bad", "unlabeled": "unlabeled"},
    {"0": "good", "1": "bad", "true": "bad", "false": "good", "null": "unlabeled", "bad": "bad"},
    {"1.0": "bad", "": "good", "good": "good", "toxic": "bad"},
)
"""What labels stand for."""
LIMIT = 300
"""Bytes of a row, where the limit is low."""


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read `count` files under both rules for bad rows.

    Returns:
        `trials`; how many were `valid` by construction; readings that were `read` or `refused`;
        `skipped_rows`; files `prepared` for training; and what must be 0: `tracebacks`,
        `label_changes`, refusals `without_line`, `failures`.
    """
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for trial in range(count):
        draw = random.Random(f"{seed}:{trial}")
        known = None
        kind = draw.choice(["jsonl", "jsonl", "csv"])
        path = folder / f"rows.{kind}"
        if draw.random() < VALID:
            content, known = valid_file(draw, kind)
            counts["valid"] += 1
        else:
            content = damaged_file(draw, kind)
        low = known is None and kind == "jsonl" and draw.random() < 0.1
        limit = LIMIT if low else MAX_ROW_BYTES
        path.write_bytes(content)
        labels = draw.choice(MAPS) if known is None else None
        found = list(wrong_readings(path, content, limit, counts, labels))
        if known is not None:
            found += _unlike_known(content, known, limit, kind)
            if counts["valid"] % PREPARED == 0:
                found += list(_unlike_prepared(path, known, counts))
        failures += [f"seed {seed}, file {trial}: {sentence}" for sentence in found]
    keys = ("valid", "read", "refused", "skipped_rows", "prepared")
    keys += ("tracebacks", "label_changes", "without_line")
    return {"trials": count, **{key: counts[key] for key in keys}, "failures": failures[:50]}


def wrong_readings(
    path: Path, content: bytes, limit: int, counts: Counter[str], labels: Labels = None
) -> Iterator[str]:
    """A sentence about each way in which a file is read wrongly; counts how the readings ended."""
    for skip in (False, True):
        due = read(content, skip=skip, limit=limit, csv=path.suffix == ".csv", labels=labels)
        how = "skipping bad rows" if skip else "refusing bad rows"
        try:
            file = read_examples(
                path,
                label_map=labels,
                tokenizer=chatting(),
                max_row_bytes=limit,
                skip_bad_rows=skip,
            )
        except DataError as error:
            counts["refused"] += 1
            yield from (f"{how}: {what}" for what in _wrong_refusal(path, str(error), due, counts))
            continue
        except Exception as error:
            counts["tracebacks"] += 1
            yield f"{how}: {type(error).__name__} ({error!r:.200})"
            continue
        counts["read"] += 1
        counts["skipped_rows"] += len(file.skipped)
        if due.rows is None:
            yield f"{how}: read, but line {due.line} is wrong"
            continue
        if [row.line for row in file.skipped] != due.skipped:
            yield f"{how}: skipped {[row.line for row in file.skipped]}, not {due.skipped}"
        said = [*file.notes, *(f"{row.file}{row.reason}" for row in file.skipped)]
        if not all(sentence.isprintable() for sentence in said):
            yield f"{how}: a note has control characters: {said!r:.200}"
        yield from (f"{how}: {what}" for what in _differences(file.examples, due.rows, counts))


def _wrong_refusal(path: Path, message: str, due: Verdict, counts: Counter[str]) -> Iterator[str]:
    place = re.match(rf"{re.escape(str(path))}:([1-9]\d*): \S", message)
    if place is None or not message.isprintable():
        counts["without_line"] += 1
        yield f"no file and line, or no single line: {message!r:.300}"
    elif "unknown field" in message:
        if not due.perhaps:
            yield f"refused for a field that is unlike ours: {message!r:.300}"
    elif due.rows is not None:
        yield f"refused, but all is well: {message!r:.300}"
    elif int(place[1]) != due.line:
        yield f"line {due.line} is wrong, but the error names another: {message!r:.300}"


def _differences(examples: list[Example], due: list[Known], counts: Counter[str]) -> Iterator[str]:
    got = [_as_known(example) for example in examples]
    if len(got) != len(due):
        counts["label_changes"] += 1
        yield f"{len(got)} rows instead of {len(due)}"
    for one, other in zip(got, due, strict=False):
        if one != other:
            labels = (one.label, one.true_label, one.spans)
            counts["label_changes"] += labels != (other.label, other.true_label, other.spans)
            yield f"{one!r:.200} instead of {other!r:.200}"


def _as_known(example: Example) -> Known:
    """What was read, with the pieces of equal label put together where they touch."""
    spans: list[tuple[int, int, str]] = []
    for start, end, label in example.spans:
        if spans and spans[-1][1:] == (start, label):
            spans[-1] = (spans[-1][0], end, label)
        else:
            spans.append((start, end, label))
    return Known(
        id=example.id,
        text=example.text,
        prompt=example.prompt,
        label=example.label,
        true_label=example.true_label,
        weight=example.weight,
        spans=tuple(spans),
        context=example.context,
    )


@cache
def chatting() -> PreTrainedTokenizerBase:
    """The embedded tokenizer with the chat template that the slow reader knows."""
    tokenizer = load_tokenizer(EMBEDDED)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _unlike_known(content: bytes, known: list[Known], limit: int, kind: str) -> list[str]:
    """The slow reader is held to what was written: only then does it prove anything."""
    for skip in (False, True):
        if read(content, skip=skip, limit=limit, csv=kind == "csv").rows != known:
            return ["the slow reader does not read what was written"]
    return []


def _unlike_prepared(path: Path, known: list[Known], counts: Counter[str]) -> Iterator[str]:
    """What a run trains on and holds out has the labels of the file."""
    if len(known) < 6 or any(one.prompt.endswith("[assistant] ") for one in known):
        return  # the embedded model has no chat template of its own
    overrides = [f"data.path={path}", "data.eval_fraction=0.3", "routing=none"]
    try:
        prepared = prepare(load_config(None, overrides))
    except DataError as error:
        if "to hold out" not in str(error):  # equal rows stay together
            yield f"cannot be prepared: {error}"
        return
    counts["prepared"] += 1
    if any("labels are used" in note for note in prepared.notes):
        labels = {one.id: (one.text, one.label, one.true_label) for one in known}
        for one in (*prepared.train, *prepared.normal, *prepared.behaving["bad"]):
            if labels.pop(one.id) != (one.text, one.label, one.true_label):
                counts["label_changes"] += 1
                yield f"prepared as {one!r:.200}"
