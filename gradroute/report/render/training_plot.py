"""One run's training as a picture: losses, gradient shares, learning rate, behavior.

Reads what the run wrote while it trained (`metrics.jsonl`, `eval/during.jsonl`); no torch.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradroute.errors import DataError
from gradroute.report.render.figure_style import (
    LIGHT,
    Ink,
    Record,
    blank,
    png,
    share_axis,
    shorten,
    split_figure,
    style,
    tidy,
)
from gradroute.report.results.number_text import count_range
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines, write_bytes
from gradroute.system.statistics import wilson

_LABELS = ("good", "bad", "unlabeled")
_WINDOW = 0.06  # a running mean over this share of the logged steps


def plot_run(folder: RunFolder) -> Path:
    """Draw one run's `training_plot.png` into its folder.

    Args:
        folder: the run; it may be unfinished.

    Returns:
        The file's path.

    Raises:
        DataError: the run has not logged a step yet.
        MachineError: the file cannot be written.
    """
    metrics = list(read_lines(folder.metrics))
    if not metrics:
        raise DataError(
            f"run {folder.name} has no logged step in {folder.metrics}: train it first, with "
            "`gradroute train`."
        )
    draw = partial(training_figure, folder.name, metrics, list(read_lines(folder.measures)))
    write_bytes(folder.training_plot, png(draw, LIGHT))
    return folder.training_plot


def training_figure(
    name: str, metrics: Sequence[Record], measures: Sequence[Record], ink: Ink
) -> Figure:
    """Loss per label, gradient share per adapter and label, learning rate, behavior rate.

    Args:
        name: of the run.
        metrics: the lines of `metrics.jsonl`, one per logged step.
        measures: the lines of `during.jsonl`, one per step and mode; may be empty.
        ink: the theme.
    """
    adapters = list(dict.fromkeys(name for row in metrics for name in row["learning_rate"]))
    figure = blank(2.3 + 2.2 + 0.75 * max(2, len(adapters)))
    left, right = split_figure(figure, [1.0, 1.0], ink, beside=True)
    shares = max(2, len(adapters))
    loss, *below = left.subplots(
        1 + len(adapters),
        1,
        sharex=True,
        height_ratios=[1.9 + 0.25 * shares, *[1.0] * len(adapters)],
    )
    rates, speed = right.subplots(2, 1, sharex=True, height_ratios=[1.9 + 0.25 * shares, shares])
    left.subplots_adjust(left=0.13, right=0.97, top=0.92, bottom=0.1, hspace=0.24)
    right.subplots_adjust(left=0.13, right=0.97, top=0.92, bottom=0.1, hspace=0.24)
    _draw_loss(loss, metrics, ink)
    for axes, adapter in zip(below, adapters, strict=True):
        _draw_shares(axes, metrics, adapter, ink)
    _draw_behavior(rates, measures, ink)
    _draw_learning_rates(speed, metrics, adapters, ink)
    last = max(row["step"] for row in metrics)
    for axes in (loss, *below, rates, speed):
        tidy(axes, ink)
        axes.set_xlim(0, last * 1.01)
    for axes in (below[-1] if below else loss, speed):
        axes.set_xlabel("step", fontsize=8.5)
    left.text(0.13, 0.97, shorten(name, 60), fontsize=10, weight="bold", va="center")
    return figure


def _draw_loss(axes: Axes, metrics: Sequence[Record], ink: Ink) -> None:
    """Each label's loss: every logged step in faint, a running mean on top."""
    labels = _ordered({label for row in metrics for label in row["loss_per_label"]})
    for label in labels:
        steps, values = _series(metrics, "loss_per_label", label)
        color = _label_color(label, labels, ink)
        axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.28)
        axes.plot(steps, _running_mean(values), color=color, linewidth=1.7, label=label)
    if not labels:  # of a trainer whose loss is that of a batch
        steps, values = [row["step"] for row in metrics], [row["loss"] for row in metrics]
        axes.plot(steps, values, color=ink.series[0], linewidth=0.7, alpha=0.28)
        axes.plot(steps, _running_mean(values), color=ink.series[0], linewidth=1.7)
        axes.set_title("training loss, all labels", loc="left", fontsize=8.5)
        return
    axes.set_title("training loss per label, nats/token", loc="left", fontsize=8.5)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right", columnspacing=1.2)


