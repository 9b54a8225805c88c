"""A sweep from its file to its report, and how it is refused, stopped and gone on with."""

import re
import signal
import subprocess
import sys
import time

import pytest
from tiny_sweeps import started, sweep_file

from gradroute.config.run_config import dump_config
from gradroute.config.sweep_file import RayConfig, SlurmConfig
from gradroute.errors import ConfigError, GradrouteError, MachineError
from gradroute.experiments.sweep.cells import read_sweep
from gradroute.experiments.sweep.sweep import (
    report_sweep,
    resources_of,
    run_sweep,
    stop_sweep,
    unfinished,
)
from gradroute.report import publish
from gradroute.run import train_run
from gradroute.runs.lock import write_lock
from gradroute.system.files import make_folder, read_lines, sha256_of, write_text
from torture.forks import serving

GRID = "axes: {data.labeled_fraction: [0.1, 0.5]}\n"
ONE, TWO = "labeled_fraction_0.1", "labeled_fraction_0.5"


def run(file, root, **given):
    options = {"backend": "local", "jobs": 1, "retries": 0, "resources": {}}
    run_sweep(file, root, **{**options, **given})


def adapters(folder):
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.glob("*/checkpoints/*/*/*.safetensors"))
    }


def test_every_cell_is_run_measured_and_reported_on_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(publish, "pictures", lambda comparison: [])  # of a report without a sweep
    file = sweep_file(tmp_path, GRID)
    run(file, tmp_path / "runs")
    place = tmp_path / "runs" / "tiny"
    told = capsys.readouterr()
    assert "2 cells, 2 to run." in told.err and "2 cells: 2 finished." in told.err
    assert (place / "report.html").is_file() and (place / "tables" / "sweep.csv").is_file()
    assert (place / "figures" / "sweep_data.labeled_fraction.png").is_file()
    assert "step 2/2" not in told.err  # that is in the log of the cell
    assert "step 2/2" in (place / ".sweep" / "logs" / f"{ONE}.log").read_text()
    before = {path: path.stat().st_mtime_ns for path in place.glob("*/metrics.jsonl")}
    run(file, tmp_path / "runs")
    assert "2 cells, 0 to run." in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in place.glob("*/metrics.jsonl")}


def test_a_finished_cell_is_run_again_where_it_is_to_be_measured_in_another_way(tmp_path):
    folder, record, sweep = started(tmp_path, f"{GRID}evaluate: false\n")
    for cell in sweep.cells:
        write_text(folder.run(cell.name).config, dump_config(cell.config))
        make_folder(folder.run(cell.name).checkpoints / "step-000002")
    assert unfinished(sweep, folder, record) == []
    other = sweep_file(tmp_path, f"{GRID}evaluate: false\n", "  evaluate.seed: 7\n")
    assert unfinished(read_sweep(other), folder, record) == [ONE, TWO]


def test_cells_that_failed_are_named_in_the_end_with_the_code_of_their_kind(tmp_path):
    file = sweep_file(
        tmp_path,
        "axes: {data.path: [nowhere.jsonl, null]}\nevaluate: false\n",
    )
    with pytest.raises(GradrouteError) as caught:
        run(file, tmp_path / "runs")
    assert caught.value.exit_code == 3
    assert re.match(
        r"1 of 2 cells failed; .*CELL\.log:\n  path_nowhere\.jsonl: ", str(caught.value)
    )
    assert len(adapters(tmp_path / "runs" / "tiny")) == 2  # of the other one


def test_a_second_sweep_in_one_folder_is_refused(tmp_path):
    file = sweep_file(tmp_path, GRID)
    script = (
        "import sys, time; from pathlib import Path; from gradroute.runs.lock import write_lock\n"
        "with write_lock(Path(sys.argv[1]), 'sweeping'):\n"
        "    print('holds', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "runs" / "tiny")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        with pytest.raises(MachineError, match=r"is in use: process .* has been sweeping since"):
            run(file, tmp_path / "runs")
        holder.kill()


def test_a_mistake_in_the_file_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean data.labeled_fraction\?"):
        run(sweep_file(tmp_path, "axes: {data.labelled_fraction: [1]}\n"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_stopping_what_does_not_run_is_refused(tmp_path):
    folder, _, _ = started(tmp_path, GRID)
    with pytest.raises(ConfigError, match="nothing of this sweep runs"):
        stop_sweep(folder)
    assert not folder.stop.exists()
    with write_lock(folder.path, "sweeping"):
        stop_sweep(folder)
    assert folder.stop.exists()


def test_without_a_measured_run_there_is_no_report(tmp_path):
    folder, _, _ = started(tmp_path, GRID)
    with pytest.raises(ConfigError, match="no run of this sweep is measured yet"):
        report_sweep(folder, folder.path)


def test_options_win_over_the_file_and_those_of_another_back_end_are_refused(tmp_path):
    sweep = read_sweep(sweep_file(tmp_path, f"{GRID}slurm: {{gpus: 1, time: '1:00'}}\n"))
    slurm, _ = resources_of(sweep, "slurm", {"gpus": "2", "mem": "8G"})
    assert slurm == SlurmConfig(gpus=2, time="1:00", mem="8G")
    assert resources_of(sweep, "ray", {"gpus": "0.5"})[1] == RayConfig(gpus=0.5)
    with pytest.raises(ConfigError, match=r"--mem means nothing to --backend local"):
        resources_of(sweep, "local", {"mem": "8G"})
    with pytest.raises(ConfigError, match=r"--cpus .* give --backend slurm or ray"):
        resources_of(sweep, "local", {"cpus": "8"})
    with pytest.raises(ConfigError, match="command line: gpus: a whole number is needed"):
        resources_of(sweep, "slurm", {"gpus": "many"})


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_and_one_that_is_killed_go_on_to_the_same_adapters(tmp_path):
    steps = "  train.max_steps: 40\n  train.save_every: 5\n  train.learning_rate: 1e-3\n"
    file = sweep_file(tmp_path, f"{GRID}evaluate: false\n").read_text()
    file = file.replace("  train.max_steps: 2\n", steps)
    (tmp_path / "tiny.yaml").write_text(file)
    place = tmp_path / "runs" / "tiny"

    def begin(server, leave=False):
        lines = [["sweep", "tiny.yaml", "--jobs", "1", "--runs", "runs"]]
        return server.start("torture.runs:command", {"lines": lines}, tmp_path, leave=leave)

    def wait_for(name, child):
        while sum(1 for _ in read_lines(place / name / "metrics.jsonl")) < 5:
            assert child.alive
            time.sleep(0.02)

    with serving() as server:
        first = begin(server)
        wait_for(ONE, first)
        stop = {"lines": [["sweep", "stop", "tiny.yaml"]]}
        stop = server.start("torture.runs:command", stop, tmp_path)
        assert stop.wait() == 0 and "asked to stop: process" in stop.said
        assert first.wait() == 75 and "stopped as asked" in first.said
        assert list(place.glob(f"{ONE}/checkpoints/step-*"))
        second = begin(server, leave=True)
        wait_for(TWO, second)
        second.send(signal.SIGKILL)  # the driver alone: its cell misses it
        second.wait()
        third = begin(server)
        assert third.wait() == 0
    for cell in read_sweep(tmp_path / "tiny.yaml").cells:
        train_run(cell.config, tmp_path / "bare", if_exists="fail", bar=False)
    assert adapters(place) == adapters(tmp_path / "bare") != {}
