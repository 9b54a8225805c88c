"""The comparison as a picture: behavior rate and normal loss, a group per run, a mark per mode."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradroute.config.controls import BY_ROLE
from gradroute.report.render.figure_style import Ink, blank, shorten, split_figure, style, tidy
from gradroute.report.results.roles import adapter_names
from gradroute.report.results.run_results import RunResults
from gradroute.report.results.scales import listed_modes
from gradroute.report.results.seeds import Group, OverSeeds

_NOTE = (
    "Lines: 95 % intervals. The loss axis does not start at 0; arrows: beyond it, with the value."
)
_SEEDS_NOTE = (
    "Bars and marks: mean over seeds; dots: each seed; lines: 95 % t intervals over seeds. "
    "The loss axis does not start at 0."
)
# In widths of a bar: room for a run's label, space between runs, all that a row spans at least,
# and what it holds at most.
_GROUP, _GAP, _SPAN, _FULL_ROW = 4, 1.2, 14, 31
_ROW_INCHES = 5.5


class Mark(NamedTuple):
    """A measured number with its interval (NaN where there is none) and what it is the mean of."""

    mean: float
    lower: float
    upper: float
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What stands beside what: one run, or runs that differ in their seed alone.

    Attributes:
        label: Lines below it.
        role: See `roles.role_of`.
        rates: Behavior rate by mode.
        losses: Held-out normal loss by mode.
        modes: In the order in which they stand.
    """

    label: str
    role: str
    rates: Mapping[str, Mark]
    losses: Mapping[str, Mark]
    modes: Sequence[str]


def run_entries(runs: Sequence[RunResults]) -> list[Entry]:
    """One entry per run, with the intervals of its own examples."""
    entries = []
    for run in runs:
        losses = {mode: run.loss(mode, "normal") for mode in run.cells}
        rates = {mode: run.rate(mode) for mode in run.cells}
        entries.append(
            Entry(
                label=run_label(run, run.name),
                role=run.role,
                rates={mode: Mark(*rate[:3]) for mode, rate in rates.items() if rate is not None},
                losses={mode: Mark(*loss[:3]) for mode, loss in losses.items() if loss is not None},
                modes=listed_modes(run.cells),
            )
        )
    return entries


def group_entries(groups: Sequence[Group], runs: Sequence[RunResults]) -> list[Entry]:
    """One entry per group: mean over its seeds, interval over them, and each of them."""
    first = {run.name: run for run in runs}
    return [
        Entry(
            label=run_label(first[group.runs[0]], group.name),
            role=group.role,
            rates={mode: _over_seeds(rate) for mode in group.modes if (rate := group.rate(mode))},
            losses={
                mode: _over_seeds(loss)
                for mode in group.modes
                if (loss := group.loss(mode, "normal"))
            },
            modes=listed_modes(group.modes),
        )
        for group in groups
    ]


def _over_seeds(number: OverSeeds) -> Mark:
    seeds = number.values if len(number.values) > 1 else ()
    return Mark(number.mean, number.lower, number.upper, seeds)


