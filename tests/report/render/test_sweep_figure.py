"""Figures and table of a grid: an axis each, every number in the table."""

import io
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from numpy import asarray
from PIL import Image

from gradroute.report.render.figure_style import LIGHT, png, theme
from gradroute.report.render.markdown import csv_text
from gradroute.report.render.sweep_figure import sweep_figure, sweep_pictures, sweep_table
from gradroute.report.results.grid import OWN, GridPoint
from gradroute.report.results.seeds import over_seeds


def number(*values: float):
    seeds = tuple(range(len(values)))
    return over_seeds(seeds, values, [8] * len(values), [(0.0, 0.5)] * len(values), (0.0, 1.0))


def point(share: str, size: str, rate: float, control: str = OWN) -> GridPoint:
    values = {"data.labeled_fraction": share, "size": size, "layers": "all"}
    return GridPoint(
        values, control, "", "bad_ablated", number(rate, rate + 0.1), number(0.9, 0.95)
    )


POINTS = [
    point(share, size, rate, control)
    for control, less in ((OWN, 0.0), ("filter", 0.3))
    for size in ("small", "wide")
    for share, rate in (("0.02", 0.1 + less), ("0.1", 0.05 + less), ("0.5", 0.0 + less))
]


def drawn(points, axis: str) -> Figure:
    with theme(LIGHT):
        return sweep_figure(points, axis, "caps", LIGHT)


def test_every_axis_that_varies_has_a_figure_and_no_other() -> None:
    pictures = sweep_pictures(POINTS, "caps")
    assert [one.name for one in pictures] == ["sweep_data.labeled_fraction", "sweep_size"]
    assert sweep_pictures([], "caps") == []


def test_a_line_joins_what_is_alike_but_for_the_axis() -> None:
    rates, gains = drawn(POINTS, "data.labeled_fraction").axes
    _, labels = rates.get_legend_handles_labels()
    assert labels == ["size small", "size wide", "size small, filter", "size wide, filter"]
    assert [tick.get_text() for tick in rates.get_xticklabels()] == ["0.02", "0.1", "0.5"]
    line = rates.get_lines()[0]
    assert list(asarray(line.get_ydata())) == pytest.approx([0.15, 0.1, 0.05])
    lines = [line for line in gains.get_lines() if asarray(line.get_xdata()).size == 3]
    assert len(lines) == 4
    assert list(asarray(lines[0].get_ydata())) == pytest.approx([0.925] * 3)


def test_seeds_are_dots_and_intervals_are_bars() -> None:
    rates, _ = drawn(POINTS[:3], "data.labeled_fraction").axes
    dots = [line for line in rates.get_lines() if line.get_marker() == "."]
    assert sorted(y for dot in dots for y in asarray(dot.get_ydata())) == pytest.approx(
        [0.0, 0.05, 0.1, 0.1, 0.15, 0.2]
    )
    assert len(rates.collections) == 3


def test_of_too_many_lines_controls_go_first_and_then_the_names() -> None:
    many = [
        replace(one, values={**one.values, "size": f"{size}"})
        for size in range(6)
        for one in POINTS
        if one.values["size"] == "small"
    ]
    _, labels = drawn(many, "data.labeled_fraction").axes[0].get_legend_handles_labels()
    assert labels == [f"size {size}" for size in range(6)]
    more = [
        replace(one, values={**one.values, "layers": layers})
        for layers in ("all", "half")
        for one in many
    ]
    figure = drawn(more, "data.labeled_fraction")
    assert not figure.legends
    assert "12 lines: every combination of the other axes." in figure.texts[-1].get_text()


def test_a_gain_that_no_run_has_is_said_and_the_picture_is_the_same_every_time() -> None:
    none = [replace(one, gain=None) for one in POINTS]
    texts = [text.get_text() for text in drawn(none, "size").axes[1].texts]
    assert texts == ["not defined for any run"]
    (first, _) = sweep_pictures(none, "caps")
    assert png(first.draw, LIGHT) == png(first.draw, LIGHT)
    assert Image.open(io.BytesIO(png(first.draw, LIGHT))).width == 1800


def test_the_table_has_every_place_and_control_with_its_numbers() -> None:
    table = sweep_table(POINTS, "caps")
    assert table.heads == (
        "data.labeled_fraction", "size", "layers", "which", "mode", "caps rate, %", "gain kept",
    )  # fmt: skip
    assert len(table.rows) == len(POINTS)
    lines = csv_text(table).splitlines()
    assert lines[0].startswith("data.labeled_fraction,size,layers,which,mode,rate,rate_lower")
    assert lines[1].startswith("0.02,small,all,run,bad_ablated,0.15")
    assert [row[3].text for row in table.rows][::6] == ["run", "filter"]
