"""Cells as trials of Ray Tune: adapters as from `train`, errors named, nothing left behind."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from tiny_sweeps import started

from gradroute.config.sweep_file import RayConfig
from gradroute.errors import DataError, Interrupted, MachineError
from gradroute.experiments.sweep import on_ray
from gradroute.experiments.sweep.on_ray import run_on_ray
from gradroute.experiments.sweep.one_cell import failure_of, record_failure
from gradroute.run import train_run
from gradroute.system.files import sha256_of

GRID = "axes: {data.path: [null, nowhere.jsonl]}\nevaluate: false\n"
FINE, WRONG = "path_null", "path_nowhere.jsonl"

_SERVERS = ("raylet", "gcs_server")


def of_ray() -> set[int]:
    """Processes below this one that Ray started."""
    family = psutil.Process().children(recursive=True)
    return {p.pid for p in family if p.name() in _SERVERS or p.name().startswith("ray::")}


def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put into the environment is taken away in the end."""
    for name, value in on_ray._environment(RayConfig()).items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_cells_on_ray_are_those_of_train_and_one_that_fails_is_named(tmp_path, monkeypatch):
    own_environment(monkeypatch)
    folder, record, sweep = started(tmp_path, GRID)
    listening: list[str] = []
    starts = counted_starts(monkeypatch)
    at_home = (Path.home() / ".ray").exists()
    monkeypatch.setattr(on_ray, "_told_now_and_then", partial(watching, listening))
    failures = run_on_ray(folder, record, [FINE, WRONG], RayConfig(), jobs=2, retries=0)
    assert list(failures) == [WRONG] and isinstance(failures[WRONG], DataError)
    assert "nowhere.jsonl" in str(failures[WRONG])
    bare = train_run(sweep.cells[0].config, tmp_path / "bare", if_exists="fail", bar=False)
    found = {
        path.relative_to(bare.path): sha256_of(path)
        for path in bare.checkpoints.rglob("*.safetensors")
    }
    assert len(found) >= 2
    for name, digest in found.items():
        assert sha256_of(folder.run(FINE).path / name) == digest
    assert (Path.home() / ".ray").exists() == at_home
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"} and listening
    # What a start that took too long has left ends with this process.
    assert len(starts) > 1 or not of_ray()


def counted_starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets an entry whenever Ray is started."""
    import ray

    starts: list[str] = []
    init = ray.init

    def counted(*words, **given):
        starts.append(str(words))
        return init(*words, **given)

    monkeypatch.setattr(ray, "init", counted)
    return starts


def watching(listening: list[str], *_):
    """Writes down where the servers of Ray listen, in place of telling how far cells are."""
    from ray import tune

    class Watching(tune.Callback):
        def on_trial_complete(self, iteration, trials, trial, **info):
            for pid in of_ray():
                for one in psutil.Process(pid).net_connections("tcp"):
                    if one.status == psutil.CONN_LISTEN and not isinstance(one.laddr, tuple | None):
                        listening.append(one.laddr.ip)
                    elif one.status == psutil.CONN_LISTEN and one.laddr:
                        listening.append(one.laddr[0])

    return Watching()


def test_without_ray_one_line_says_what_installs_it(tmp_path: Path, monkeypatch) -> None:
    folder, record, _ = started(tmp_path, GRID)
    own_environment(monkeypatch)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match=r"needs ray: pip install 'gradroute\[ray\]'\.$"):
        run_on_ray(folder, record, [FINE], RayConfig(), jobs=None, retries=0)


def test_a_start_that_takes_too_long_is_tried_again_and_then_a_sentence(tmp_path, monkeypatch):
    own_environment(monkeypatch)
    folder, record, _ = started(tmp_path, GRID)
    tried = []

    def init(*_, **given):
        tried.append(given["include_dashboard"])
        raise Exception("The node timed out.\nMore.")  # of that type, as Ray's is

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(MachineError, match=r"^Ray does not start: The node timed out\.$"):
        run_on_ray(folder, record, [FINE], RayConfig(), jobs=None, retries=0)
    assert tried == [False] * 3


@pytest.mark.parametrize(
    ("codes", "retries", "ends"),
    [([0], 2, 0), ([4, 0], 1, 0), ([-9, 137, 4], 2, 4), ([2, 0], 3, 2), ([75, 0], 3, 75)],
)
def test_a_trial_tries_again_only_what_may_pass(tmp_path, monkeypatch, codes, retries, ends):
    left = list(codes)
    monkeypatch.setattr(on_ray, "_cell_process", lambda *_: left.pop(0))
    given = {"folder": str(tmp_path), "cell": "a", "cwd": str(tmp_path), "retries": retries}
    assert on_ray._trial(given) == {"cell": "a", "code": ends}


def test_the_process_of_a_cell_is_asked_to_stop_with_its_sweep(tmp_path, monkeypatch):
    folder, _, _ = started(tmp_path, GRID)
    asked = "import sys; sys.stdin.read(); sys.exit(75)"
    popen = subprocess.Popen

    def instead(command, **given):
        process = popen([sys.executable, "-c", asked], **given)
        folder.stop.touch()
        return process

    monkeypatch.setattr(on_ray.subprocess, "Popen", instead)
    assert on_ray._cell_process(folder, FINE, str(tmp_path)) == 75
    assert on_ray._cell_process(folder, WRONG, str(tmp_path)) == 75  # it does not begin
    assert not folder.log(WRONG).exists()


def test_an_exit_code_is_the_error_that_the_cell_left(tmp_path):
    folder, _, _ = started(tmp_path, GRID)
    record_failure(folder, FINE, DataError("row 3 has no text."))
    error = failure_of(folder, FINE, 3)
    assert isinstance(error, DataError) and str(error) == "row 3 has no text."
    assert isinstance(failure_of(folder, WRONG, 75), Interrupted)
    killed = failure_of(folder, WRONG, -9)
    assert isinstance(killed, MachineError) and "was killed (exit code -9)" in str(killed)
    assert "was killed" in folder.failure(WRONG).read_text()
