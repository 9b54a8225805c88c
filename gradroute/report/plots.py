"""The comparison as a picture."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradroute.files import write_bytes
from gradroute.report.analysis import Loss, RunResults
from gradroute.report.roles import adapter_names

# Okabe and Ito 2008, "Color Universal Design": told apart with any common colour blindness.
# Markers differ as well, for print and for anyone who does not go by colour.
_STYLES = {
    "full": ("#0072B2", "o"),
    "bad_ablated": ("#009E73", "s"),
    "good_ablated": ("#D55E00", "D"),
    "good_x2": ("#E69F00", "P"),
    "base": ("#7F7F7F", "X"),
}
_MORE = (("#CC79A7", "v"), ("#56B4E9", "<"), ("#000000", ">"), ("#B8A900", "p"))

_NOTE = (
    "Lines: 95 % intervals. The loss axis does not start at 0; arrows: beyond it, with the value."
)

_WIDTH_INCHES, _HEIGHT_INCHES, _DPI = 9.0, 5.9, 200  # 900 pixels of a page, twice as sharp
# In widths of a bar: room for a run's label, space between runs, and all that a figure spans.
_GROUP, _GAP, _SPAN = 4, 1.2, 14


def eval_multi_plot(path: Path, runs: Sequence[RunResults]) -> None:
    """Draw behaviour rate and held-out normal loss: a group per run, a mark per mode.

    Rates are bars with 95 % intervals and their number, so that a rate of 0 is seen too. Losses are
    points with intervals on an axis that spans what tuning gains, from the best run to
    above the untuned base; what lies beyond stands at its edge with an arrow and its value.

    The same runs give the same bytes.

    Args:
        path: The PNG file to write, atomically.
        runs: What to draw, in this order.

    Raises:
        MachineError: The file cannot be written.
    """
    modes = list(dict.fromkeys(mode for run in runs for mode in run.cells))
    places, centers = _places(runs)
    figure = Figure(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.05))
    figure.subplots_adjust(left=0.075, right=0.915, top=0.92, bottom=0.13, hspace=0.11)
    _draw_rates(top, runs, places)
    _draw_losses(bottom, runs, places)
    behavior = runs[0].config["behavior"] if runs else "behaviour"
    top.set_ylabel(f"{behavior} rate of completions, %", fontsize=8.5)
    bottom.set_ylabel("held-out normal loss, nats/token", fontsize=8.5)
    bottom.set_xticks(centers, [_run_label(run) for run in runs], fontsize=8.5)
    _set_span(bottom, places, centers)
    for axes in (top, bottom):
        _tidy(axes)
    figure.legend(
        handles=[_key(mode) for mode in modes],
        loc="upper center",
        ncols=max(1, len(modes)),
        frameon=False,
        fontsize=9,
        columnspacing=2.2,
        handletextpad=0.3,
    )
    figure.text(0.075, 0.012, _NOTE, fontsize=7.5, color="#555555")
    image = io.BytesIO()
    canvas.print_png(image, metadata={"Software": None})  # its version would change the bytes
    write_bytes(path, image.getvalue())


def _style(mode: str) -> tuple[str, str]:
    if mode in _STYLES:
        return _STYLES[mode]
    return _MORE[sum(mode.encode()) % len(_MORE)]


def _key(mode: str) -> Line2D:
    color, marker = _style(mode)
    return Line2D([], [], color=color, marker=marker, linestyle="", markersize=7, label=mode)


def _places(runs: Sequence[RunResults]) -> tuple[dict[tuple[str, str], float], list[float]]:
    """Where each mode of each run stands, and the middle of each run."""
    places: dict[tuple[str, str], float] = {}
    centers = []
    at = 0.0
    for run in runs:
        width = max(len(run.cells), _GROUP)
        first = at + (width - len(run.cells)) / 2
        places |= {(run.name, mode): first + index for index, mode in enumerate(run.cells)}
        centers.append(at + (width - 1) / 2)
        at += width + _GAP
    return places, centers


def _draw_rates(
    axes: Axes, runs: Sequence[RunResults], places: Mapping[tuple[str, str], float]
) -> None:
    for run in runs:
        for mode, cell in run.cells.items():
            if cell.rate is None:
                continue
            color, _ = _style(mode)
            at = places[run.name, mode]
            value, lower, upper = (100 * number for number in cell.rate[:3])
            axes.bar(at, value, width=0.82, color=color, alpha=0.55, linewidth=0)
            # A bar of height 0 still has its edge.
            axes.plot([at - 0.41, at + 0.41], [value, value], color=color, linewidth=2.4)
            axes.vlines(at, lower, upper, color="#222222", linewidth=1.1)
            axes.text(at, upper + 1.5, f"{value:.0f}", ha="center", va="bottom", fontsize=7.5)
    axes.set_ylim(-1.5, 114)
    axes.set_yticks(range(0, 101, 25))


def _draw_losses(
    axes: Axes, runs: Sequence[RunResults], places: Mapping[tuple[str, str], float]
) -> None:
    losses = {
        (run.name, mode): loss
        for run in runs
        for mode in run.cells
        if (loss := run.loss(mode, "normal")) is not None
    }
    if not losses:
        return
    low, high = _loss_window(runs)
    axes.set_ylim(low, high)
    _draw_references(axes, runs)
    for (run, mode), loss in losses.items():
        color, marker = _style(mode)
        at = places[run, mode]
        if loss.mean < high:
            axes.vlines(at, loss.lower, min(loss.upper, high), color=color, linewidth=1.6)
            axes.plot(at, loss.mean, marker, color=color, markersize=6)
            continue
        height = high - low
        axes.annotate(
            "",
            (at, high - 0.005 * height),
            (at, high - 0.13 * height),
            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.6},
        )
        axes.plot(at, high - 0.13 * height, marker, color=color, markersize=6)
        axes.text(at, high - 0.18 * height, _short(loss.mean), ha="center", va="top", fontsize=7.5)


def _loss_window(runs: Sequence[RunResults]) -> tuple[float, float]:
    """From below the best loss to above the untuned base by half of what tuning gains."""
    found = [loss for run in runs for mode in run.cells if (loss := run.loss(mode, "normal"))]
    best = min(loss.mean for loss in found)
    bases = [loss.mean for run in runs if (loss := run.loss("base", "normal"))]
    top = max(bases) if bases else max(loss.mean for loss in found)
    span = max(top - best, 0.02)
    lowest = min(_known(loss.lower, loss.mean) for loss in found)
    return max(min(best, lowest) - 0.1 * span, best - span), top + 0.75 * span


def _known(number: float, otherwise: float) -> float:
    return otherwise if math.isnan(number) else number


def _draw_references(axes: Axes, runs: Sequence[RunResults]) -> None:
    """Lines across at the untuned base and at the run that never saw the behaviour."""
    references: dict[str, Loss] = {}
    for run in runs:
        base, full = run.loss("base", "normal"), run.loss("full", "normal")
        if base is not None:
            references.setdefault("untuned\nbase", base)
        if full is not None and run.role == "baseline":
            references.setdefault(f"{run.name},\nfull", full)
    for name, loss in references.items():
        axes.axhline(loss.mean, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.text(
            1.006,
            loss.mean,
            name,
            transform=axes.get_yaxis_transform(),
            ha="left",
            va="center",
            fontsize=7.5,
            color="#555555",
        )


def _set_span(
    axes: Axes, places: Mapping[tuple[str, str], float], centers: Sequence[float]
) -> None:
    """Keep the bars of a single run as narrow as those of many."""
    ends = [*places.values(), *centers]
    low, high = min(ends, default=0) - 1, max(ends, default=0) + 1
    missing = max(0, _SPAN - (high - low)) / 2
    axes.set_xlim(low - missing, high + missing)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _run_label(run: RunResults) -> str:
    """The run's name and what was done to it."""
    data, table = run.config["data"], run.config["routing"]
    table = table if isinstance(table, str) else "own table"
    labels = f"{100 * data['labeled_fraction']:g} % labelled"
    what = {
        "baseline": f"no {run.config['behavior']} in training",
        "filter": f"labelled ones dropped\n{labels}",
        "routed": f"{table}\n{labels}",
        "unrouted": f"not routed\n{len(adapter_names(run.config))} adapters",
    }
    return f"{run.name}\n{what.get(run.role, 'not routed')}"


def _short(loss: float) -> str:
    return f"{loss:.1f}" if loss < 100 else "> 100"
