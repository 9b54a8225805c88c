"""`RunResults` from run folders: every file that a report reads, checked against another."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError
from gradroute.report.results.run_results import Record, RunResults, collect_runs
from gradroute.runs.folder import RunFolder, distinct_names
from gradroute.runs.results import PREFIX, Result, read_results
from gradroute.runs.resume import read_manifest
from gradroute.system.files import read_json, read_lines
from gradroute.system.secrets import redact_tree
from gradroute.system.statistics import ratio_mean

Numbers = tuple[float | int, ...]

_SIDE_SCHEMA = 1  # of geometry.json, relearn.json and recover.json: the newest that is understood


def read_runs(folders: Sequence[RunFolder]) -> list[RunResults]:
    """Read measured runs of one behavior, in the order given.

    Folders of one name are told apart by the run's seed, as `<name>@<seed>`. A folder's own name
    counts, not the one that its files hold: a run that was moved keeps its results.

    Raises:
        ConfigError: No run is given, two runs are of different behaviors, or two have one name
            and one seed.
        DataError: A run was not evaluated, a file of it is damaged or of a newer schema, or its
            single outcomes do not add up to its results.
    """
    if not folders:
        raise ConfigError("there is no run to report on; name at least one.")
    configs = [redact_tree(load_config(f.config).model_dump(mode="json")) for f in folders]
    names = distinct_names(folders, [config["seed"] for config in configs])
    _one_behavior(dict(zip(names, configs, strict=True)))
    rows: list[Result] = []
    origins: dict[str, Record] = {}
    samples: dict[str, list[Record]] = {}
    losses: dict[str, list[Record]] = {}
    for name, folder in zip(names, folders, strict=True):
        if not folder.results.is_file():
            raise DataError(
                f"run {name} has no results yet: measure it with `gradroute eval {folder.path}` "
                "first."
            )
        found, origins[name] = read_results(folder.results)
        rows += [replace(row, run=name) for row in found]
        # Lines of the first version named no kind: there was but one.
        samples[name] = [{"prompts": PREFIX, **row} for row in read_lines(folder.samples)]
        losses[name] = list(read_lines(folder.losses))
    runs = collect_runs(
        rows,
        dict(zip(names, configs, strict=True)),
        provenance=origins,
        samples=samples,
        losses=losses,
    )
    for run in runs:
        check_sums(run)
    return [_with_sides(run, folder) for run, folder in zip(runs, folders, strict=True)]


def check_sums(run: RunResults) -> None:
    """See that rates and losses, computed again from single outcomes, equal the results.

    Cells without single outcomes are not checked; there is nothing to check them by.

    Raises:
        DataError: One does not; the message has both numbers.
    """
    for part in run.parts.values():
        check_sums(part)
    lines: dict[tuple[str, str], list[Record]] = {}
    for line in () if run.parts else run.samples:
        lines.setdefault((line["mode"], line["prompts"]), []).append(line)
    for mode, cell in run.cells.items():
        for kind, rate in cell.rates.items():
            found = lines.get((mode, kind), [])
            shown = sum(line["shows"] is True for line in found)
            _equal(run, found, f"{kind} under {mode}", (shown, len(found)), (rate.shown, rate.n))
            scores = [line["score"] for line in found if line["score"] is not None]
            score = sum(scores) / len(scores) if scores else math.nan
            known = cell.scores.get(kind)
            _equal(run, scores, f"score of {kind} under {mode}", (score,), (known or 0.0,))
        for kind, right in cell.accuracy.items():
            found = lines.get((mode, kind), [])
            correct = sum(line["correct"] for line in found)
            what = f"right answers to {kind} under {mode}"
            _equal(run, found, what, (correct, len(found)), (right.shown, right.n))
        for dataset, loss in cell.loss.items():
            examples = run.examples.get((mode, dataset), {}).values()
            if examples:
                mean = ratio_mean([nll for nll, _ in examples], [n for _, n in examples]).mean
                what = f"loss on {dataset} under {mode}"
                _equal(run, examples, what, (mean, len(examples)), (loss.mean, loss.n))


def _equal(run: RunResults, lines: Any, what: str, computed: Numbers, stored: Numbers) -> None:
    if not lines or all(map(math.isclose, computed, stored)):
        return
    one, other = (
        " of ".join(f"{number:g}" for number in numbers) for numbers in (computed, stored)
    )
    raise DataError(
        f"run {run.name}, {what}: the per-example results add up to {one}, results.json says "
        f"{other}, "
        "so one of its files was changed. Delete the run's eval folder and evaluate it again."
    )


def _one_behavior(configs: Mapping[str, Record]) -> None:
    first, *others = configs
    for other in others:
        one, two = configs[first]["behavior"], configs[other]["behavior"]
        if one != two:
            raise ConfigError(
                f"runs of different behaviors cannot be compared: {first} is about {one!r}, "
                f"{other} about {two!r}. Report on the runs of one behavior at a time."
            )


def _with_sides(run: RunResults, folder: RunFolder) -> RunResults:
    """The run with what was measured besides its evaluation."""
    relearn, recovery = _side(folder.relearn), _side(folder.recovery / "recover.json")
    if run.parts:  # each behavior has its own
        parts = {
            label: replace(part, relearn=_of(relearn, label), recovery=_of(recovery, label))
            for label, part in run.parts.items()
        }
        run, relearn, recovery = replace(run, parts=parts), None, None
    return replace(
        run,
        metrics=tuple(read_lines(folder.metrics)),
        measures=tuple(read_lines(folder.measures)),
        manifest=redact_tree(read_manifest(folder)),
        geometry=_side(folder.geometry),
        relearn=relearn,
        recovery=recovery,
    )


def _of(document: Record | None, label: str) -> Record | None:
    return None if document is None else document.get("behaviors", {}).get(label)


def _side(path: Path) -> Record | None:
    if not path.is_file():
        return None
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise DataError(
            f"{path} has no schema_version: delete it and run the command that makes it again."
        )
    if version > _SIDE_SCHEMA:
        raise DataError(
            f"{path} was written by a newer gradroute (schema {version}; this one reads up to "
            f"{_SIDE_SCHEMA}): upgrade gradroute, or measure again into another folder."
        )
    return document