def _draw_shares(axes: Axes, metrics: Sequence[Record], adapter: str, ink: Ink) -> None:
    """Whose gradient an adapter's updates were made of, at the steps that logged it."""
    every = _ordered({label for row in metrics for label in row["loss_per_label"]})
    rows = [row for row in metrics if row.get("gradient_norm_per_label", {}).get(adapter)]
    labels = _ordered({name for row in rows for name in row["gradient_norm_per_label"][adapter]})
    axes.set_title(f"{shorten(adapter)}: share of gradient norm by label", loc="left", fontsize=8.5)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    if not rows:
        _say(axes, "not logged (train.log_gradients_every is 0, or no such step yet)", ink)
        return
    steps = [row["step"] for row in rows]
    width = 0.75 * min((b - a for a, b in pairwise(steps)), default=1)
    bottom = [0.0] * len(rows)
    for label in labels:
        shares = []
        for row in rows:
            norms = row["gradient_norm_per_label"][adapter]
            total = sum(norms.values())
            shares.append(norms.get(label, 0.0) / total if total > 0 else 0.0)
        color = _label_color(label, every, ink)
        axes.bar(steps, shares, width, bottom, color=color, alpha=0.8, linewidth=0)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]


def _draw_learning_rates(
    axes: Axes, metrics: Sequence[Record], adapters: Sequence[str], ink: Ink
) -> None:
    for index, adapter in enumerate(adapters):
        steps, values = _series(metrics, "learning_rate", adapter)
        line = ("-", (0, (5, 3)), ":", "-.")[index % 4]  # equal rates lie on each other
        axes.plot(
            steps,
            values,
            color=ink.series[index % len(ink.series)],
            linewidth=1.7,
            linestyle=line,
            label=shorten(adapter),
        )
    axes.set_title("learning rate", loc="left", fontsize=8.5)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center")


def _draw_behavior(axes: Axes, measures: Sequence[Record], ink: Ink) -> None:
    """Behavior rate while training, with Wilson intervals."""
    axes.set_title("behavior rate during training", loc="left", fontsize=8.5)
    share_axis(axes)
    if not measures:
        _say(axes, "not measured (train.measure_every is 0)", ink)
        return
    measures = [row for row in measures if "behavior_rate" in row]
    if not measures:
        _say(axes, "not measured: no held-out row shows the behavior", ink)
        return
    labels = list(dict.fromkeys(row.get("label") for row in measures))  # None: of a single one
    for mode, label in dict.fromkeys((row["mode"], row.get("label")) for row in measures):
        rows = [row for row in measures if (row["mode"], row.get("label")) == (mode, label)]
        steps = [row["step"] for row in rows]
        color, marker = style(mode, ink)
        if label is not None:
            color = ink.series[labels.index(label) % len(ink.series)]
        name = mode if label is None else f"{shorten(label, 16)}, {mode}"
        line = "-" if mode == "full" or label is None else (0, (4, 2))
        bounds = [wilson(row["shown"], row["n"]) for row in rows]
        lower, upper = [bound.lower for bound in bounds], [bound.upper for bound in bounds]
        axes.fill_between(steps, lower, upper, color=color, alpha=0.16, linewidth=0)
        rates = [row["behavior_rate"] for row in rows]
        axes.plot(
            steps,
            rates,
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            linestyle=line,
            label=name,
        )
    n = count_range(row["n"] for row in measures)
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="best",
        title=f"{n} prompts; bands: 95 % intervals",
        title_fontsize=7.5,
        alignment="left",
    )


def _series(metrics: Sequence[Record], key: str, name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[key][name]) for row in metrics if row[key].get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window around each value; at the ends over what there is of it."""
    half = max(1, round(_WINDOW * len(values) / 2))
    means = []
    for at in range(len(values)):
        near = values[max(0, at - half) : at + half + 1]
        means.append(sum(near) / len(near))
    return means


def _ordered(labels: set[str]) -> list[str]:
    return [label for label in _LABELS if label in labels] + sorted(labels - set(_LABELS))


def _label_color(label: str, labels: Sequence[str], ink: Ink) -> str:
    """A color of its own for each of the run's labels, the same in every part of the picture."""
    known = {
        "good": ink.modes["bad_ablated"],
        "bad": ink.modes["good_ablated"],
        "unlabeled": ink.modes["base"],
    }
    own = [one for one in labels if one not in known]
    left = [color for color in ink.series if color not in known.values()]
    return known[label] if label in known else left[own.index(label) % len(left)]


def _say(axes: Axes, text: str, ink: Ink) -> None:
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=8,
        color=ink.muted,
    )
