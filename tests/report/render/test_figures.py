import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image, ImageColor
from report.page_runs import geometry_record, relearn_record, write_runs

from gradroute.errors import DataError
from gradroute.report.judge.comparison import (
    Comparison,
    SingleBehaviorComparison,
    compare,
    single_behavior_comparison,
)
from gradroute.report.render.figure_style import DARK, LIGHT, Draw, draw_forms, png
from gradroute.report.render.figures import pictures
from gradroute.report.render.geometry_figure import geometry_figure, grid
from gradroute.report.render.overview_figure import group_entries, run_entries
from gradroute.report.render.relearning_figure import relearning_figure
from gradroute.report.render.scale_figures import Option, bad_curves, options, tradeoff_figure
from gradroute.report.render.training_plot import plot_run, training_figure
from gradroute.report.results.reading import read_runs
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_lines


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> SingleBehaviorComparison:
    folders = write_runs(tmp_path_factory.mktemp("runs"), seeds=2, prompts=12)
    return single_behavior_comparison(read_runs(folders))


def drawing(comparison: Comparison, name: str) -> Draw:
    (draw,) = [picture.draw for picture in pictures(comparison) if picture.name == name]
    return draw


def width(image: bytes) -> int:
    return struct.unpack(">I", image[16:20])[0]


def texts(draw: Draw) -> str:
    figure: Any = draw(LIGHT)
    return "\n".join(one.get_text() for one in figure.findobj(Text))


def test_everything_that_was_measured_has_its_figure(comparison: Comparison) -> None:
    names = [picture.name for picture in pictures(comparison)]
    assert names[:4] == ["eval_multi_plot", "tradeoff_plot", "scales_plot", "geometry_plot"]
    assert names[4:] == [
        *(
            f"training_plot_{run}@0"
            for run in ("routed", "baseline", "unrouted", "filter", "oracle")
        ),
        "relearning_plot",
    ]


def test_what_was_not_measured_has_no_figure(tmp_path: Path) -> None:
    found = compare(write_runs(tmp_path, prompts=4, names=("filter",), sides=False))
    bare = replace(found, runs=tuple(replace(run, metrics=()) for run in found.runs))
    assert [picture.name for picture in pictures(bare)] == ["eval_multi_plot", "tradeoff_plot"]


def test_every_figure_is_drawn_in_every_form_and_again_the_same(comparison: Comparison) -> None:
    for picture in pictures(comparison):
        if picture.name.startswith("training") and "routed@0" not in picture.name:
            continue  # all alike, and each takes its time
        image = draw_forms(picture.draw)
        assert image.light[:4] == image.dark[:4] == b"\x89PNG"
        assert image.light != image.dark
        assert image.pdf.startswith(b"%PDF")
        assert width(image.light) == width(image.dark) == 1440
        for png_of_theme, ink in ((image.light, LIGHT), (image.dark, DARK)):
            corner = Image.open(io.BytesIO(png_of_theme)).convert("RGB").getpixel((0, 0))
            assert corner == ImageColor.getrgb(ink.paper)  # no edge on the page's own paper
        if picture.name in ("eval_multi_plot", "geometry_plot"):
            assert draw_forms(picture.draw) == image


def test_seeds_stand_as_one_entry_with_each_of_them(comparison: Comparison) -> None:
    entries = group_entries(comparison.groups, comparison.runs)
    assert [entry.label.split("\n")[0] for entry in entries] == [
        "baseline", "unrouted", "routed", "filter", "oracle"
    ]  # fmt: skip
    routed = entries[2]
    runs = [run for run in comparison.runs if run.name in ("routed@0", "routed@1")]
    rates = [rate.mean for run in runs if (rate := run.rate("full")) is not None]
    assert routed.rates["full"].seeds == tuple(rates)
    assert routed.rates["full"].mean == pytest.approx(sum(rates) / 2)
    assert len(run_entries(comparison.runs)) == 10


def test_points_of_a_scale_curve_do_not_crowd_the_comparison(comparison: Comparison) -> None:
    for entry in run_entries(comparison.runs):
        assert not [mode for mode in entry.modes if "=" in mode]


def test_only_what_has_a_bad_adapter_to_turn_down_has_its_curve(
    comparison: SingleBehaviorComparison,
) -> None:
    found = bad_curves(comparison)
    assert [curve.run for curve in found] == ["routed@0", "routed@1", "unrouted@0", "unrouted@1"]
    for curve in found:
        assert [point.scale for point in curve.points] == [0, 0.1, 0.25, 0.5, 0.75, 1]


