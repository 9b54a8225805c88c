"""What a sweep writes down of itself: every run of every cell, checked before any is started."""

from pathlib import Path

import pytest
from tiny_sweeps import started, sweep_file

from gradroute.config.run_config import dump_config, load_config
from gradroute.errors import ConfigError, DataError
from gradroute.experiments.sweep.cells import read_sweep
from gradroute.experiments.sweep.folder import SweepFolder, record_of
from gradroute.system.files import write_text

GRID = "axes: {data.labeled_fraction: [0.1, 0.5]}\nseeds: [0, 1]\n"


def test_the_record_reads_back_and_holds_whatever_a_cell_needs(tmp_path: Path) -> None:
    folder, record, sweep = started(tmp_path, f"{GRID}controls: [filter]\nevaluate: false\n")
    assert folder.read() == record
    assert not record.evaluate and record.axes == ("data.labeled_fraction",)
    assert [cell.name for cell in record.cells] == [cell.name for cell in sweep.cells]
    name = "labeled_fraction_0.1-s1"
    assert [tuple(run) for run in record.cells[1].runs] == [
        (name, 2, True),
        (f"{name}-filter", 2, True),
    ]
    assert record.cells[1].mode == "bad_ablated"
    assert load_config(folder.cell(name)) == sweep.cells[1].config


def test_what_a_control_starts_from_is_a_run_that_is_not_measured(tmp_path: Path) -> None:
    _, record, _ = started(tmp_path, "controls: [inoculation_adapter]\n")
    assert [(run.name, run.measured) for run in record.cells[0].runs] == [
        ("caps", True),
        ("caps-inoculation", False),
        ("caps-inoculation_adapter", True),
    ]


def test_a_control_that_cannot_be_made_is_refused_for_the_whole_sweep(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path, f"{GRID}controls: [words_filter]\n"))
    with pytest.raises(ConfigError) as caught:
        record_of(sweep, SweepFolder(tmp_path / "runs" / "tiny"))
    assert str(caught.value) == (
        "controls: 'words_filter' needs some of these trained as unlabeled "
        "(data.null_fraction=0.2)."
    )
    assert not (tmp_path / "runs").exists()


def test_a_run_that_was_begun_with_other_settings_is_refused_before_anything_is_written(tmp_path):
    folder, _, sweep = started(tmp_path, GRID)
    other = sweep.cells[2].config
    write_text(folder.run(other.run_name).config, dump_config(other))
    changed = read_sweep(sweep_file(tmp_path, GRID, "  train.learning_rate: 0.5\n"))
    with pytest.raises(ConfigError, match=r"labeled_fraction_0.5-s0 was started with other"):
        record_of(changed, folder)
    assert load_config(folder.cell(sweep.cells[0].name)) == sweep.cells[0].config


def test_a_folder_without_a_sweep_and_a_damaged_record_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of a sweep"):
        SweepFolder(tmp_path).read()
    folder, _, _ = started(tmp_path, GRID)
    write_text(folder.own / "sweep.json", '{"cells": [{"name": 3}], "evaluate": true, "axes": []}')
    with pytest.raises(DataError, match="is damaged"):
        folder.read()
