import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from report.fabricated import REFERENCE, Made, collect, with_numbers

from gradroute.report.render.figure_style import LIGHT, png
from gradroute.report.render.overview_figure import eval_multi_figure, run_entries
from gradroute.report.results.run_results import RunResults


def draw(path: Path, runs: Sequence[RunResults]) -> None:
    entries = run_entries(runs)
    path.write_bytes(png(partial(eval_multi_figure, entries, "caps"), LIGHT))


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


def test_the_same_runs_give_the_same_bytes_without_global_state(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, collect())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert ("matplotlib.pyplot" in sys.modules) == before
    width, height = size(tmp_path / "a.png")
    assert width == 1800
    assert 0.5 < height / width < 0.8
    assert [path.name for path in tmp_path.iterdir()] == ["a.png", "b.png"]


def test_a_rate_of_zero_is_drawn(tmp_path: Path) -> None:
    made = with_numbers(REFERENCE["0.1_0.5"], bad_ablated=(0, 0.785, 1.684))
    (measured,) = collect({"r": made})
    cell = measured.cells["bad_ablated"]
    unmeasured = replace(measured, cells={**measured.cells, "bad_ablated": replace(cell, rates={})})
    draw(tmp_path / "zero.png", [measured])
    draw(tmp_path / "none.png", [unmeasured])
    assert (tmp_path / "zero.png").read_bytes() != (tmp_path / "none.png").read_bytes()


@pytest.mark.parametrize(
    "made",
    [
        {"r": Made({}, {"full": (50, 0.8, 1.0)})},  # no base, one mode
        {"r": Made({}, {"full": (50, 0.8, 1.0), "good=1,bad=0.5": (20, 0.8, 1.0)})},  # own mode
        {"r": with_numbers(REFERENCE["0.1_0.5"], bad_ablated=(0, 250.0, 300.0))},  # far off scale
        {"r": Made({"routing": {"bad": {"good": "freeze", "bad": "update"},
                                "x": {"good": "update", "bad": "update"}}},
                   {"full": (50, 0.8, 1.0)})},
    ],
)  # fmt: skip
def test_unusual_comparisons_are_drawn(tmp_path: Path, made: dict[str, Made]) -> None:
    draw(tmp_path / "plot.png", collect(made))
    assert size(tmp_path / "plot.png")[0] == 1800


def test_runs_without_losses_and_no_runs_at_all_are_drawn(tmp_path: Path) -> None:
    (run,) = collect({"r": REFERENCE["0.1_0.5"]})
    bare = replace(run, cells={mode: replace(cell, loss={}) for mode, cell in run.cells.items()})
    for runs in ([bare], []):
        draw(tmp_path / "plot.png", runs)
        assert size(tmp_path / "plot.png")[0] == 1800