def test_a_run_is_weighed_as_the_claims_read_it(comparison: SingleBehaviorComparison) -> None:
    found = options(comparison)
    labels = list(dict.fromkeys(option.label for option in found))
    assert labels == ["baseline", "unrouted, full", "unrouted, bad_ablated", "routed", "filter",
                      "oracle"]  # fmt: skip
    routed = next(option for option in found if option.label == "routed")
    (run,) = [run for run in comparison.runs if run.name == "routed@0"]
    assert routed.routed
    assert routed.rate == run.cells["bad_ablated"].rates["prefix"][:3]
    weaker = next(option.weaker for option in found if option.label == "filter")
    assert [gain for gain, _ in weaker] == sorted(gain for gain, _ in weaker)
    assert len(weaker) == 6


def test_without_baseline_and_oracle_a_control_is_weighed_against_its_routed_run(
    comparison: SingleBehaviorComparison,
) -> None:
    left = [run for run in comparison.runs if run.role in ("routed", "filter")]
    alone = single_behavior_comparison(left)
    (claim,) = [claim for claim in alone.claims if claim.kind == "filter"]
    gains = [option.gain[0] for option in options(alone) if option.label == "filter"]
    assert claim.control_gain is not None
    assert gains == pytest.approx(claim.control_gain.values)
    assert all(gain != 1.0 for gain in gains)


def test_what_keeps_far_less_than_nothing_stands_at_the_edge_by_name() -> None:
    far = [
        Option(f"wild {gain}", True, (0.0, 0.0, 0.1), (gain, gain - 1, gain + 1), ())
        for gain in (-5.0, -20.8)
    ]
    near = [Option(f"run {i}", False, (0.5, 0.4, 0.6), (0.9, 0.8, 1.0), ()) for i in range(12)]

    def draw(ink: Any) -> Any:
        return tradeoff_figure([*far, *near], "caps", ink)

    shown = texts(draw)
    assert "wild -5.0 -5.0" in shown and "wild -20.8 -20.8" in shown
    assert draw(LIGHT).axes[0].get_xlim()[0] > 0
    assert png(draw, DARK)


def test_a_heat_map_has_the_modules_in_their_order_and_gaps_where_there_is_none() -> None:
    found = grid(geometry_record(0, 0.3, layers=3), "cosine")
    assert found.layers == ("0", "1", "2")
    assert found.modules[0] == "q_proj" and len(found.modules) == 7
    assert [value != value for value in found.values[0]] == [False] * 3 + [True] + [False] * 3
    assert all(value >= 0 for row in found.values[1:] for value in row)


@pytest.mark.parametrize("layers", [1, 26])
def test_models_of_any_depth_have_a_heat_map(layers: int) -> None:
    record = geometry_record(0, 0.3, layers)
    bare = {**record, "random": None}
    for runs in ([("a", record)], [("a", bare), ("b", record), ("c", bare)]):
        assert png(lambda ink, runs=runs: geometry_figure(runs, ink), LIGHT)


def test_an_attack_that_fails_is_marked() -> None:
    slow, fast = relearn_record(0, 0.05), relearn_record(0, 2.0)

    def marks(record: dict[str, Any]) -> int:
        figure = relearning_figure([("run", record)], LIGHT)
        lines = [line for axes in figure.axes for line in axes.get_lines()]
        return sum(line.get_marker() == ">" for line in lines)

    assert (marks(slow), marks(fast)) == (2, 0)


def test_dollars_and_letters_that_no_font_has_are_drawn(tmp_path: Path) -> None:
    record = relearn_record(0, 1.0)
    name = "regex:^\\$5.*$ \U00013000 \x1b[31m" + "long " * 30
    assert png(lambda ink: relearning_figure([(name, record)], ink), LIGHT)
    assert png(lambda ink: training_figure(name, METRICS, [], ink), LIGHT)


METRICS = [
    {"step": step, "loss_per_label": {"good": 1.0, "mine": 2.0}, "learning_rate": {"good": 0.1}}
    for step in range(1, 4)
]


def test_a_run_draws_its_own_training(tmp_path: Path) -> None:
    (folder,) = write_runs(tmp_path, prompts=4, names=("routed",))
    path = plot_run(folder)
    assert path == folder.path / "training_plot.png"
    first = path.read_bytes()
    assert width(first) == 1800
    folder.measures.unlink()
    assert plot_run(folder).read_bytes() != first


def test_a_run_that_measures_nothing_on_the_way_says_so() -> None:
    shown = texts(lambda ink: training_figure("run", METRICS, [], ink))
    assert "not measured (train.measure_every is 0)" in shown
    assert "not logged (train.log_gradients_every is 0, or no such step yet)" in shown
    assert "mine" in shown


def test_a_run_without_a_step_has_nothing_to_draw(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    folder.path.mkdir()
    with pytest.raises(DataError, match="no logged step"):
        plot_run(folder)
    write_lines(folder.metrics, METRICS)
    assert plot_run(folder).is_file()
