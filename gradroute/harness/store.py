"""The store of a run's tasks: numbers in `eval/tasks.json`, documents in `eval/tasks.jsonl`.

One number per task, mode, number of worked examples and limit; measured on another checkpoint, or
with another task file, other documents or another lm-eval, it is replaced.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradroute.errors import DataError
from gradroute.runs.folder import RunFolder
from gradroute.runs.provenance import provenance
from gradroute.system.files import read_json, read_lines, write_json, write_lines

SCHEMA_VERSION = 1
"""Of `tasks.json`."""


class Key(NamedTuple):
    """What a number depends on.

    Attributes:
        task: Task or group of lm-eval.
        mode: Ablation mode.
        num_fewshot: Worked examples before each document; None where a group's tasks differ.
        limit: Documents at most; None for all.
        checkpoint: Hash of the run's checkpoint.
        config: Hash of the task's settings, templates and functions.
        documents: Hash of the documents.
        lm_eval: Version of lm-eval.
    """

    task: str
    mode: str
    num_fewshot: int | None
    limit: int | None
    checkpoint: str
    config: str
    documents: str
    lm_eval: str

    @property
    def named(self) -> dict[str, Any]:
        """What tells numbers apart that may stand beside each other."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = ("task", "mode", "num_fewshot", "limit")


@dataclass
class StoredTasks:
    """What is known of a run's tasks.

    Attributes:
        folder: The run.
        rows: The numbers.
        lines: The documents' lines.
        stale: How many earlier numbers do not count any more; they go with the next `add_to_store`.
    """

    folder: RunFolder
    rows: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    stale: int = 0

    def has(self, keys: Collection[Key]) -> bool:
        """Whether there are numbers for every key."""
        known = {_key(row) for row in self.rows}
        return known.issuperset(keys)

    def of(self, task: str, modes: Sequence[str], like: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of a task under modes, with worked examples and limit as in `like`."""
        order = {mode: place for place, mode in enumerate(modes)}
        found = [
            row
            for row in self.rows
            if row["task"] == task
            and row["mode"] in order
            and all(row[name] == like[name] for name in ("num_fewshot", "limit"))
        ]
        return sorted(found, key=lambda row: order[row["mode"]])


def read_store(folder: RunFolder, requested: Iterable[Key]) -> StoredTasks:
    """What was measured before, without what is asked for but was measured on something else.

    Raises:
        DataError: The file is damaged, or is one of a newer gradroute.
    """
    if not folder.tasks.is_file():
        return StoredTasks(folder, [], [])
    results = _read(folder)
    lines = list(read_lines(folder.task_documents))
    lined = {_name(line) for line in lines}
    current = {_name(key.named): key for key in requested}
    rows = [
        row
        for row in results
        if current.get(_name(row), _key(row)) == _key(row) and (row["group"] or _name(row) in lined)
    ]
    stale = len(results) - len(rows)
    return StoredTasks(folder, rows, lines, stale)


def _read(folder: RunFolder) -> list[dict[str, Any]]:
    document = read_json(folder.tasks)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{folder.tasks} is no file of task results of this gradroute (schema {version!r}): "
            "delete it, and measure again."
        )
    results = document.get("results")
    needed = {*Key._fields, "group", "metric", "filter", "value"}
    whole = isinstance(results, list) and all(
        isinstance(row, dict) and row.keys() >= needed for row in results
    )
    origin_fits = isinstance(document.get("provenance"), dict)
    if not isinstance(results, list) or not origin_fits or not whole:
        raise DataError(f"{folder.tasks} is damaged: delete it, and measure again.")
    return results


def add_to_store(
    store: StoredTasks,
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    keys: Collection[Key],
) -> None:
    """Add what was just measured, in place of what was known of the same tasks and modes.

    Raises:
        MachineError: The disk refuses, or the run is gone.
    """
    gone = {_name(key.named) for key in keys}
    store.folder.check_there()
    store.rows = [*(row for row in store.rows if _name(row) not in gone), *map(dict, rows)]
    known = {_name(row) for row in store.rows}
    store.lines = [line for line in store.lines if _name(line) in known - gone]
    store.lines += map(dict, lines)
    store.stale = 0
    write_lines(store.folder.task_documents, store.lines)
    # The rows come last: they say that the lines are complete.
    document = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance(),
        "results": store.rows,
    }
    write_json(store.folder.tasks, document)


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in NAMES)


def _key(row: Mapping[str, Any]) -> Key:
    return Key(*(row[name] for name in Key._fields))
