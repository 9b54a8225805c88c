"""Several runs at a time: how each ends is known here, and none outlives this process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from gradroute.config.run_config import find_config, load_config
from gradroute.errors import ConfigError, DataError, Interrupted, MachineError, NumericError
from gradroute.experiments import parallel

# What a worker does in place of a run; at the top of a file, where a new process finds it.


def works():
    pass


def fails(kind):
    raise kind("what was given, and what to do.")


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def is_asked():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def waits(ready):
    ready.touch()
    time.sleep(60)


def stands_in(config, root, **_):
    (root / config.run_name).touch()
    if config.run_name == "long":
        time.sleep(60)
    if config.run_name == "bad":
        while not (root / "long").exists():
            time.sleep(0.01)
        raise DataError("what was given, and what to do.")


def ends(cell):
    answer, worker = parallel._start("x", cell)
    parallel._finish(answer, worker)
    return worker


def test_a_run_that_ends_well_leaves_nothing():
    worker = ends(works)
    assert worker.exitcode == 0 and not worker.is_alive()


@pytest.mark.parametrize("kind", [ConfigError, NumericError, Interrupted])
def test_the_error_of_a_run_is_raised_as_what_it_is_with_its_traceback_as_a_note(kind):
    with pytest.raises(kind, match=r"^what was given, and what to do") as caught:
        ends(partial(fails, kind))
    assert type(caught.value) is kind
    assert "in fails" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", [MemoryError, OSError])
def test_a_machine_that_refuses_a_run_is_said_to(kind):
    with pytest.raises(MachineError, match="the operating system reports an error: what was given"):
        ends(partial(fails, kind))


def test_a_fault_of_the_program_stays_one():
    with pytest.raises(RuntimeError, match=r"KeyError: .what was given") as caught:
        ends(partial(fails, KeyError))
    assert not isinstance(caught.value, MachineError)


def test_a_run_that_is_killed_is_named_with_what_to_do():
    with pytest.raises(MachineError, match=r"run x was killed \(exit code -9\).*jobs 1"):
        ends(is_killed)


def test_a_run_that_is_asked_to_stop_outside_of_training_says_so():
    with pytest.raises(Interrupted, match="x: interrupted"):
        ends(is_asked)


def test_those_who_are_stopped_are_gone(tmp_path):
    workers = []
    for name in ("one", "two"):
        _, worker = parallel._start(name, partial(waits, tmp_path / name))
        workers.append(worker)
        while not (tmp_path / name).exists():
            time.sleep(0.01)
    parallel._stop(workers)
    assert not any(worker.is_alive() for worker in workers)


def test_workers_of_a_parent_that_is_killed_end_by_themselves(tmp_path):
    script = (
        "import sys, time\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from gradroute.experiments import parallel\n"
        "from experiments.test_parallel import waits\n"
        "places = [Path(sys.argv[1]) / name for name in ('one', 'two')]\n"
        "kept = [parallel._start(place.name, partial(waits, place)) for place in places]\n"
        "time.sleep(60)\n"
    )
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script, str(tmp_path)]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    while not all((tmp_path / name).exists() for name in ("one", "two")):
        assert parent.poll() is None
        time.sleep(0.01)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 2
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(family, timeout=600)
    assert not left


def test_one_run_that_fails_stops_the_others_and_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_run_one", stands_in)
    configs = [load_config(find_config("caps"), [f"run_name={n}"]) for n in ("long", "bad", "late")]
    with pytest.raises(DataError, match="what was given"):
        parallel.run_in_parallel(configs, tmp_path, 2, if_exists="resume", evaluate=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "long"]


def test_runs_come_back_in_the_order_in_which_they_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_run_one", stands_in)
    names = ["c", "a", "b"]
    configs = [load_config(find_config("caps"), [f"run_name={name}"]) for name in names]
    found = parallel.run_in_parallel(configs, tmp_path, 2, if_exists="resume", evaluate=False)
    assert [folder.name for folder in found] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_worker_runs_no_code_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels", sys)  # put back, or taken away, afterwards
    monkeypatch.delitem(sys.modules, "kernels")
    config = load_config(find_config("caps"), ["data.path=nowhere.jsonl", "run_name=x"])
    with pytest.raises(DataError, match="nowhere"):
        parallel._run_one(config, tmp_path, "fail", evaluate=False, overrides=(), audit=False)
    assert sys.modules["kernels"] is None


def counted(place):
    place.with_name(f"{place.name}-{len(list(place.parent.iterdir()))}").touch()


def test_a_task_is_done_again_for_as_long_as_it_is_asked_for(tmp_path):
    asked = []

    def ended(name, error):
        asked.append((name, error))
        return len(asked) < 3

    tasks = [parallel.Task("x", partial(counted, tmp_path / "x"))]
    parallel.run_tasks(tasks, 1, ended=ended)
    assert asked == [("x", None)] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0", "x-1", "x-2"]


def test_whoever_watches_can_stop_everything(tmp_path):
    def watch():
        if (tmp_path / "long").exists():
            raise Interrupted("asked to stop.")

    tasks = [parallel.Task("long", partial(waits, tmp_path / "long"))]
    with pytest.raises(Interrupted, match="asked to stop"):
        parallel.run_tasks(tasks, 1, ended=lambda *_: False, watch=watch)
    assert not multiprocessing.active_children()
