"""Scale curves as pictures: the effect of scaling an adapter down, and rate against gain kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradroute.report.judge.comparison import SingleBehaviorComparison
from gradroute.report.render.figure_style import MARKERS, Ink, blank, shorten, tidy
from gradroute.report.results.contrasts import (
    controls_of,
    deployed_mode,
    gain_kept,
    gain_reference,
)
from gradroute.report.results.roles import adapter_names
from gradroute.report.results.run_results import Loss, Rate, RunResults
from gradroute.report.results.scales import Point, scale_curve, shrink_curve

_CURVE = 3
"""Points that make a curve."""
_LEGEND_INCHES = 8.6
_BELOW = 0.95  # inches below the axes without the rows of the legend
_FAR = -0.2
"""Gain kept below which a run stands at the edge of the figure rather than on its axis."""


@dataclass(frozen=True)
class Curve:
    """One run's points while `bad` is turned down.

    Attributes:
        group: Name of the run's group; curves of one group share a color.
        run: Its name.
        points: By ascending scale.
        deploy: Scale of `bad` to deploy; None where none is low enough.
    """

    group: str
    run: str
    points: tuple[Point, ...]
    deploy: float | None


@dataclass(frozen=True)
class Option:
    """One run under a mode in which it could be shipped.

    Attributes:
        label: Its group, and the mode where the group stands under several.
        routed: Whether it is a routed run with `bad` ablated.
        rate: Behavior rate with its interval.
        gain: Gain kept with its interval.
        weaker: The same while the whole update is made weaker, as (gain kept, rate).
    """

    label: str
    routed: bool
    rate: tuple[float, float, float]
    gain: tuple[float, float, float]
    weaker: tuple[tuple[float, float], ...]

    @property
    def has_line(self) -> bool:
        """Whether a dotted line is drawn through the weaker points."""
        return len(self.weaker) >= _CURVE


class Look(NamedTuple):
    """How one of many is told from the others."""

    color: str
    marker: str
    face: str


def bad_curves(comparison: SingleBehaviorComparison) -> list[Curve]:
    """The measured scales of `bad`, of every run that has that adapter beside another."""
    by_name = {run.name: run for run in comparison.runs}
    found = []
    for group in sorted(comparison.groups, key=lambda group: group.role != "routed"):
        if group.role == "baseline":  # nothing to turn down
            continue
        for run in (by_name[name] for name in group.runs):
            adapters = adapter_names(run.config)
            if "bad" in adapters and len(adapters) > 1:
                points = scale_curve(run, ["bad"], gain_reference(run, comparison.runs))
                chosen = comparison.deployment.get(run.name)
                deploy = None if chosen is None else chosen.scale
                found.append(Curve(group.name, run.name, tuple(points), deploy))
    return found


def options(comparison: SingleBehaviorComparison) -> list[Option]:
    """Every run as the claims read it, or as it would be shipped where no claim does."""
    by_name = {run.name: run for run in comparison.runs}
    found = []
    for group in comparison.groups:
        read = [claim.mode for claim in comparison.claims if claim.group == group.name]
        read += [claim.control_mode for claim in comparison.claims if claim.control == group.name]
        modes = list(dict.fromkeys(read)) or [deployed_mode(by_name[group.runs[0]])]
        for mode in modes:
            label = group.name if len(modes) == 1 else f"{group.name}, {mode}"
            routed = group.role == "routed" and mode == "bad_ablated"
            for name in group.runs:
                option = _option(by_name[name], mode, label, routed, comparison)
                found += [] if option is None else [option]
    return found


def _option(
    run: RunResults, mode: str, label: str, routed: bool, comparison: SingleBehaviorComparison
) -> Option | None:
    reference = _whole_gain(run, comparison.runs)
    rate, gain = run.rate(mode), gain_kept(run, reference, mode)
    if rate is None or gain is None or not math.isfinite(gain.value):
        return None
    weaker = tuple(
        (point.gain.value, point.rate.mean)
        for point in shrink_curve(run, mode, reference)
        if point.gain is not None and point.rate is not None and point.scale <= 1
    )
    return Option(label, routed, rate[:3], gain[:3], weaker)


def _whole_gain(run: RunResults, runs: Sequence[RunResults]) -> RunResults | None:
    """What gain kept is measured against; a control has the reference of its routed run, as claims.

    Without baseline and oracle that is the routed run's own full: against its own, every plain run
    would keep all.
    """
    reference = gain_reference(run, runs)
    if reference is not None or run.role in ("routed", "baseline"):
        return reference
    routed = [one for one in runs if one.role == "routed"]
    of = (one for one in routed if any(own is run for own in controls_of(one, runs).values()))
    return next(of, None)


def scales_figure(every: Sequence[Curve], behavior: str, ink: Ink) -> Figure:
    """Behavior rate and normal loss while `bad` is turned down; a line per run.

    Args:
        every: The curves of `bad`; runs of one group share a color.
        behavior: Of the comparison.
        ink: The theme.
    """
    groups = list(dict.fromkeys(curve.group for curve in every))
    below = _BELOW + _room(groups)[1]
    height = 2.85 + below
    figure = blank(height)
    left, right = figure.subplots(1, 2, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.075, right=0.985, top=1 - 0.27 / height, bottom=below / height, wspace=0.16
    )
    for curve in every:
        look = _look(groups.index(curve.group), ink)
        rates = {point.scale: point.rate for point in curve.points}
        losses = {point.scale: point.normal for point in curve.points}
        _draw_curve(left, rates, 100, look, alpha=0.4)
        _draw_curve(right, losses, 1, look, alpha=0.5)
        if curve.deploy is not None:
            left.plot(
                curve.deploy,
                -4,
                "^",
                color=look.color,
                markersize=7,
                clip_on=False,
                markeredgewidth=0,
            )
    left.set_title(f"{shorten(behavior)} rate of completions, %", loc="left", fontsize=8.5)
    right.set_title("held-out normal loss, nats/token", loc="left", fontsize=8.5)
    left.set_ylim(-4, 104)
    for axes in (left, right):
        tidy(axes, ink)
        axes.set_xlabel("scale of bad (0: ablated, 1: as trained)", fontsize=8.5)
    note = (
        "A line per run. Vertical lines: 95 % intervals of each run. Triangle: the scale to deploy."
    )
    _legend(figure, groups, note, ink)
    return figure


def _draw_curve(
    axes: Axes, measured: Mapping[float, Rate | Loss | None], factor: int, look: Look, alpha: float
) -> None:
    """Numbers by scale as a line, with the interval of each."""
    known = {scale: number for scale, number in measured.items() if number is not None}
    mean = [factor * number.mean for number in known.values()]
    lower = [factor * number.lower for number in known.values()]
    upper = [factor * number.upper for number in known.values()]
    (line,) = axes.plot([*known], mean, look.marker, linestyle="-", markersize=4, linewidth=1.4)
    line.set(color=look.color, markerfacecolor=look.face)
    axes.vlines([*known], lower, upper, color=look.color, alpha=alpha, linewidth=0.9)


def tradeoff_figure(every: Sequence[Option], behavior: str, ink: Ink) -> Figure:
    """Behavior rate against gain kept: low and to the right is better.

    Marks are runs as they would be shipped, with both intervals. Dotted lines are the same runs
    with their whole update made weaker: what anything reaches by that alone.
    """
    first = sorted(every, key=lambda option: not option.routed)
    known = [option.gain[0] for option in every]
    near = [gain for gain in known if gain > _FAR]
    low = math.floor(10 * min([0.5, *near])) / 10 - 0.05
    labels = list(dict.fromkeys(option.label for option in first if option.gain[0] >= low))
    below = _BELOW + _room(labels)[1]
    height = 3.55 + below
    figure = blank(height)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.985, top=1 - 0.2 / height, bottom=below / height)
    axes.axvspan(0.9, 2, color=ink.grid, alpha=0.45, linewidth=0, zorder=0)
    for option in (one for one in every if one.gain[0] >= low):
        look = _look(labels.index(option.label), ink)
        if option.has_line:
            gains, rates = zip(*option.weaker, strict=True)
            axes.plot(
                gains,
                [100 * rate for rate in rates],
                color=look.color,
                linewidth=1.3,
                linestyle=(0, (1.2, 1.8)),
                zorder=1,
            )
        _draw_option(axes, option, look)
    _draw_beyond(axes, [one for one in every if one.gain[0] < low], low, ink)
    axes.set_xlim(low, max([1.03, *(gain + 0.03 for gain in known)]))
    axes.set_ylim(-4, 104)
    axes.set_xlabel("gain kept (share of what tuning gains on normal text)", fontsize=8.5)
    axes.set_ylabel(f"{shorten(behavior)} rate, %", fontsize=8.5)
    tidy(axes, ink)
    dotted = " Dotted: its whole update made weaker." if any(o.has_line for o in every) else ""
    note = (
        f"Marks: each run as it would be shipped, 95 % intervals.{dotted} Shaded: gain kept of 0.9 "
        "and more."
    )
    _legend(figure, labels, note, ink)
    return figure


def _draw_option(axes: Axes, option: Option, look: Look) -> None:
    rate, rate_low, rate_high = (100 * number for number in option.rate)
    gain, gain_low, gain_high = option.gain
    axes.vlines(gain, rate_low, rate_high, color=look.color, linewidth=1.1)
    if not math.isnan(gain_low):
        axes.hlines(rate, gain_low, gain_high, color=look.color, linewidth=1.1)
    axes.plot(
        gain,
        rate,
        look.marker,
        color=look.color,
        markerfacecolor=look.face,
        markersize=9 if option.routed else 6,
        zorder=3,
    )


def _draw_beyond(axes: Axes, beyond: Sequence[Option], low: float, ink: Ink) -> None:
    """What keeps less than the axis shows: an arrow at its edge, with name and value."""
    last = -100.0
    for option in sorted(beyond, key=lambda option: option.rate[0]):
        height = max(100 * option.rate[0], last + 5)  # one above the other, so that all are read
        last = height
        axes.plot(low, height, "<", color=ink.muted, markersize=6, clip_on=False)
        axes.annotate(
            f"{shorten(option.label)} {option.gain[0]:.1f}",
            (low, height),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )


def _look(place: int, ink: Ink) -> Look:
    """Color and marker by place; from the ninth on the markers are others, and hollow."""
    round_, at = divmod(place, len(ink.series))
    marker = MARKERS[(at + 3 * round_) % len(MARKERS)]
    return Look(ink.series[at], marker, ink.paper if round_ % 2 else ink.series[at])


def _room(labels: Sequence[str]) -> tuple[int, float]:
    """Columns of the legend that fit the figure's width, and the inches that its rows need."""
    longest = max((len(shorten(label)) for label in labels), default=1)
    columns = max(1, min(6, int(_LEGEND_INCHES / (0.075 * longest + 0.55))))
    return columns, 0.19 * math.ceil(len(labels) / columns)


def _legend(figure: Figure, labels: Sequence[str], note: str, ink: Ink) -> None:
    """Labels and note in the strip below the axes."""
    handles = []
    for place, label in enumerate(labels):
        color, marker, face = _look(place, ink)
        handle = Line2D([], [], color=color, marker=marker, markerfacecolor=face, markersize=5)
        handle.set_label(shorten(label))
        handles.append(handle)
    height = figure.get_figheight()
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.2 / height),
        ncols=_room(labels)[0],
        frameon=False,
        fontsize=8.5,
    )
    figure.text(0.075, 0.08 / height, note, fontsize=7.5, color=ink.muted)