def eval_multi_figure(entries: Sequence[Entry], behavior: str, ink: Ink) -> Figure:
    """Behavior rate above, held-out normal loss below; more entries than fit begin another row.

    Rates are bars with 95 % intervals and their number, so that a rate of 0 is seen too. Losses are
    points with intervals on an axis that spans what tuning gains, from the best run to
    above the untuned base; what lies beyond stands at its edge with an arrow and its value.
    """
    rows = _rows(entries)
    modes = list(dict.fromkeys(mode for entry in entries for mode in entry.modes))
    height = 0.55 + _ROW_INCHES * len(rows)
    figure = blank(height)
    legend, *strips, foot = split_figure(
        figure, [0.35, *[_ROW_INCHES] * len(rows), 0.2], ink, beside=False
    )
    window = _loss_window(entries)
    for strip, row in zip(strips, rows, strict=True):
        top, bottom = strip.subplots(2, 1, sharex=True, height_ratios=(1, 1.05))
        strip.subplots_adjust(left=0.075, right=0.915, top=0.98, bottom=0.13, hspace=0.1)
        places, centers = _places(row)
        _draw_rates(top, row, places, ink)
        if window is not None:
            _draw_references(bottom, entries, ink)
            _draw_losses(bottom, row, places, window, ink)
        top.set_ylabel(f"{shorten(behavior)} rate of completions, %", fontsize=8.5)
        bottom.set_ylabel("held-out normal loss, nats/token", fontsize=8.5)
        bottom.set_xticks(centers, [entry.label for entry in row], fontsize=8)
        _set_span(bottom, places, centers)
        for axes in (top, bottom):
            tidy(axes, ink)
            axes.tick_params(axis="x", length=0)
    legend.legend(
        handles=[_key(mode, ink) for mode in modes],
        loc="center",
        ncols=max(1, len(modes)),
        frameon=False,
        fontsize=9,
        columnspacing=2.2,
        handletextpad=0.3,
    )
    over_seeds = any(mark.seeds for entry in entries for mark in entry.rates.values())
    note = _SEEDS_NOTE if over_seeds else _NOTE
    foot.text(0.075, 0.4, note, fontsize=7.5, color=ink.muted)
    return figure


def _rows(entries: Sequence[Entry]) -> list[list[Entry]]:
    """As few rows as hold the entries, filled evenly."""
    widths = [max(len(entry.modes), _GROUP) + _GAP for entry in entries]
    wanted = max(1, math.ceil(sum(widths) / _FULL_ROW))
    each = max(1, math.ceil(len(entries) / wanted))
    return [list(entries[at : at + each]) for at in range(0, len(entries), each)] or [[]]


def _key(mode: str, ink: Ink) -> Line2D:
    color, marker = style(mode, ink)
    return Line2D(
        [], [], color=color, marker=marker, linestyle="", markersize=7, label=shorten(mode)
    )


Places = Mapping[tuple[int, str], float]


def _places(row: Sequence[Entry]) -> tuple[Places, list[float]]:
    """Where each mode of each entry stands, and the middle of each entry."""
    places: dict[tuple[int, str], float] = {}
    centers = []
    at = 0.0
    for position, entry in enumerate(row):
        width = max(len(entry.modes), _GROUP)
        first = at + (width - len(entry.modes)) / 2
        places |= {(position, mode): first + index for index, mode in enumerate(entry.modes)}
        centers.append(at + (width - 1) / 2)
        at += width + _GAP
    return places, centers


def _draw_rates(axes: Axes, row: Sequence[Entry], places: Places, ink: Ink) -> None:
    for (position, mode), at in places.items():
        mark = row[position].rates.get(mode)
        if mark is None:
            continue
        color, _ = style(mode, ink)
        value, lower, upper = (100 * number for number in mark[:3])
        axes.bar(at, value, width=0.82, color=color, alpha=0.55, linewidth=0)
        # A bar of height 0 still has its edge.
        axes.plot([at - 0.41, at + 0.41], [value, value], color=color, linewidth=2.4)
        axes.vlines(at, lower, upper, color=ink.text, linewidth=1.1)
        _draw_seeds(axes, at, [100 * seed for seed in mark.seeds], ink)
        above = max(_known(upper, value), *(100 * seed for seed in mark.seeds), value)
        axes.text(at, above + 1.5, f"{value:.0f}", ha="center", va="bottom", fontsize=7.5)
    axes.set_ylim(-1.5, 114)
    axes.set_yticks(range(0, 101, 25))


