"""Every figure of a report, with its caption; each is drawn when it is needed, in either theme."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from gradroute.report.judge.comparison import (
    Comparison,
    MultiBehaviorComparison,
    SingleBehaviorComparison,
)
from gradroute.report.render.cross_ablation_figure import crossing_figure
from gradroute.report.render.figure_style import Ink
from gradroute.report.render.geometry_figure import geometry_figure
from gradroute.report.render.overview_figure import eval_multi_figure, group_entries, run_entries
from gradroute.report.render.relearning_figure import relearning_figure
from gradroute.report.render.scale_figures import (
    bad_curves,
    options,
    scales_figure,
    tradeoff_figure,
)
from gradroute.report.render.training_plot import training_figure
from gradroute.report.results.run_results import by_behavior

_ORDER = {"routed": 0, "unrouted": 1}  # what a routed run's geometry is read against comes next

MOST_GEOMETRIES = 6
MOST_TRAININGS = 8


@dataclass(frozen=True)
class Picture:
    """A figure and what stands around it.

    Attributes:
        name: Of its files.
        section: Of the page that it belongs to.
        title: What it is, for those who cannot see it as well.
        caption: How to read it.
        draw: Draws it in a theme.
    """

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[Ink], Figure]


def pictures(comparison: Comparison) -> list[Picture]:
    """The figures for which something was measured, in the order of the page."""
    of_bad = []
    if isinstance(comparison, SingleBehaviorComparison):
        of_bad = [_tradeoff(comparison), _scales(comparison)]
    made = [
        eval_multi_picture(comparison),
        *of_bad,
        _geometry(comparison),
        *_trainings(comparison),
        _relearning(comparison),
    ]
    return [picture for picture in made if picture is not None]


def eval_multi_picture(comparison: Comparison) -> Picture:
    """Rates and losses of every run; where runs differ in their seed alone, of every group."""
    if isinstance(comparison, MultiBehaviorComparison):
        return Picture(
            "eval_multi_plot",
            "crossing",
            f"Rates of {comparison.behavior} under every mode",
            "Share of completions that show each behavior (rows) under each ablation mode "
            "(columns), with its 95 % interval. Framed: the behavior without its own adapter.",
            partial(crossing_figure, comparison.crossings),
        )
    over_seeds = any(len(group.seeds) > 1 for group in comparison.groups)
    entries = (
        group_entries(comparison.groups, comparison.runs)
        if over_seeds
        else run_entries(comparison.runs)
    )
    what = "each group of seeds" if over_seeds else "each run"
    return Picture(
        "eval_multi_plot",
        "rates",
        f"{comparison.behavior} rate and held-out normal loss of {what} under every mode",
        "Above: share of completions that show the behavior, with its number. Below: loss on "
        "normal held-out text, where lower is better; dashed lines are the untuned base and, where "
        "there is one, the run that never saw the behavior.",
        partial(eval_multi_figure, entries, comparison.behavior),
    )


_DOTTED = (
    ", so the dotted line of a control shows its results when its whole update is scaled down: "
    "routing has an effect of its own if its mark is below that line."
)
_NO_LINE = (
    "; what a control shows when its whole update is scaled down was not measured "
    "(`gradroute eval CONTROL… --scale all=0.1,0.2,...,1`)."
)


def _tradeoff(comparison: SingleBehaviorComparison) -> Picture | None:
    found = options(comparison)
    if not found:
        return None
    return Picture(
        "tradeoff_plot",
        "controls",
        f"{comparison.behavior} rate against gain kept, every run as it would be shipped",
        "Low and to the right is better. Controls keep different shares of the gain"
        + (_DOTTED if any(option.has_line for option in found) else _NO_LINE),
        partial(tradeoff_figure, found, comparison.behavior),
    )


def _scales(comparison: SingleBehaviorComparison) -> Picture | None:
    found = [curve for curve in bad_curves(comparison) if len(curve.points) > 2]
    if not found:
        return None
    return Picture(
        "scales_plot",
        "scales",
        f"{comparison.behavior} rate and normal loss over scales of bad",
        "Every run at every measured scale of `bad`, all other adapters at 1.",
        partial(scales_figure, found, comparison.behavior),
    )


def _geometry(comparison: Comparison) -> Picture | None:
    found = [
        (run.name, run.geometry)
        for run in sorted(comparison.runs, key=lambda run: _ORDER.get(run.role, len(_ORDER)))
        if run.geometry is not None and run.name in _first_seeds(comparison)
    ]
    if not found:
        return None
    left_out = sum(run.geometry is not None for run in comparison.runs) - len(
        found[:MOST_GEOMETRIES]
    )
    more = f" {left_out} more runs (other seeds) are in the table and the JSON." if left_out else ""
    return Picture(
        "geometry_plot",
        "geometry",
        "Cosine of the updates of two adapters and overlap of their subspaces by layer and module",
        "Rows of a map are layers, columns are modules. Overlap of subspaces is the mean squared "
        f"cosine of their principal angles: 0 at right angles, 1 if one contains the other. The "
        f"mark on each scale is the value of random updates of the same shapes.{more}",
        partial(geometry_figure, found[:MOST_GEOMETRIES]),
    )


def _trainings(comparison: Comparison) -> list[Picture]:
    first = _first_seeds(comparison)
    found = [run for run in comparison.runs if run.metrics and run.name in first]
    found.sort(key=lambda run: run.role != "routed")
    return [
        Picture(
            f"training_plot_{run.name}",
            "training",
            f"{run.name}: training loss, gradient shares, learning rate, behavior rate",
            "Faint lines are single logged steps, strong ones a running mean. Shares are of the "
            "norms of each label's part of an adapter's gradient, at the steps that logged them.",
            partial(training_figure, run.name, run.metrics, run.measures),
        )
        for run in found[:MOST_TRAININGS]
    ]


def _relearning(comparison: Comparison) -> Picture | None:
    label = {name: group.name for group in comparison.groups for name in group.runs}
    found = [
        (label.get(run.name, run.name), run.relearn)
        for run in by_behavior(comparison.runs)
        if run.relearn is not None
    ]
    if not found:
        return None
    return Picture(
        "relearning_plot",
        "revival",
        f"{comparison.behavior} rate over steps of plain fine-tuning on the behavior",
        "The same attack on the shipped form of each run; a line per run, runs of one group in one "
        "color. Curves further left come back sooner.",
        partial(relearning_figure, found),
    )


def _first_seeds(comparison: Comparison) -> set[str]:
    """The first run of every group: figures that take a run each show one seed."""
    return {group.runs[0] for group in comparison.groups}
