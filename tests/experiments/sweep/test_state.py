"""How far cells are, from what their run folders hold."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_sweeps import started

from gradroute.errors import DataError
from gradroute.experiments.sweep.folder import SweepFolder
from gradroute.experiments.sweep.one_cell import record_failure
from gradroute.experiments.sweep.state import (
    CellState,
    cell_states,
    finished,
    status_text,
    summary,
)
from gradroute.runs.lock import write_lock
from gradroute.runs.results import Result, write_results
from gradroute.system.files import append_line, make_folder

GRID = "axes: {data.labeled_fraction: [0.1, 0.5]}\ncontrols: [filter]\n"
FIRST = "labeled_fraction_0.1"


@pytest.fixture
def sweep(tmp_path: Path):
    folder, record, _ = started(tmp_path, GRID)
    return folder, record


def trained(folder: SweepFolder, name: str, step: int) -> None:
    run = folder.run(name)
    make_folder(run.checkpoints / f"step-{step:06d}")
    for done in range(1, step + 1):
        append_line(run.metrics, {"step": done})
        append_line(run.timings, {"step": done, "step_seconds": 3.0})


def measured(folder: SweepFolder, name: str, rate: float) -> None:
    common = {"run": name, "step": 2, "dataset": "prefix", "label": "all", "n": 4}
    rows = [
        Result(**common, mode=mode, metric="behavior_rate", value=value)
        for mode, value in (("full", 1.0), ("bad_ablated", rate))
    ]
    write_results(folder.run(name).results, rows, {})


def test_nothing_there_is_absent(sweep) -> None:
    first, second = cell_states(*sweep)
    assert first == CellState(FIRST, "absent", 0, 4, None, None)
    assert second.name == "labeled_fraction_0.5"


def test_steps_are_those_of_the_run_and_its_controls_and_time_is_what_they_took(sweep) -> None:
    folder, record = sweep
    trained(folder, FIRST, 2)
    trained(folder, f"{FIRST}-filter", 1)
    state = cell_states(folder, record)[0]
    assert (state.state, state.step, state.steps, state.left) == ("partly", 3, 4, 3.0)


def test_a_cell_is_finished_once_every_run_is_trained_and_measured(sweep) -> None:
    folder, record = sweep
    for name in (FIRST, f"{FIRST}-filter"):
        trained(folder, name, 2)
    assert cell_states(folder, record)[0].state == "partly"
    assert finished(folder, record.cells[0], evaluate=False)
    measured(folder, FIRST, 0.25)
    assert not finished(folder, record.cells[0], evaluate=True)
    measured(folder, f"{FIRST}-filter", 0.5)
    state = cell_states(folder, record)[0]
    assert (state.state, state.rate) == ("finished", 0.25)


def test_a_run_whose_metrics_have_all_steps_and_no_checkpoint_is_not_finished(sweep) -> None:
    folder, record = sweep
    for name in (FIRST, f"{FIRST}-filter"):
        make_folder(folder.run(name).path)
        append_line(folder.run(name).metrics, {"step": 2})
    assert not finished(folder, record.cells[0], evaluate=False)


def test_a_cell_whose_run_is_written_to_runs(sweep) -> None:
    folder, record = sweep
    with write_lock(folder.run(f"{FIRST}-filter").path, "training"):
        assert [one.state for one in cell_states(folder, record)] == ["running", "absent"]
    assert cell_states(folder, record)[0].state == "absent"


def test_a_failed_cell_says_why(sweep) -> None:
    folder, record = sweep
    record_failure(folder, FIRST, DataError("row 3 has no text."))
    states = cell_states(folder, record)
    assert (states[0].state, states[0].why) == ("failed", "row 3 has no text.")
    assert f"{FIRST}: row 3 has no text." in status_text(states, 1)


def test_the_rate_during_training_is_shown_until_the_run_is_measured(sweep) -> None:
    folder, record = sweep
    make_folder(folder.run(FIRST).measures.parent)
    for step, rate in ((1, 0.75), (2, 0.5)):
        for mode, value in (("full", 1.0), ("bad_ablated", rate)):
            line = {"step": step, "mode": mode, "behavior_rate": value}
            append_line(folder.run(FIRST).measures, line)
    assert cell_states(folder, record)[0].rate == 0.5
    measured(folder, FIRST, 0.0)
    assert cell_states(folder, record)[0].rate == 0.0


def test_the_table_has_a_line_for_each_cell_and_one_for_all() -> None:
    done = CellState("a", "finished", 4, 4, 2.0, 0.25)
    states = [done, replace(done, name="b", state="running", step=1), CellState(
        "c", "absent", 0, 4, None, None
    )]  # fmt: skip
    lines = status_text(states, at_once=2).splitlines()
    assert lines == [
        "cell  state     step     left  rate so far",
        "a     finished   4/4                  25 %",
        "b     running    1/4  0:00:06         25 %",
        "c     absent     0/4",
        "3 cells: 1 finished, 1 running, 1 absent; about 0:00:07 of training left.",
    ]
    assert summary([done], 1) == "1 cell: 1 finished."
