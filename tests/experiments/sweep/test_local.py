"""Cells on this machine: results as from `train`, failures apart, nothing done twice."""

import os
import signal
from functools import partial

import pytest
from tiny_sweeps import started

from gradroute.errors import DataError, Interrupted, MachineError
from gradroute.experiments.sweep import local
from gradroute.experiments.sweep.local import may_pass, run_locally, visible_devices
from gradroute.experiments.sweep.one_cell import run_cell
from gradroute.run import train_run
from gradroute.system.files import make_folder, sha256_of

GRID = "axes: {data.labeled_fraction: [0.1, 0.5]}\nevaluate: false\n"
ONE, TWO = "labeled_fraction_0.1", "labeled_fraction_0.5"


# What a process does in place of a cell; at the top of a file, where a new process finds it.


def stands_in(folder, name, evaluate, log, first="works"):
    tried = folder.own / f"tried-{name}"
    number = len(list(folder.own.glob(f"tried-{name}*")))
    tried.with_name(f"{tried.name}-{number}").touch()
    if name == ONE and (first == "killed" or (first == "killed once" and number == 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == ONE and first == "refused":
        raise DataError("row 3 has no text.")
    if name == ONE and first == "stops":
        folder.stop.touch()
        signal.pause()


def tries(folder, name):
    return len(list(folder.own.glob(f"tried-{name}*")))


def run(tmp_path, monkeypatch, first, retries=0):
    folder, record, _ = started(tmp_path, GRID)
    monkeypatch.setattr(local, "run_cell", partial(stands_in, first=first))
    return folder, partial(run_locally, folder, record, [ONE, TWO], jobs=1, retries=retries)


def test_a_cell_that_fails_does_not_stop_the_others_and_is_named(tmp_path, monkeypatch, capsys):
    folder, call = run(tmp_path, monkeypatch, "refused", retries=3)
    failures = call()
    assert list(failures) == [ONE] and isinstance(failures[ONE], DataError)
    assert (tries(folder, ONE), tries(folder, TWO)) == (1, 1)  # no better the next time
    told = capsys.readouterr().err
    assert f"{ONE}: failed: row 3 has no text." in told and f"{TWO}: finished." in told


@pytest.mark.parametrize(("first", "most"), [("killed", 3), ("killed once", 2)])
def test_a_cell_that_is_killed_is_tried_again_so_often(tmp_path, monkeypatch, first, most):
    folder, call = run(tmp_path, monkeypatch, first, retries=2)
    failures = call()
    assert (tries(folder, ONE), tries(folder, TWO)) == (most, 1)
    assert list(failures) == ([ONE] if first == "killed" else [])
    assert folder.failure(ONE).is_file() and not folder.failure(TWO).exists()


def test_a_sweep_that_is_asked_to_stop_begins_no_other_cell(tmp_path, monkeypatch):
    folder, call = run(tmp_path, monkeypatch, "stops")
    with pytest.raises(Interrupted, match="stopped as asked"):
        call()
    assert (tries(folder, ONE), tries(folder, TWO)) == (1, 0)


def test_what_may_pass_is_what_the_machine_did():
    assert may_pass(MachineError("")) and not may_pass(DataError(""))
    assert not may_pass(RuntimeError("")) and not may_pass(Interrupted(""))


@pytest.mark.parametrize(
    ("visible", "count", "found"),
    [(None, 0, []), (None, 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("", 0, []), ("7", 0, [])],
)
def test_devices_are_those_that_this_process_may_use(monkeypatch, visible, count, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert visible_devices() == found


def shows_device(folder, name, evaluate, log):
    make_folder(folder.own)
    (folder.own / f"device-{name}-{os.environ.get('CUDA_VISIBLE_DEVICES')}").touch()


def test_each_cell_at_a_time_has_a_device_of_its_own(tmp_path, monkeypatch):
    folder, record, _ = started(tmp_path, GRID)
    monkeypatch.setattr(local, "run_cell", shows_device)
    monkeypatch.setattr(local, "visible_devices", lambda: ["3", "5"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # The server that workers are forked from has the environment of its own start; what a worker
    # was to see is asked of this process at the moment of the start.
    seen = {}
    start = local.run_tasks.__globals__["_start"]

    def watched(name, work, *, forked):
        seen[name] = os.environ["CUDA_VISIBLE_DEVICES"]
        return start(name, work, forked=forked)

    monkeypatch.setitem(local.run_tasks.__globals__, "_start", watched)
    assert run_locally(folder, record, [ONE, TWO], jobs=None, retries=0) == {}
    assert sorted(seen.values()) == ["3", "5"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_cell_gives_the_adapters_of_train_and_goes_on_from_whatever_is_there(tmp_path):
    folder, _, sweep = started(tmp_path, GRID)
    run_cell(folder, ONE, evaluate=False, log=False)
    again = train_run(sweep.cells[0].config, tmp_path / "bare", if_exists="fail", bar=False)
    found = {
        path.relative_to(run.path): sha256_of(path)
        for run in (folder.run(ONE), again)
        for path in run.checkpoints.rglob("*.safetensors")
    }
    for name, digest in found.items():
        assert sha256_of(folder.run(ONE).path / name) == digest
    assert len(found) >= 2
    run_cell(folder, ONE, evaluate=False, log=False)  # nothing is left to do


def test_why_a_cell_failed_is_kept_until_it_is_tried_again(tmp_path):
    folder, _, _ = started(tmp_path, f"{GRID}", "  data.path: nowhere.jsonl\n")
    with pytest.raises(DataError):
        run_cell(folder, ONE, evaluate=False, log=False)
    assert "nowhere.jsonl" in folder.failure(ONE).read_text()
