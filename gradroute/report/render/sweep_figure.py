"""A grid of runs over its axes: behavior rate as shipped, and gain kept; figures and a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradroute.report.render.figure_style import (
    MARKERS,
    Ink,
    blank,
    share_axis,
    shorten,
    tidy,
)
from gradroute.report.render.figures import Picture
from gradroute.report.render.table_cells import Cell, Table, seeds_gain, seeds_rate
from gradroute.report.results.grid import OWN, GridPoint
from gradroute.report.results.seeds import OverSeeds

_TOLD_APART = 8  # lines that a legend can name
_NOTE = "Lines: means; bars: 95 % intervals; dots: each seed."


@dataclass(frozen=True)
class _Series:
    """One line of a figure: points of like values but for the axis, and where they stand on it."""

    label: str
    own: bool
    points: tuple[tuple[int, GridPoint], ...]


def sweep_pictures(points: Sequence[GridPoint], behavior: str) -> list[Picture]:
    """A figure per axis that has several values.

    Args:
        points: See `grid.grid_points`.
        behavior: Of the comparison.
    """
    axes = list(points[0].values) if points else []
    found = []
    for axis in axes:
        values = list(dict.fromkeys(point.values[axis] for point in points))
        if len(values) < 2:
            continue
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in axis)
        found.append(
            Picture(
                f"sweep_{name}",
                "rates",
                f"{behavior} rate as shipped and gain kept over {axis}",
                f"Left: share of completions that show the behavior in the mode that ships. Right: "
                f"gain kept in it. A line joins runs that are alike but for {axis}, each at the "
                "mean of its seeds with its 95 % interval; dots are the seeds.",
                partial(sweep_figure, points, axis, behavior),
            )
        )
    return found


def sweep_table(points: Sequence[GridPoint], behavior: str) -> Table:
    """Every place of the grid with its controls, in a line each."""
    axes = tuple(points[0].values) if points else ()
    several = len({point.label for point in points}) > 1
    rows = []
    for point in points:
        which = point.control or "run"
        label = [Cell(point.label)] if several else []
        rows.append(
            (
                *(Cell(value) for value in point.values.values()),
                *label,
                Cell(which),
                Cell(point.mode),
                seeds_rate(point.rate, "rate"),
                seeds_gain(point.gain, "gain_kept"),
            )
        )
    return Table(
        "sweep",
        "The grid: behavior rate and gain kept as shipped",
        "Means over seeds with 95 % intervals; a control is a run that was trained for the run "
        "above it.",
        (
            *axes,
            *(["behavior"] if several else []),
            "which",
            "mode",
            f"{behavior} rate, %",
            "gain kept",
        ),
        tuple(rows),
    )


def sweep_figure(points: Sequence[GridPoint], axis: str, behavior: str, ink: Ink) -> Figure:
    """Rate and gain kept over one axis, a line for each combination of the others and control.

    Args:
        points: Of the grid.
        axis: Its name.
        behavior: Of the comparison.
        ink: The theme.
    """
    values = list(dict.fromkeys(point.values[axis] for point in points))
    every = _series(points, axis, values)
    told = len(every) <= _TOLD_APART
    longest = max(len(shorten(one.label, 44)) for one in every)
    columns = max(1, min(4, int(8.4 / (0.075 * longest + 0.55))))
    rows = math.ceil(len(every) / columns) if told and len(every) > 1 else 0
    below = 0.95 + 0.19 * rows
    height = 2.7 + below
    figure = blank(height)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(
        left=0.075, right=0.985, top=1 - 0.3 / height, bottom=below / height, wspace=0.16
    )
    for axes, title, of in (
        (left, f"{shorten(behavior)} rate as shipped", lambda point: point.rate),
        (right, "gain kept", lambda point: point.gain),
    ):
        for at, one in enumerate(every):
            _draw(axes, one, at, len(every), of, told, ink)
        axes.set_xticks(range(len(values)), [shorten(value, 18) for value in values])
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_xlabel(axis, fontsize=8.5)
        axes.set_title(title, fontsize=8.5, loc="left")
        tidy(axes, ink)
    share_axis(left)
    right.axhline(0.9, color=ink.muted, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    _gain_window(right, [point.gain.mean for point in points if point.gain is not None], ink)
    if rows:
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="lower center",
            bbox_to_anchor=(0.5, 0.22 / height),
            ncols=columns,
            frameon=False,
            fontsize=8.5,
        )
    note = "" if told else f" {len(every)} lines: every combination of the other axes."
    figure.text(
        0.075, 0.08 / height, f"{_NOTE} Dashed: gain kept of 0.9.{note}", fontsize=7.5,
        color=ink.muted,
    )  # fmt: skip
    return figure


def _gain_window(axes: Axes, gains: Sequence[float], ink: Ink) -> None:
    """An axis on which every mean is seen; an interval may be wider than it."""
    low, high = min([0.5, *gains]), max([1.0, *gains])
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    if not gains:
        axes.text(
            0.5, 0.3, "not defined for any run", transform=axes.transAxes, ha="center",
            color=ink.muted,
        )  # fmt: skip


def _series(points: Sequence[GridPoint], axis: str, values: Sequence[str]) -> list[_Series]:
    """The lines of a figure; controls are left out where there would be too many to tell apart."""
    found: dict[tuple[str, ...], list[tuple[int, GridPoint]]] = {}
    varied = [
        name
        for name in points[0].values
        if name != axis and len({point.values[name] for point in points}) > 1
    ]
    for point in points:
        others = tuple(f"{name} {point.values[name]}" for name in varied)
        key = (*others, point.label, point.control)
        found.setdefault(key, []).append((values.index(point.values[axis]), point))
    if len(found) > _TOLD_APART:
        found = {key: own for key, own in found.items() if key[-1] == OWN}
    return [
        _Series(", ".join(part for part in key if part) or "run", key[-1] == OWN, tuple(own))
        for key, own in found.items()
    ]


def _draw(
    axes: Axes,
    one: _Series,
    at: int,
    of: int,
    number_of: Callable[[GridPoint], OverSeeds | None],
    told: bool,
    ink: Ink,
) -> None:
    """One line, a little beside the others so that their intervals are seen."""
    color = ink.series[at % len(ink.series)] if told else ink.series[0]
    beside = 0.24 * (at / max(1, of - 1) - 0.5) if of > 1 else 0.0
    known = [
        (place + beside, number)
        for place, point in one.points
        if (number := number_of(point)) is not None
    ]
    axes.plot(
        [x for x, _ in known],
        [number.mean for _, number in known],
        marker=MARKERS[at % len(MARKERS)] if told else None,
        markersize=5.5 if one.own else 4.5,
        linewidth=1.6 if one.own else 1.1,
        linestyle="-" if one.own else (0, (4, 2)),
        color=color,
        alpha=1.0 if told else 0.6,
        label=shorten(one.label, 44),
        zorder=3,
    )
    for x, number in known:
        if not math.isnan(number.lower):
            axes.vlines(x, number.lower, number.upper, color=color, linewidth=1.0)
        if len(number.values) > 1:
            axes.plot(
                [x] * len(number.values), number.values, ".", color=color, markersize=3.5, alpha=0.7
            )
