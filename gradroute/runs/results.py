"""Result rows, one number each.

One `Result` is one measured number with everything needed to read it: where it came from (run,
step, mode, dataset, label, seed), what it is (metric, value), and how sure it is (n, interval,
std). `results.json` of a run is a list of such rows under a schema version.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from gradroute.errors import DataError
from gradroute.system.files import read_json, write_json

SCHEMA_VERSION = 2
"""Version of the layout of `results.json`; raised when a reader of the old one would misread it."""
PREFIX = "prefix"
"""The kind of prompts that invite a behavior: ordinary ones, changed."""
HELD_OUT_BAD = "held_out_bad"
"""The kind of prompts of held-out rows that show a behavior: those that draw it in the data."""

ELICIT = "elicit_"
"""How the kinds of prompts begin that only the elicitation grid has."""

LEARNED_RATE = 0.5
"""Behavior rate under `full` from which a behavior counts as learned, unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measured number.

    Attributes:
        run: Name of the run.
        step: Optimizer step of the checkpoint that was measured.
        mode: Ablation mode, such as `full` or `bad_ablated`.
        dataset: What was measured on: held-out texts (`normal`, `behavior`) or prompts (`prefix`,
            `held_out_bad`, ...).
        label: Which rows of it (a label or true label), or "all".
        metric: What was measured, such as `behavior_rate` or `held_out_loss`.
        value: The number, in the metric's unit; None where it could not be measured.
        n: How many examples the value stands on.
        lower: Lower end of the 95 % interval, None where there is none.
        upper: Upper end of the 95 % interval, None where there is none.
        std: Standard deviation over the examples, None where there is none.
        seed: Seed of the run (not of the evaluation).
    """

    run: str
    step: int
    mode: str
    dataset: str
    label: str
    metric: str
    value: float | None
    n: int
    lower: float | None = None
    upper: float | None = None
    std: float | None = None
    seed: int = 0


_TEXT_FIELDS = ("run", "mode", "dataset", "label", "metric")
_COUNT_FIELDS = ("step", "n", "seed")
_NUMBER_FIELDS = ("value", "lower", "upper", "std")


def write_results(
    path: str | os.PathLike[str], rows: Iterable[Result], provenance: Mapping[str, Any]
) -> None:
    """Write result rows and where they came from, atomically.

    Args:
        path: The file; its folder is made if needed.
        rows: The rows, kept in order.
        provenance: JSON-able facts about the measurement (versions, hardware, commit, config).

    Raises:
        MachineError: If the file cannot be written; an older file is then still whole.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance,
        "results": [dataclasses.asdict(row) for row in rows],
    }
    write_json(Path(path), document)


def read_results(path: str | os.PathLike[str]) -> tuple[list[Result], dict[str, Any]]:
    """Read what `write_results` wrote, in this version or an earlier one.

    Schema 1 called the prompts that invite the behavior `prompts`; they are `prefix` now.

    Returns:
        The rows in their order, and the provenance.

    Raises:
        DataError: If the file is missing, is not a results file, was written by a newer schema,
            or holds a row with a missing, unknown or mistyped field.
    """
    document = read_json(Path(path))
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not _is_int(version):
        raise DataError(
            f"{path} is not a results file: it has no schema_version; run the evaluation again"
        )
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path} was written by a newer gradroute (schema {version}; this one reads up to "
            f"{SCHEMA_VERSION}): upgrade gradroute, or evaluate again into another folder"
        )
    rows, provenance = document.get("results"), document.get("provenance")
    if version < 1 or not isinstance(rows, list) or not isinstance(provenance, dict):
        raise DataError(f"{path} is not a results file: it needs a list of results and provenance")
    found = [_row(path, position, row) for position, row in enumerate(rows)]
    if version == 1:
        found = [
            dataclasses.replace(row, dataset="prefix") if row.dataset == "prompts" else row
            for row in found
        ]
    return found, provenance


def _row(path: str | os.PathLike[str], position: int, row: Any) -> Result:
    """Turn one JSON value into a row, or say what is wrong with it."""
    where = f"{path}, result {position}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, got {type(row).__name__}")
    names = {field.name for field in dataclasses.fields(Result)}
    if row.keys() != names:
        wrong = ", ".join(sorted(row.keys() ^ names))
        raise DataError(f"{where}: missing or unknown fields: {wrong}")
    for name in _TEXT_FIELDS:
        if not isinstance(row[name], str):
            raise DataError(f"{where}: {name} must be text, got {row[name]!r}")
    for name in _COUNT_FIELDS:
        if not _is_int(row[name]):
            raise DataError(f"{where}: {name} must be a whole number, got {row[name]!r}")
    for name in _NUMBER_FIELDS:
        value = row[name]
        if value is not None and not (_is_int(value) or isinstance(value, float)):
            raise DataError(f"{where}: {name} must be a number or null, got {value!r}")
    numbers = {name: None if row[name] is None else float(row[name]) for name in _NUMBER_FIELDS}
    return Result(**{**row, **numbers})


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
