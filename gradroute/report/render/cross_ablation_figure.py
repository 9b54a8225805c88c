"""The matrix of behavior by ablation mode as a heat map with its numbers, a map per group."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gradroute.report.judge.cross_ablation import Crossing
from gradroute.report.render.figure_style import Ink, blank, heat, shorten

_ROW = 0.42  # inches of a behavior
_AROUND = 0.8  # of a map's name and the names of its modes


def crossing_figure(crossings: Sequence[Crossing], ink: Ink) -> Figure:
    """One heat map per group: rows are behaviors, columns modes, every cell with its rate.

    Shades go with the rate, so that they keep their order in gray; the frame is the behavior
    without its own adapter.

    Args:
        crossings: of the groups.
        ink: the theme.
    """
    rows = [len(one.rates) for one in crossings]
    height = sum(_ROW * count + _AROUND for count in rows) + 0.1
    figure = blank(height)
    top = height - 0.05
    for one, count in zip(crossings, rows, strict=True):
        high = _ROW * count
        bottom = top - _AROUND + 0.1 - high
        axes = figure.add_axes((0.13, bottom / height, 0.85, high / height))
        _draw(axes, one, ink)
        top -= high + _AROUND
    return figure


def _draw(axes: Axes, one: Crossing, ink: Ink) -> None:
    nowhere = float("nan")
    means = [
        [own[mode].mean if mode in own else nowhere for mode in one.modes]
        for own in one.rates.values()
    ]
    axes.imshow(means, cmap=heat(ink), vmin=0, vmax=1, aspect="auto")
    axes.set_title(shorten(one.group, 60), fontsize=9, weight="bold", loc="left", pad=18)
    axes.set_xticks(range(len(one.modes)), [shorten(mode, 20) for mode in one.modes], fontsize=7)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(one.rates)), [shorten(label, 14) for label in one.rates])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, (label, own) in enumerate(one.rates.items()):
        for x, mode in enumerate(one.modes):
            if mode not in own:
                continue
            rate = own[mode]
            text = f"{100 * rate.mean:.0f} %"
            if rate.basis != "none":
                text += f"\n[{100 * rate.lower:.0f}, {100 * rate.upper:.0f}]"
            color = ink.text if rate.mean < 0.6 else ink.paper
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
            if one.own(label, mode):
                place = (x - 0.47, y - 0.45)
                frame = Rectangle(place, 0.94, 0.9, fill=False, edgecolor=ink.text, linewidth=1.6)
                axes.add_patch(frame)
