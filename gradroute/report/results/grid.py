"""A grid of runs: rate as shipped and gain kept of each cell, over its seeds.

A cell is a set of values, one per axis; its runs are the routed run and its controls at every seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gradroute.config.controls import BY_NAME, BY_ROLE
from gradroute.report.results.contrasts import (
    controls_of,
    deployed_mode,
    gain_kept,
    gain_reference,
)
from gradroute.report.results.run_results import RunResults, by_behavior
from gradroute.report.results.seeds import OverSeeds, gain_over_seeds, rate_over_seeds

OWN = ""
"""Stands for the cell's own run where controls are told apart."""


class GridCell(NamedTuple):
    """A cell of a sweep at one seed: axis -> value, and the names of its runs."""

    values: Mapping[str, str]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class GridPoint:
    """What was measured at one place of the grid, over its seeds.

    Attributes:
        values: Axis -> value.
        control: Name of the control; `OWN` for the run itself.
        label: The behavior's label, where there are several; else empty.
        mode: In which it ships.
        rate: Behavior rate; None where it was not measured.
        gain: Gain kept; None where it was not measured or is not defined.
    """

    values: Mapping[str, str]
    control: str
    label: str
    mode: str
    rate: OverSeeds | None
    gain: OverSeeds | None


def grid_points(cells: Sequence[GridCell], runs: Sequence[RunResults]) -> list[GridPoint]:
    """The points of a grid, in the order of its cells, a control behind the run that it is of.

    Args:
        cells: Of the sweep.
        runs: Those of them that are measured.
    """
    if not cells:
        return []
    places = {name: cell.values for cell in cells for name in cell.runs}
    sorted_runs: dict[tuple[tuple[str, ...], str, str], list[RunResults]] = {}
    order = [tuple(cell.values.values()) for cell in cells]
    for run in runs:
        control = str(run.config.get("control") or OWN)
        for label, part in run.parts.items() if run.parts else [("", run)]:
            key = (tuple(places[run.name].values()), control, label)
            sorted_runs.setdefault(key, []).append(part)
    every = by_behavior(runs)
    names = tuple(cells[0].values)
    return [
        _point(dict(zip(names, values, strict=True)), control, label, own, every)
        for (values, control, label), own in sorted(
            sorted_runs.items(), key=lambda item: (order.index(item[0][0]), item[0][1] != OWN)
        )
    ]


def _point(
    values: Mapping[str, str],
    control: str,
    label: str,
    runs: Sequence[RunResults],
    every: Sequence[RunResults],
) -> GridPoint:
    mode = _mode(runs[0], control)
    rates = [(run.seed, rate) for run in runs if (rate := run.rate(mode)) is not None]
    gains = [gain_kept(run, _reference(run, every), mode) for run in runs]
    return GridPoint(
        values=values,
        control=control,
        label=label,
        mode=mode,
        rate=rate_over_seeds(*zip(*rates, strict=True)) if rates else None,
        gain=gain_over_seeds([run.seed for run in runs], gains),
    )


def _mode(run: RunResults, control: str) -> str:
    """The mode that ships: of a control the one that its row names, where it was measured."""
    row = BY_NAME.get(control) or BY_ROLE.get(run.role)
    if control and row is not None and row.mode in run.cells:
        return row.mode
    return deployed_mode(run)


def _reference(run: RunResults, every: Sequence[RunResults]) -> RunResults | None:
    """What gain kept is measured against; a control has the reference of its routed run.

    Without baseline and oracle that is the routed run's own full.
    """
    reference = gain_reference(run, every)
    if reference is not None or not run.config.get("control"):
        return reference
    routed = (one for one in every if one.role == "routed")
    of = (one for one in routed if any(own is run for own in controls_of(one, every).values()))
    return next(of, None)
