"""Relearning curves: behavior rate over steps of plain fine-tuning."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradroute.report.judge.relearning import strongest
from gradroute.report.render.figure_style import (
    MARKERS,
    Ink,
    Record,
    blank,
    share_axis,
    shorten,
    tidy,
)


def relearning_figure(runs: Sequence[tuple[str, Record]], ink: Ink) -> Figure:
    """Behavior rate over steps of the attack, a panel per learning rate, a line per run.

    Args:
        runs: label and `relearn.json` of each run that has one; lines of one label (seeds) share
            a color.
        ink: the theme.
    """
    panels_of = [_panels(record) for _, record in runs]
    titles = _titles(panels_of)
    labels = list(dict.fromkeys(label for label, _ in runs))
    figure = blank(3.6)
    panels = figure.subplots(1, max(1, len(titles)), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.075, right=0.985, top=0.92, bottom=0.27, wspace=0.07)
    for axes, (panel, title) in zip(panels, titles.items(), strict=False):
        for (label, _), curves in zip(runs, panels_of, strict=True):
            if panel in curves:
                _draw(axes, label, curves[panel], labels.index(label), ink)
        axes.set_title(title, fontsize=8.5, loc="left")
        share_axis(axes)
        whole = " on examples of the behavior" if len(panels) < 3 else ""  # there is no room for it
        axes.set_xlabel(f"steps of plain fine-tuning{whole}", fontsize=8.5)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes, ink)
    for threshold in {record["threshold"] for _, record in runs}:
        for axes in panels:
            axes.axhline(threshold, color=ink.muted, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    panels[0].set_ylabel("behavior rate, 95 % intervals", fontsize=8.5)
    handles, names = panels[0].get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(
        once.values(),
        once.keys(),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.045),
        ncols=5,
        frameon=False,
        fontsize=8.5,
    )
    note = "Dashed: the threshold. Open triangle: the attack ended below it."
    figure.text(0.075, 0.02, note, fontsize=7.5, color=ink.muted)
    return figure


def _draw(axes: Axes, label: str, curve: Record, place: int, ink: Ink) -> None:
    color, marker = ink.series[place % len(ink.series)], MARKERS[place % len(MARKERS)]
    points = [point for point in curve["points"] if point["rate"] is not None]
    steps = [point["step"] for point in points]
    rates = [point["rate"] for point in points]
    lower = [_known(point["lower"], point["rate"]) for point in points]
    upper = [_known(point["upper"], point["rate"]) for point in points]
    shown = shorten(label)
    axes.plot(steps, rates, color=color, marker=marker, markersize=4, linewidth=1.4, label=shown)
    axes.vlines(steps, lower, upper, color=color, linewidth=0.9, alpha=0.6)
    if curve["steps_to_threshold"] is None and points:
        axes.plot(
            steps[-1], rates[-1], ">", color=color, markersize=9, fillstyle="none", clip_on=False
        )


_ALL_WEIGHTS = "all weights"


def _panels(record: Record) -> dict[str, Record]:
    """Panel -> the curve of a run in it: LoRA's rates, highest first, then all weights."""
    curves = sorted(record["curves"], key=lambda curve: -curve["learning_rate"])
    found = {f"{index}": curve for index, curve in enumerate(curves)}
    best = strongest(record)
    return found if best is None else found | {_ALL_WEIGHTS: best}


def _titles(panels: Sequence[dict[str, Record]]) -> dict[str, str]:
    """Panel -> its title, with the learning rates of the runs in it."""
    names = sorted(
        {name for own in panels for name in own}, key=lambda name: (name == _ALL_WEIGHTS, name)
    )
    titles = {}
    for name in names:
        span = _span([own[name]["learning_rate"] for own in panels if name in own])
        titles[name] = f"learning rate {span}"
        if name == _ALL_WEIGHTS:
            titles[name] = f"all weights, strongest rate ({span})"
    return titles


def _span(found: Sequence[float]) -> str:
    low, high = min(found), max(found)
    return f"{low:.2g}" if math.isclose(low, high) else f"{low:.2g} to {high:.2g}"


def _known(number: float | None, otherwise: float) -> float:
    return otherwise if number is None else number
