"""The points of a grid: each place once, its seeds together, in the mode that ships."""

from dataclasses import replace

import pytest
from report.fabricated import REFERENCE, at_seed, collect

from gradroute.report.results.grid import OWN, GridCell, grid_points
from gradroute.report.results.seeds import rate_over_seeds

SHARES = {"0.5": "0.1_0.5", "1.0": "0.1_1.0"}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def grid():
    """Two shares of labels at three seeds, a filter of the first, as cells and as runs."""
    made, cells = {}, []
    for share, name in SHARES.items():
        for seed in SEEDS:
            run = f"labeled_fraction_{share}-s{seed}"
            one = at_seed(REFERENCE[name], seed)
            made[run] = replace(one, changes={**one.changes, "seed": seed})
            names = [run]
            if share == "0.5":
                other = at_seed(REFERENCE["filter_0.5"], seed)
                marks = {"seed": seed, "control": "filter", "control_of": run}
                made[f"{run}-filter"] = replace(other, changes={**other.changes, **marks})
                names.append(f"{run}-filter")
            cells.append(GridCell({"data.labeled_fraction": share}, tuple(names)))
    return cells, collect(made)


def test_a_place_is_its_seeds_together_and_a_control_stands_behind_its_run(grid):
    cells, runs = grid
    points = grid_points(cells, runs)
    assert [(point.values["data.labeled_fraction"], point.control) for point in points] == [
        ("0.5", OWN),
        ("0.5", "filter"),
        ("1.0", OWN),
    ]
    assert all(point.rate is not None and point.rate.seeds == SEEDS for point in points)


def test_a_run_is_read_as_it_ships_and_a_control_as_its_row_says(grid):
    cells, runs = grid
    routed, filtered, _ = grid_points(cells, runs)
    assert (routed.mode, filtered.mode) == ("bad_ablated", "full")
    by_name = {run.name: run for run in runs}
    own = [by_name[f"labeled_fraction_0.5-s{seed}-filter"].rate("full") for seed in SEEDS]
    assert filtered.rate == rate_over_seeds(SEEDS, [rate for rate in own if rate is not None])


def test_gain_kept_of_a_control_is_against_what_its_run_is_measured_against(grid):
    cells, runs = grid
    routed, filtered, _ = grid_points(cells, runs)
    assert routed.gain is not None and filtered.gain is not None
    # (0.905 - 0.784) / (0.905 - 0.783): against the routed run's full, since there is no oracle
    assert filtered.gain.mean == pytest.approx(0.121 / 0.122, abs=0.02)


def test_what_is_not_measured_yet_is_left_out(grid):
    cells, runs = grid
    points = grid_points(cells, [run for run in runs if run.name.endswith("1.0-s1")])
    (point,) = points
    assert point.rate is not None
    assert (point.rate.seeds, point.rate.basis) == ((1,), "one seed")


def test_without_a_grid_there_are_no_points(grid):
    assert grid_points([], grid[1]) == []
