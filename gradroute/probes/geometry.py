"""Angles and cosines of two adapters' weight updates, written and drawn for finished runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.evaluate.geometry import geometry, saved_factors
from gradroute.models.trained import finished_checkpoint
from gradroute.probes.recovery import SCHEMA_VERSION, run_names
from gradroute.report.render.probe_text import geometry_text
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.runs.provenance import provenance
from gradroute.system.files import (
    clear_unfinished,
    write_bytes,
    write_json,
)
from gradroute.system.terminal import say

RANDOM_DRAWS = 20
"""Random updates that a geometry is compared with."""


def geometry_runs(
    folders: Sequence[RunFolder], out: Path, chosen: tuple[str, str] | None = None
) -> None:
    """Write every run's `geometry.json`, draw them as `out/geometry.png`, print the means.

    The base model is not needed. Runs of one adapter have nothing to compare and are left out.

    Args:
        folders: finished runs; an unrouted one among them is what the others are read against.
        out: folder of the figure.
        chosen: the adapters that are compared; None for good and bad, or the only two.

    Raises:
        ConfigError: no run has two adapters to compare, or a chosen one is not there.
        MachineError: a run has no finished checkpoint, or another process writes to it.
    """
    configs = {folder: load_config(folder.config) for folder in folders}
    steps = {folder: config.train.max_steps for folder, config in configs.items()}
    checkpoints = {folder: finished_checkpoint(folder, last) for folder, last in steps.items()}
    names = run_names({folder: config.seed for folder, config in configs.items()})
    documents: dict[RunFolder, dict[str, Any]] = {}
    for folder, config in configs.items():
        adapters = tuple(config.adapters)
        pair = (
            _pair(adapters) if chosen is None else _chosen_adapters(names[folder], adapters, chosen)
        )
        if pair is None:
            say(
                f"{names[folder]}: left out; it has no pair of adapters to compare (its adapters: "
                f"{', '.join(adapters)})."
            )
            continue
        with write_lock(folder.path, "comparing adapters"):
            clear_unfinished(folder.geometry.parent)
            factors = [saved_factors(checkpoints[folder], name) for name in pair]
            documents[folder] = {
                "schema_version": SCHEMA_VERSION,
                "step": checkpoints[folder].step,
                "adapters": list(pair),
                **geometry(*factors, draws=RANDOM_DRAWS, seed=0),
                "provenance": provenance(),
            }
            folder.check_there()
            write_json(folder.geometry, documents[folder])
    if not documents:
        raise ConfigError(
            f"{', '.join(names.values())}: there is no run with two adapters to compare. Name one "
            "with the adapters good and bad, or say which two: --adapters good,NAME."
        )
    # Drawing is heavy to import.
    from gradroute.report.render.figure_style import LIGHT, png
    from gradroute.report.render.geometry_figure import geometry_figure

    figure = partial(geometry_figure, [(names[f], one) for f, one in documents.items()])
    write_bytes(out / "geometry.png", png(figure, LIGHT))
    told = [(names[f], configs[f].policy.routes_anything, one) for f, one in documents.items()]
    print(geometry_text(told))
    say(f"written: {out / 'geometry.png'}, and eval/geometry.json of each run")


def _pair(adapters: Sequence[str]) -> tuple[str, str] | None:
    """The two adapters that are compared: good and bad, or the only two."""
    if {"good", "bad"} <= set(adapters):
        return "good", "bad"
    first, *others = adapters
    return (first, others[0]) if len(others) == 1 else None


def _chosen_adapters(
    name: str, adapters: Sequence[str], chosen: tuple[str, str]
) -> tuple[str, str] | None:
    """The chosen adapters; None for a run of one adapter, which has nothing to compare."""
    missing = [adapter for adapter in chosen if adapter not in adapters]
    if len(adapters) == 1:
        return None
    if missing or chosen[0] == chosen[1]:
        raise ConfigError(
            f"run {name}: --adapters names {' and '.join(chosen)}; two of its adapters, "
            f"{', '.join(adapters)}, are needed."
        )
    return chosen