def _draw_losses(
    axes: Axes, row: Sequence[Entry], places: Places, window: tuple[float, float], ink: Ink
) -> None:
    low, high = window
    axes.set_ylim(low, high)
    for (position, mode), at in places.items():
        mark = row[position].losses.get(mode)
        if mark is None:
            continue
        color, marker = style(mode, ink)
        if mark.mean < high:
            axes.vlines(at, max(mark.lower, low), min(mark.upper, high), color=color, linewidth=1.6)
            _draw_seeds(axes, at, [seed for seed in mark.seeds if seed < high], ink)
            axes.plot(at, mark.mean, marker, color=color, markersize=6)
            continue
        height = high - low
        axes.annotate(
            "",
            (at, high - 0.005 * height),
            (at, high - 0.13 * height),
            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.6},
        )
        axes.plot(at, high - 0.13 * height, marker, color=color, markersize=6)
        axes.text(at, high - 0.18 * height, _short(mark.mean), ha="center", va="top", fontsize=7.5)


def _draw_seeds(axes: Axes, at: float, seeds: Sequence[float], ink: Ink) -> None:
    """Each seed beside the mean, shifted so that equal ones are counted."""
    for index, value in enumerate(seeds):
        shift = 0.24 + 0.14 * (index - (len(seeds) - 1) / 2) if len(seeds) > 1 else 0.0
        axes.plot(
            at + shift, value, "o", markersize=2.2, color=ink.text, markeredgewidth=0, zorder=4
        )


def _loss_window(entries: Sequence[Entry]) -> tuple[float, float] | None:
    """From below the best loss to above the untuned base by half of what tuning gains."""
    found = [
        entry.losses[mode] for entry in entries for mode in entry.modes if mode in entry.losses
    ]
    if not found:
        return None
    best = min(mark.mean for mark in found)
    bases = [entry.losses["base"].mean for entry in entries if "base" in entry.losses]
    top = max(bases) if bases else max(mark.mean for mark in found)
    span = max(top - best, 0.02)
    lowest = min(_known(mark.lower, mark.mean) for mark in found)
    return max(min(best, lowest) - 0.1 * span, best - span), top + 0.75 * span


def _known(number: float, otherwise: float) -> float:
    return otherwise if math.isnan(number) else number


def _draw_references(axes: Axes, entries: Sequence[Entry], ink: Ink) -> None:
    """Lines across at the untuned base and at the run that never saw the behavior."""
    references: dict[str, float] = {}
    for entry in entries:
        base, full = entry.losses.get("base"), entry.losses.get("full")
        if base is not None:
            references.setdefault("untuned\nbase", base.mean)
        if full is not None and entry.role == "baseline":
            references.setdefault(f"{entry.label.splitlines()[0]},\nfull", full.mean)
    for name, loss in references.items():
        axes.axhline(loss, color=ink.muted, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.text(
            1.006,
            loss,
            name,
            transform=axes.get_yaxis_transform(),
            ha="left",
            va="center",
            fontsize=7.5,
            color=ink.muted,
        )


def _set_span(axes: Axes, places: Places, centers: Sequence[float]) -> None:
    """Keep the bars of a single run as narrow as those of many."""
    ends = [*places.values(), *centers]
    low, high = min(ends, default=0) - 1, max(ends, default=0) + 1
    missing = max(0, _SPAN - (high - low)) / 2
    axes.set_xlim(low - missing, high + missing)


def run_label(run: RunResults, name: str) -> str:
    """A name and what was done in training, in two or three lines."""
    data, table = run.config["data"], run.config["routing"]
    table = table if isinstance(table, str) else "own table"
    labels = f"{100 * data['labeled_fraction']:g} % labeled"
    if run.role == "routed":
        what = f"{table}\n{labels}"
    elif run.role in BY_ROLE:
        what = BY_ROLE[run.role].figure.format(
            table=table,
            labels=labels,
            behavior=shorten(str(run.config["behavior"]), 12),
            adapters=len(adapter_names(run.config)),
        )
    else:
        what = run.role
    return f"{shorten(name, 24)}\n{what}"


def _short(loss: float) -> str:
    if loss >= 100:
        return "> 100"
    return f"{loss:.1f}" if loss < 10 else f"{loss:.0f}"
