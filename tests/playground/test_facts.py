"""The measured scale curve that the page draws, and the scale to deploy."""

from pathlib import Path

import pytest
from report.page_runs import SCALES, write_runs

from gradroute.playground.facts import scale_curves
from gradroute.runs.folder import RunFolder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    root = tmp_path_factory.mktemp("runs")
    names = ("baseline", "routed")
    return {folder.name: folder for folder in write_runs(root, names=names, sides=False)}


def test_the_curve_has_every_measured_scale_with_its_interval(
    folders: dict[str, RunFolder],
) -> None:
    [curve], note = scale_curves(folders["routed"], ["good", "bad"], [folders["routed"]])
    assert (curve["adapter"], curve["prompts"], note) == ("bad", "prefix", "")
    assert [row[0] for row in curve["points"]] == list(SCALES)
    assert all(lower <= mean <= upper for _, mean, lower, upper, n in curve["points"])
    assert curve["deploy"] in SCALES and "Deploy `bad`" in curve["sentence"]


def test_a_baseline_among_the_open_runs_is_what_the_scale_to_deploy_is_compared_with(
    folders: dict[str, RunFolder],
) -> None:
    [curve], _ = scale_curves(folders["routed"], ["good", "bad"], list(folders.values()))
    assert "(that of baseline" in curve["sentence"]
    [alone], _ = scale_curves(folders["routed"], ["good", "bad"], [folders["routed"]])
    assert "(that of the untuned base" in alone["sentence"]


def test_without_results_there_is_no_curve_and_damaged_ones_are_told(
    folders: dict[str, RunFolder], tmp_path: Path
) -> None:
    assert scale_curves(RunFolder(tmp_path), ["good", "bad"], []) == ([], "")
    damaged = RunFolder(tmp_path / "routed")
    damaged.results.parent.mkdir(parents=True)
    damaged.config.write_bytes(folders["routed"].config.read_bytes())
    damaged.results.write_text("{")
    curves, note = scale_curves(damaged, ["good", "bad"], [])
    assert curves == [] and "results.json" in note
