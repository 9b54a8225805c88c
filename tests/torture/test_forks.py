"""The server that forks every try, and the eyes with which the tries are judged."""

import json
import os
import signal

import pytest

from torture.forks import Child, Server, serving
from torture.runs import broken, finals, one_line_error, sha256, unequal


def test_a_child_ends_as_its_function_does_and_by_the_signal_that_ends_it(tmp_path):
    with serving() as server:
        wrong = server.start("torture.runs:command", {"lines": [["train"]]}, tmp_path / "a")
        waiting = server.start("signal:pause", {}, tmp_path / "b")
        killed = server.start("signal:pause", {}, tmp_path / "c")
        assert wrong.wait() == 2
        assert "usage: gradroute train" in wrong.said
        assert waiting.alive and killed.alive
        waiting.send(signal.SIGTERM)
        killed.kill()
        assert (waiting.wait(), killed.wait()) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_child_that_hangs_is_killed_and_said_to_hang(tmp_path):
    with serving() as server:
        child = server.start("signal:pause", {}, tmp_path / "a")
        with pytest.raises(TimeoutError, match="did not end"):
            child.wait(0.2)
        assert child.code == -signal.SIGKILL


@pytest.mark.parametrize("way", ["leaves", "is closed"])
def test_no_child_outlives_its_server(tmp_path, way):
    if way == "leaves":
        with serving() as server:
            child = server.start("signal:pause", {}, tmp_path / "a")
    else:
        with Server("torture.forks") as server:
            child = server.start("signal:pause", {}, tmp_path / "a")
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def run_folder(path):
    """A run folder with one checkpoint that verifies."""
    checkpoint = path / "checkpoints" / "step-000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.safetensors").write_bytes(b"moments")
    manifest = {"sha256": {"optimizer.safetensors": sha256(checkpoint / "optimizer.safetensors")}}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    return checkpoint


def test_a_run_is_equal_to_itself_and_to_no_other(tmp_path):
    checkpoint = run_folder(tmp_path)
    quiet = finals(tmp_path)
    assert unequal(tmp_path, quiet) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    (checkpoint / "optimizer.safetensors").write_bytes(b"others")
    assert unequal(tmp_path, quiet) == ["metrics.jsonl", "optimizer.safetensors"]
    checkpoint.rename(checkpoint.with_name("step-000004"))
    assert "step" in unequal(tmp_path, quiet)


def test_a_checkpoint_that_is_not_what_its_manifest_says_is_seen(tmp_path):
    checkpoint = run_folder(tmp_path)
    assert broken(tmp_path) == []
    (checkpoint / "more").touch()
    assert broken(tmp_path) == ["step-000003/more is not what its manifest says"]
    (checkpoint / "manifest.json").unlink()
    assert broken(tmp_path) == ["step-000003 has no manifest"]


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (4, "x: step 3\nerror: the disk is full.\n", None),
        (1, "error: the disk is full.\n", "ended with 1 instead of 4"),
        (4, "Traceback (most recent call last):\nerror: full.\n", "did not say one line"),
        (4, "the disk is full.\n", "did not say one line"),
        (4, "error: full.\nerror: full.\n", "did not say one line"),
        (4, "error: full.\nx: step 4\n", "went on speaking"),
    ],
)
def test_an_error_is_one_line_at_the_end(tmp_path, code, said, told):
    err = tmp_path / "err"
    err.write_text(said)
    found = one_line_error(Child(Server(), 0, err, err, code), 4)
    assert (found is None) == (told is None)
    assert (found or "").startswith(told or "")
