"""The shared style of figures: two themes, marks of the modes, bytes that repeat."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from PIL import Image

WIDTH_INCHES = 9.0
"""Width of every figure: 900 pixels of a page."""
_DPI = 200  # twice as sharp as a page's pixel
_PAGE_DPI = 160  # of the many figures of a report, whose PDF has any sharpness
_COLORS = 256  # of their palette


@dataclass(frozen=True)
class Ink:
    """The colors of a theme; those of the page's style sheet.

    Attributes:
        paper: Behind everything.
        text: Letters and axes.
        muted: Notes and reference lines.
        grid: Lines to read values by.
        modes: Color of each standard mode.
        series: Colors of whatever else is told apart, in this order.
        heat: Colors of a heat map, from 0 up.
    """

    paper: str
    text: str
    muted: str
    grid: str
    modes: Mapping[str, str]
    series: tuple[str, ...]
    heat: tuple[str, ...]


# Okabe and Ito 2008, "Color Universal Design": told apart with any common color blindness.
# Markers differ as well, for print and for anyone who does not go by color.
LIGHT = Ink(
    paper="#ffffff",
    text="#1c2127",
    muted="#59626d",
    grid="#dfe3e8",
    modes={
        "full": "#0072B2",
        "bad_ablated": "#009E73",
        "good_ablated": "#D55E00",
        "good_x2": "#E69F00",
        "base": "#7F7F7F",
    },
    series=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7F00"),
    heat=("#f3f6f9", "#9cc3e2", "#2f78b4", "#0b3c68"),
)
# On dark paper the blue is lighter and black turns white; the order of the hues stays.
DARK = Ink(
    paper="#15181c",
    text="#e3e6ea",
    muted="#9aa4b0",
    grid="#2e343b",
    modes={
        "full": "#4AA8E0",
        "bad_ablated": "#1FBF92",
        "good_ablated": "#F0803C",
        "good_x2": "#F0B429",
        "base": "#9AA0A6",
    },
    series=("#4AA8E0", "#F0803C", "#1FBF92", "#DD92BB", "#F0B429", "#7CC8F2", "#ffffff", "#C2B534"),
    heat=("#1e242b", "#2c577c", "#5fa3d3", "#d2eaff"),
)

MARKERS = ("o", "D", "s", "v", "P", "<", "X", "p")
_MODE_MARKERS = {"full": "o", "bad_ablated": "s", "good_ablated": "D", "good_x2": "P", "base": "X"}

Record = Mapping[str, Any]
"""A document that a run keeps, such as `geometry.json`."""
Draw = Callable[[Ink], Figure]
"""A figure that can be drawn in any theme."""


@contextmanager
def theme(ink: Ink) -> Iterator[None]:
    """Make the theme's colors the default of what is drawn inside, and of nothing else."""
    settings: dict[Any, Any] = {
        "figure.facecolor": ink.paper,
        "axes.facecolor": ink.paper,
        "savefig.facecolor": ink.paper,
        "text.color": ink.text,
        "axes.edgecolor": ink.text,
        "axes.labelcolor": ink.text,
        "xtick.color": ink.text,
        "ytick.color": ink.text,
        "axes.linewidth": 0.8,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
        "font.size": 8.5,
        "text.parse_math": False,  # a `$` in somebody's pattern is no formula
        "pdf.fonttype": 42,  # letters stay text
        "path.simplify": True,
    }
    with matplotlib.rc_context():
        matplotlib.rcParams.update(settings)
        yield


def blank(height: float) -> Figure:
    """An empty figure of that many inches, on the paper of the theme in force."""
    return Figure(figsize=(WIDTH_INCHES, height), dpi=_DPI)


def split_figure(
    figure: Figure, ratios: Sequence[float], ink: Ink, *, beside: bool
) -> list[SubFigure]:
    """The figure cut into strips of these sizes, beside or below each other."""
    if beside:
        grid = figure.add_gridspec(1, len(ratios), width_ratios=ratios, wspace=0.02)
    else:
        grid = figure.add_gridspec(len(ratios), 1, height_ratios=ratios, hspace=0.0)
    made = [figure.add_subfigure(cell) for cell in grid]
    for part in made:
        part.set_facecolor(ink.paper)
    return made


class DrawnForms(NamedTuple):
    """A figure in every form: PNG on light and on dark paper, PDF on light paper."""

    light: bytes
    dark: bytes
    pdf: bytes


def draw_forms(draw: Draw) -> DrawnForms:
    """Draw a figure in every form; the same figure gives the same bytes."""
    with theme(LIGHT), _quiet():
        figure = draw(LIGHT)
        light = _small_png(figure)
        image = io.BytesIO()
        nobody = {"Creator": None, "Producer": None, "CreationDate": None}
        FigureCanvasPdf(figure).print_pdf(image, metadata=nobody)
    with theme(DARK), _quiet():
        dark = _small_png(draw(DARK))
    return DrawnForms(light, dark, image.getvalue())


def png(draw: Draw, ink: Ink) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    with theme(ink), _quiet():
        image = io.BytesIO()
        # Its version in the metadata would change the bytes.
        FigureCanvasAgg(draw(ink)).print_png(image, metadata={"Software": None})
    return image.getvalue()


def _small_png(figure: Figure) -> bytes:
    """A PNG with a palette: a third of the bytes, which a page with twenty figures feels.

    The palette is chosen so that a color of few pixels, a mark on a heat map, keeps its place.
    """
    figure.set_dpi(_PAGE_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colors = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image = io.BytesIO()
    colors.quantize(_COLORS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
        image, "PNG", optimize=True
    )
    return image.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """A name may hold letters that the font lacks; they are drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def style(mode: str, ink: Ink) -> tuple[str, str]:
    """Color and marker of a mode, the same in every figure."""
    if mode in ink.modes:
        return ink.modes[mode], _MODE_MARKERS[mode]
    at = 3 + sum(mode.encode()) % (len(MARKERS) - 3)
    return ink.series[at], MARKERS[at]


def heat(ink: Ink) -> LinearSegmentedColormap:
    """The colors of a heat map."""
    return LinearSegmentedColormap.from_list("heat", ink.heat)


def share_axis(axes: Axes) -> None:
    """An axis of shares, from 0 to 100 %."""
    axes.set_ylim(-0.02, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])


def tidy(axes: Axes, ink: Ink) -> None:
    """Two spines, lines across, small numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color=ink.grid, linewidth=0.6)
    axes.set_axisbelow(True)


def shorten(text: str, most: int = 28) -> str:
    """Text for a label: one line, nothing invisible, cut in the middle when long."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return line if len(line) <= most else f"{line[: most // 2]}…{line[-(most // 2 - 1) :]}"
