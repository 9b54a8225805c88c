"""Heat maps of two adapters' updates: cosines and overlaps over layers and modules."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gradroute.report.render.figure_style import Ink, Record, blank, heat, shorten

_MEASURES = {
    "cosine": ("|cosine| of the weight updates", "mean_absolute_cosine"),
    "mean_cos2_A": ("row spaces of A, mean cos²", "mean_cos2_A"),
    "mean_cos2_B": ("column spaces of B, mean cos²", "mean_cos2_B"),
}
_BETWEEN = 0.3  # inches between two runs, for the name of the lower one
_ROOM = 64  # cells of a heat map up to which each shows its number


class Grid(NamedTuple):
    """One measure of one run: values[layer][module], NaN where there is none."""

    layers: tuple[str, ...]
    modules: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def geometry_figure(runs: Sequence[tuple[str, Record]], ink: Ink) -> Figure:
    """A row of heat maps per run: cosine of the updates, and how far A and B share a subspace.

    Every measure has one color scale over all runs, from 0; the mark on its color bar is the
    mean of random updates and subspaces of the same shapes.

    Args:
        runs: name and `geometry.json` of each run that has one.
        ink: the theme.
    """
    grids = [(name, {key: grid(record, key) for key in _MEASURES}) for name, record in runs]
    tallest = max((len(own[key].layers) for _, own in grids for key in _MEASURES), default=1)
    row = 0.17 * tallest + 0.45
    height = 1.85 + (row + _BETWEEN) * len(grids)
    figure = blank(height)
    every = figure.subplots(len(grids), 3, squeeze=False)
    figure.subplots_adjust(
        left=0.055,
        right=0.985,
        top=1 - 0.6 / height,
        bottom=1.2 / height,
        hspace=_BETWEEN / row,
        wspace=0.12,
    )
    for column, (key, (title, summary)) in enumerate(_MEASURES.items()):
        top = _top([own[key] for _, own in grids], runs, summary)
        for line, (name, own) in enumerate(grids):
            axes = every[line, column]
            _draw(axes, own[key], top, ink)
            if line == 0:
                place = axes.get_position()
                figure.text(place.x0, 1 - 0.2 / height, title, fontsize=8.5, va="center")
            if column == 0:
                axes.set_title(shorten(name, 48), fontsize=8.5, weight="bold", loc="left", pad=4)
                axes.set_ylabel("layer", fontsize=7.5)
            if line < len(grids) - 1:
                axes.set_xticklabels([])
        _bar(figure, every[-1, column], top, runs, summary, height, ink)
    return figure


def grid(record: Record, key: str) -> Grid:
    """A measure by layer and module, in the order in which the model has them.

    Args:
        record: what `geometry.json` holds.
        key: a measure of its modules.
    """
    cells: dict[tuple[str, str], float] = {}
    for module in record["modules"].values():
        layer = "-" if module["layer"] is None else str(module["layer"])
        value = module[key]
        cells[layer, module["module"]] = math.nan if value is None else abs(value)
    layers = tuple(dict.fromkeys(layer for layer, _ in cells))
    modules = tuple(dict.fromkeys(module for _, module in cells))
    values = tuple(tuple(cells.get((a, b), math.nan) for b in modules) for a in layers)
    return Grid(layers, modules, values)


def _draw(axes: Axes, own: Grid, top: float, ink: Ink) -> None:
    rows = [list(row) for row in own.values] or [[math.nan]]
    axes.imshow(rows, cmap=heat(ink), vmin=0, vmax=top, aspect="auto")
    short = [shorten(name.removesuffix("_proj"), 12) for name in own.modules]
    axes.set_xticks(range(len(short)), short, fontsize=7.5, rotation=0 if len(short) < 9 else 60)
    axes.set_yticks(range(len(own.layers)), own.layers, fontsize=7.5)
    if len(own.layers) > 16:
        axes.set_yticks(range(0, len(own.layers), 4), own.layers[::4], fontsize=7.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(own.layers) * len(own.modules) <= _ROOM:
        for y, row in enumerate(own.values):
            for x, value in enumerate(row):
                color = ink.text if value < 0.5 * top else ink.paper
                text = "-" if math.isnan(value) else _number(value)
                axes.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=6.8,
                    color=ink.muted if math.isnan(value) else color,
                )


def _top(grids: Sequence[Grid], runs: Sequence[tuple[str, Record]], summary: str) -> float:
    found = [v for own in grids for row in own.values for v in row if not math.isnan(v)]
    random = [_random(record, summary) for _, record in runs]
    known = [*found, *(value for value in random if not math.isnan(value))]
    return max([*known, 1e-3]) * 1.02


def _bar(
    figure: Figure,
    under: Axes,
    top: float,
    runs: Sequence[tuple[str, Record]],
    summary: str,
    height: float,
    ink: Ink,
) -> None:
    """The color scale below a column, with what random updates give."""
    place = under.get_position()
    bar = figure.add_axes((place.x0, 0.58 / height, place.width, 0.1 / height))
    scale = ScalarMappable(Normalize(0, top), heat(ink))
    figure.colorbar(scale, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7.5, length=2)
    bar.spines[:].set_visible(False)
    values = [_random(record, summary) for _, record in runs]
    known = [value for value in values if not math.isnan(value)]
    if known:
        mean = sum(known) / len(known)
        bar.axvline(mean, color=ink.modes["good_ablated"], linewidth=2)
        text = f"random of these shapes: {_number(mean)} (mark)"
        bar.text(0, -3.1, text, transform=bar.transAxes, fontsize=7.5, va="top", color=ink.muted)


def _random(record: Record, summary: str) -> float:
    """Mean of random draws of the same shapes; NaN if not at hand."""
    mean = ((record.get("random") or {}).get(summary) or {}).get("mean")
    return math.nan if mean is None else float(mean)


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}".replace("0.", ".", 1)
