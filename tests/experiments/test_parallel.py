"""Several runs at a time: how each ends is known here, and none outlives this process."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
from experiments.workers import (
    VARIABLES,
    counted,
    evaluates_in_turn,
    fails,
    is_asked,
    is_killed,
    says_what_it_has,
    stands_in,
    trains_in_turn,
    waits,
    works,
)

from gradroute.config.run_config import find_config, load_config
from gradroute.errors import ConfigError, DataError, Interrupted, MachineError, NumericError
from gradroute.experiments import parallel


@pytest.fixture(params=[False, True], ids=["new interpreter", "forked"])
def forked(request):
    if request.param:
        parallel._start_server({})
    return request.param


def ends(cell, forked=True):
    if forked:
        parallel._start_server({})
    answer, worker = parallel._start("x", cell, forked=forked)
    parallel._finish(answer, worker)
    return worker


def test_a_run_that_ends_well_leaves_nothing(forked):
    worker = ends(works, forked)
    assert worker.exitcode == 0 and not worker.is_alive()


def test_a_forked_worker_has_the_environment_of_now_and_everything_imported(tmp_path, monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("GRADROUTE_TEST", value)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        ends(partial(says_what_it_has, tmp_path / value))
        found, threads, preloaded = json.loads((tmp_path / value).read_text(encoding="utf-8"))
        assert found == dict(zip(VARIABLES, (value, "3", None), strict=True))
        assert threads == 2 and preloaded  # itself, and the one that follows its parent


STARTED_ANEW = """
import sys
sys.path[:] = sys.argv[1].split(":")
from functools import partial
from pathlib import Path
from gradroute.experiments import parallel
from experiments import workers
needs = {"bases": ["embedded"], "draws": [["stories", "tune", 30, 7]]}
parallel._start_server(needs if sys.argv[2] == "needs" else {"bases": ["nowhere/at all"]})
work = partial(workers.says_what_is_at_hand, Path("told"))
parallel._finish(*parallel._start("x", work, forked=True))
"""


@pytest.mark.parametrize(("needs", "at_hand"), [("needs", True), ("refused", False)])
def test_what_runs_load_and_draw_alike_is_at_hand_before_the_fork(tmp_path, needs, at_hand):
    other = tmp_path / "gradroute"  # a folder of the same name where we are is not imported
    (other / "experiments").mkdir(parents=True)
    for name in ("__init__.py", "experiments/__init__.py", "experiments/preloaded.py"):
        (other / name).write_text("raise SystemExit('another package')\n", encoding="utf-8")
    command = [sys.executable, "-P", "-c", STARTED_ANEW, os.pathsep.join(sys.path), needs]
    subprocess.run(command, cwd=tmp_path, check=True)
    told = json.loads((tmp_path / "told").read_text())
    # Threads: itself, and the one that follows its parent.
    assert told == [2, at_hand, int(at_hand), parallel.__file__]


def test_what_at_least_two_runs_need_is_needed_in_common():
    def config(name, *changes):
        return load_config(find_config("caps"), [f"run_name={name}", *changes])

    two = [config("a", "seed=3"), config("b", "seed=3", "data.labeled_fraction=1.0")]
    alike = [("stories", "tune", 6000, 3), ("stories", "test", 256, 0)]
    assert parallel.common_needs([*two, config("c", "seed=4")]) == {
        "bases": ["embedded"],
        "draws": alike,
    }
    assert parallel.common_needs(two[:1]) == {"bases": [], "draws": []}
    own = [config(name, "data.path=rows.jsonl", "start_adapter=place") for name in "ab"]
    assert parallel.common_needs(own) == {"bases": [], "draws": []}


@pytest.mark.parametrize(
    ("settings", "gpu", "why"),
    [
        ((), False, None),
        ((), True, "with a GPU processes are not forked"),
        (("model=someone/some-model",), False, "with a base that may hold its weights in few"),
    ],
)
def test_where_processes_cannot_be_forked_a_line_says_why(settings, gpu, why, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(parallel.sys, "platform", "linux")
    assert parallel.can_fork([load_config(find_config("caps"), settings)]) is (why is None)
    told = capsys.readouterr().err
    assert told.startswith(why) if why else told == ""


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


def test_a_run_that_is_killed_is_named_with_what_to_do(forked):
    with pytest.raises(MachineError, match=r"run x was killed \(exit code -9\).*jobs 1"):
        ends(is_killed, forked)


def test_a_run_that_is_asked_to_stop_outside_of_training_says_so(forked):
    with pytest.raises(Interrupted, match="x: interrupted"):
        ends(is_asked, forked)


def test_those_who_are_stopped_are_gone(tmp_path, forked):
    workers = []
    for name in ("one", "two"):
        _, worker = parallel._start(name, partial(waits, tmp_path / name), forked=forked)
        workers.append(worker)
        while not (tmp_path / name).exists():
            time.sleep(0.01)
    parallel._stop(workers)
    assert not any(worker.is_alive() for worker in workers)


def test_workers_of_a_parent_that_is_killed_end_by_themselves(tmp_path, forked):
    script = (
        "import sys, time\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from gradroute.experiments import parallel\n"
        "from experiments.workers import waits\n"
        "places = [Path(sys.argv[1]) / name for name in ('one', 'two')]\n"
        f"forked = {forked}\n"
        "if forked:\n"
        "    parallel._start_server({})\n"
        "kept = [parallel._start(place.name, partial(waits, place), forked=forked)\n"
        "        for place in places]\n"
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
    monkeypatch.setattr(parallel, "_train_one", stands_in)
    configs = [load_config(find_config("caps"), [f"run_name={n}"]) for n in ("long", "bad", "late")]
    with pytest.raises(DataError, match="what was given"):
        parallel.run_in_parallel(configs, tmp_path, 2, if_exists="resume", evaluate=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "long"]


def test_runs_come_back_in_the_order_in_which_they_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_train_one", stands_in)
    names = ["c", "a", "b"]
    configs = [load_config(find_config("caps"), [f"run_name={name}"]) for name in names]
    found = parallel.run_in_parallel(configs, tmp_path, 2, if_exists="resume", evaluate=False)
    assert [folder.name for folder in found] == names
    assert {path.name for path in tmp_path.iterdir()} == {*names}


def test_runs_are_evaluated_behind_all_trainings(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_train_one", trains_in_turn)
    monkeypatch.setattr(parallel, "_evaluate_one", evaluates_in_turn)
    configs = [load_config(find_config("caps"), [f"run_name={name}"]) for name in "abc"]
    parallel.run_in_parallel(configs, tmp_path, 1, if_exists="resume", evaluate=True)
    turns = (tmp_path / "turns").read_text(encoding="utf-8").split()
    assert turns == ["train-a", "train-b", "train-c", "eval-a", "eval-b", "eval-c"]


def test_what_has_failed_is_not_followed_and_what_is_done_again_is_followed_once(tmp_path):
    after = parallel.Task("after", partial(counted, tmp_path / "after"))
    tasks = [
        parallel.Task("x", partial(fails, DataError), after),
        parallel.Task("y", partial(counted, tmp_path / "y"), after),
    ]
    asked = []

    def ended(name, error):
        asked.append((name, type(error)))
        return asked.count(("y", type(None))) == 1 and name == "y"

    parallel.run_tasks(tasks, 1, ended=ended, forked={})
    nothing = type(None)
    assert asked == [("x", DataError), ("y", nothing), ("y", nothing), ("after", nothing)]


def test_a_worker_runs_no_code_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels", sys)  # put back, or taken away, afterwards
    monkeypatch.delitem(sys.modules, "kernels")
    config = load_config(find_config("caps"), ["data.path=nowhere.jsonl", "run_name=x"])
    with pytest.raises(DataError, match="nowhere"):
        parallel._train_one(config, tmp_path, "fail", overrides=(), audit=False)
    assert sys.modules["kernels"] is None


def test_a_task_is_done_again_for_as_long_as_it_is_asked_for(tmp_path):
    asked = []

    def ended(name, error):
        asked.append((name, error))
        return len(asked) < 3

    tasks = [parallel.Task("x", partial(counted, tmp_path / "x"))]
    parallel.run_tasks(tasks, 1, ended=ended, forked={})
    assert asked == [("x", None)] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0", "x-1", "x-2"]


def test_whoever_watches_can_stop_everything(tmp_path):
    def watch():
        if (tmp_path / "long").exists():
            raise Interrupted("asked to stop.")

    tasks = [parallel.Task("long", partial(waits, tmp_path / "long"))]
    with pytest.raises(Interrupted, match="asked to stop"):
        parallel.run_tasks(tasks, 1, ended=lambda *_: False, watch=watch, forked={})
    assert not multiprocessing.active_children()
