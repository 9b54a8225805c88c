"""The verbs of sweeps: what they take for a sweep, and what they print."""

import os
import time
from pathlib import Path

import pytest
from tiny_sweeps import started

from gradroute.cli import sweep as verbs
from gradroute.cli.main import main
from gradroute.experiments.sweep.one_cell import record_failure

GRID = "axes: {data.labeled_fraction: [0.1, 0.5]}\n"


@pytest.mark.parametrize("given", ["tiny.yaml", "runs/tiny", "tiny"])
def test_a_sweep_is_named_by_its_file_its_folder_or_its_name(
    tmp_path: Path, monkeypatch, capsys, given: str
) -> None:
    started(tmp_path, GRID)
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "status", given]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["labeled_fraction_0.1", "absent", "0/2"]
    assert out.splitlines()[-1] == "2 cells: 2 absent."


def test_a_file_that_gives_the_sweep_a_name_stands_for_that(tmp_path: Path, monkeypatch, capsys):
    folder, _, _ = started(tmp_path, f"name: mine\n{GRID}")
    assert folder.path == tmp_path / "runs" / "mine"
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "status", "tiny.yaml"]) == 0
    assert main(["sweep", "status", "nobody"]) == 2
    assert "runs/nobody is no folder of a sweep" in capsys.readouterr().err


def test_watching_ends_once_every_cell_has_ended(tmp_path: Path, monkeypatch, capsys) -> None:
    folder, record, _ = started(tmp_path, GRID)

    def sleep(seconds: float) -> None:
        assert seconds == 3
        for cell in record.cells:
            record_failure(folder, cell.name, ValueError("x"))

    monkeypatch.setattr(verbs.time, "sleep", sleep)
    assert main(["sweep", "status", str(folder.path), "--watch", "3"]) == 0
    assert capsys.readouterr().out.count("2 cells:") == 2


def test_a_cell_that_is_none_is_named_with_those_there_are(tmp_path: Path, capsys) -> None:
    folder, _, _ = started(tmp_path, GRID)
    assert main(["sweep", "cell", str(folder.path), "lr_1"]) == 2
    assert "has no cell lr_1; it has labeled_fraction_0.1, labeled_" in capsys.readouterr().err


def test_a_cell_whose_input_ends_is_asked_to_stop(tmp_path: Path, monkeypatch, capsys) -> None:
    folder, _, _ = started(tmp_path, GRID)
    reading, writing = os.pipe()
    kept = os.fdopen(reading)
    monkeypatch.setattr("sys.stdin", kept)

    def run_cell(*_, **__):
        os.close(writing)
        time.sleep(60)

    monkeypatch.setattr("gradroute.experiments.sweep.one_cell.run_cell", run_cell)
    began = time.monotonic()
    assert main(["sweep", "cell", str(folder.path), "labeled_fraction_0.1", "--with-parent"]) == 75
    assert time.monotonic() < began + 30
    assert "interrupted" in capsys.readouterr().err
    kept.close()
