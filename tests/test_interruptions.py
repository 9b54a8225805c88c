"""The command in a process of its own: signals, readers that leave, streams and folders that go."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from tiny_runs import TINY, tiny_run

from torture.forks import serving

COMMAND = [sys.executable, "-m", "gradroute"]
PLAIN = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LONG = ["train", "caps", *TINY, "train.max_steps=100000"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    tiny_run(root, "done")
    return root


def stopped(arguments, number, ready):
    """Start it, send a signal when it is ready, and wait for its end."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=PLAIN
    )
    try:
        ready(process)
        process.send_signal(number)
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
    return process.returncode, said


def forked(arguments, folder, number, ready):
    """The same in `folder`, of a process that has what it needs imported when it starts."""
    with serving() as server:
        child = server.start("gradroute.cli.main:main", {"arguments": arguments}, folder)
        while not ready(child):
            assert child.alive, child.said
            time.sleep(0.01)
        child.send(number)
        return child.wait(), child.said


def it_listens(process):
    """Its handlers are in place, and it is on its way to what it was asked."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        with open(f"/proc/{process.pid}/status") as status:
            caught = next(line for line in status if line.startswith("SigCgt:")).split()[1]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)
    raise AssertionError("it never listened")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_it_is_still_loading_ends_in_75_and_one_line(tmp_path, number):
    code, said = stopped([*LONG, "--runs", tmp_path], number, it_listens)
    assert code == 75
    assert said == ("error: interrupted. Finished work is kept; the same command goes on.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_training_ends_in_75_with_the_step_saved(tmp_path, number):
    def it_trains(_):
        return any(path.stat().st_size for path in tmp_path.rglob("metrics.jsonl"))

    code, said = forked(LONG, tmp_path, number, it_trains)
    assert code == 75
    assert "and saved. The same command goes on from there." in said.splitlines()[-1]
    assert list((tmp_path / "runs" / "caps" / "checkpoints").glob("step-*"))
    assert "Traceback" not in said


VERBS = [
    (["eval", "done", "--mode", "good=0.7,bad=0.1"], "measuring"),
    (["relearn", "done", "--examples", "8", "--max-steps", "4000"], "relearning"),
    (["recover", "done", "--steps", "4000"], "tuning"),
]


@pytest.mark.parametrize(("arguments", "word"), VERBS)
def test_a_signal_in_another_verb_ends_in_75_and_the_usual_line(runs, tmp_path, arguments, word):
    shutil.copytree(runs, tmp_path / "runs")
    code, said = forked(arguments, tmp_path, signal.SIGTERM, lambda child: word in child.said)
    assert code == 75, said
    assert said.splitlines()[-1].startswith("error: interrupted. Finished work is kept")
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.lock"))  # in order on the way out


def test_the_parent_of_several_runs_stops_them_and_ends_in_75(tmp_path):
    """Each run is trained by a new interpreter."""
    arguments = [*LONG, "controls=[none]", "--jobs", "2"]
    code, said = forked(arguments, tmp_path, signal.SIGTERM, lambda child: "steps on" in child.said)
    assert code == 75, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: interrupted")


@pytest.mark.parametrize("command", ["schema", "eval --help"])
def test_a_reader_that_leaves_a_new_process_is_met_with_silence(command):
    """Up to the very end of the interpreter, which flushes once more."""
    line = f"{' '.join(COMMAND)} {command} | head -n 1"
    told = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, env=PLAIN)
    assert "Traceback" not in told.stderr and "Error" not in told.stderr
    assert "Exception ignored" not in told.stderr and told.stdout.count("\n") == 1


@contextmanager
def reader_of(pipe, lines):
    """Somebody who reads so many lines of a named pipe, and leaves; and what he has read."""
    os.mkfifo(pipe)
    reader = subprocess.Popen(["head", "-n", str(lines), pipe], stdout=subprocess.PIPE, text=True)
    try:
        yield reader
    finally:
        reader.kill()
        reader.communicate()


@pytest.mark.parametrize("command", ["schema", "sample done --runs {runs}", "eval --help"])
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_leaves_is_met_with_silence(runs, tmp_path, command, both):
    """The end of a forked child flushes once more, too."""
    given = {"arguments": command.format(runs=runs).split()}
    pipe = tmp_path / "pipe"
    err = pipe if both else None
    with serving() as server, reader_of(pipe, 1) as reader:
        child = server.start("gradroute.cli.main:main", given, tmp_path / "x", out=pipe, err=err)
        read, _ = reader.communicate(timeout=600)
        child.wait()
    assert read.count("\n") == 1
    for text in (read, *(() if both else (child.said,))):
        assert "Traceback" not in text and "Error" not in text and "Exception ignored" not in text


def test_training_goes_on_when_nobody_reads_what_it_says(tmp_path):
    given = {"arguments": ["train", "caps", *TINY, "run_name=x"]}
    pipe = tmp_path / "pipe"
    with serving() as server, reader_of(pipe, 0):
        child = server.start("gradroute.cli.main:main", given, tmp_path / "x", out=pipe, err=pipe)
        assert child.wait() == 0
    saved = tmp_path / "x" / "runs" / "x" / "checkpoints" / "step-000003"
    assert (saved / "manifest.json").is_file()


def test_streams_that_are_closed_lead_nowhere(tmp_path):
    line = f"{' '.join(COMMAND)} train caps {' '.join(TINY)} run_name=x --runs {tmp_path}"
    told = subprocess.run(["bash", "-c", f"{line} <&- >&- 2>&-"], check=False, env=PLAIN)
    assert told.returncode == 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"steps on" not in path.read_bytes(), path


def test_an_output_that_takes_nothing_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [*COMMAND, "schema"], stdout=full, stderr=subprocess.PIPE, text=True, env=PLAIN
        )
    assert told.returncode == 4
    assert (
        told.stderr.startswith("error: the operating system reports an error")
        and told.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    "arguments", [["train", "caps", *TINY, "--runs", "runs"], ["eval", "x"], ["report", "x"]]
)
def test_a_current_folder_that_was_removed_is_no_traceback(tmp_path, arguments):
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && exec {' '.join([*COMMAND, *arguments])}"
    told = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=PLAIN
    )
    assert told.returncode in (2, 4), told.stderr
    assert "Traceback" not in told.stderr
    assert told.stderr.splitlines()[-1].startswith("error: ")
