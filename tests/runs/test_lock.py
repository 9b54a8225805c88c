"""A run folder has one writer: held by the kernel, gone with the process, named to the others."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from gradroute.errors import ConfigError, MachineError
from gradroute.runs import lock
from gradroute.runs.lock import in_use, write_lock

HOLD = """
import os, sys
from pathlib import Path
from gradroute.errors import GradrouteError
from gradroute.runs.lock import write_lock
if sys.argv[2:]:
    os.setuid(int(sys.argv[2]))  # nobody, for whom permissions hold
try:
    with write_lock(Path(sys.argv[1]), "training"):
        print("in", flush=True)
        sys.stdin.read()
except GradrouteError as error:
    print(f"{error.exit_code} {error}", flush=True)
"""


def start(folder: Path, *user: str) -> subprocess.Popen[str]:
    """A process that holds the folder until its standard input ends, or says why it cannot."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *user],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def let_go(process: subprocess.Popen[str]) -> str:
    """End a holder in peace; what it wrote to standard error."""
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return err


def test_a_second_process_is_told_who_writes_and_since_when(tmp_path):
    holder = start(tmp_path / "x")
    assert said(holder) == "in"
    record = json.loads((tmp_path / ".x.lock").read_text())
    assert set(record) == {"pid", "host", "started", "verb"} and record["pid"] == holder.pid
    with (
        pytest.raises(MachineError, match=rf"in use: process {holder.pid} on host .* has been "
                      rf"training since {record['started']}\. Wait for it or stop it"),
        write_lock(tmp_path / "x", "measuring"),
    ):  # fmt: skip
        raise AssertionError("two writers")
    let_go(holder)
    with write_lock(tmp_path / "x", "measuring"):
        assert json.loads((tmp_path / ".x.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(tmp_path, capsys):
    holder = start(tmp_path / "x")
    assert said(holder) == "in"
    holder.kill()
    holder.communicate(timeout=600)
    assert (tmp_path / ".x.lock").is_file()
    with write_lock(tmp_path / "x", "training"):
        pass
    err = capsys.readouterr().err
    assert f"process {holder.pid}" in err and "taken over" in err and err.count("\n") == 1
    assert "another machine" not in err
    assert list(tmp_path.iterdir()) == []


def dies_while_it_starts_a_program(folder: Path, program_starts_after: float) -> None:
    """Hold the folder in a process that forks, as for a program to start, and is then killed."""
    code = HOLD.replace(
        "sys.stdin.read()",
        f"if os.fork():\n            os.kill(os.getpid(), 9)\n"
        f"        time.sleep({program_starts_after})\n        os._exit(0)",
    ).replace("import os, sys", "import os, sys, time")
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.DEVNULL)
    assert holder.wait(timeout=60) == -9


def test_what_a_killed_process_was_starting_is_waited_for(tmp_path, capsys):
    dies_while_it_starts_a_program(tmp_path / "x", 1.0)
    with pytest.raises(BlockingIOError):  # what it forked has the lock still
        os.close(lock._open_locked(tmp_path / ".x.lock"))
    with write_lock(tmp_path / "x", "training"):
        assert "of a process that is gone is taken over" in capsys.readouterr().err


def test_what_a_killed_process_started_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_LEFT_WITHIN", 0.1)
    dies_while_it_starts_a_program(tmp_path / "x", 3)
    with pytest.raises(MachineError, match="is in use: process"):
        write_lock(tmp_path / "x", "training").__enter__()


@pytest.mark.parametrize("pid", [0, -1, 1, 10**30, "1", None, True])
def test_a_process_id_that_tells_nothing_is_not_taken_for_a_dead_process(pid):
    assert not lock._is_dead({"pid": pid, "host": os.uname().nodename})


def test_a_process_of_another_machine_is_not_taken_for_a_dead_one(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert lock._is_dead({"pid": gone.pid, "host": os.uname().nodename})
    assert not lock._is_dead({"pid": gone.pid, "host": "elsewhere"})


def test_a_lock_left_by_another_machine_is_taken_over_with_a_warning(tmp_path, capsys):
    left = {"pid": 7, "host": "far.\x1b[2J", "started": "2026-01-01T00:00:00Z", "verb": "training"}
    (tmp_path / ".x.lock").write_text(json.dumps(left))
    with write_lock(tmp_path / "x", "training"):
        pass
    err = capsys.readouterr().err
    assert "process 7 on host far." in err and "stop one of the two" in err and "\x1b" not in err


@pytest.mark.parametrize("content", ["", "{", "[" * 9999, "7", '{"pid": 1}', "\0" * 50])
def test_what_a_lock_file_says_does_not_matter(content, tmp_path):
    (tmp_path / ".x.lock").write_text(content)
    with write_lock(tmp_path / "x", "training"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_file_that_was_just_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    took = fcntl.flock
    calls = []

    def removed_meanwhile(handle, operation):
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / ".x.lock").unlink()  # as the holder before does when it is done
        took(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with write_lock(tmp_path / "x", "training"):
        other = start(tmp_path / "x")
        assert said(other).startswith("4 ") and len(calls) == 2
        let_go(other)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_cannot_be_removed_says_of_nobody_that_it_died(
    tmp_path, monkeypatch, capsys
):
    """As on Windows, where a file that is open stays."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        with write_lock(tmp_path / "x", "training"):
            pass
    assert (tmp_path / ".x.lock").read_bytes() == b""
    with write_lock(tmp_path / "x", "training"):
        pass
    assert capsys.readouterr().err == "" and list(tmp_path.iterdir()) == []


def test_other_programs_that_use_filelock_are_kept_out(tmp_path):
    with (
        FileLock(tmp_path / ".x.lock"),
        pytest.raises(MachineError, match="another process"),
        write_lock(tmp_path / "x", "training"),
    ):
        raise AssertionError("two writers")


def test_a_holder_that_has_not_said_who_it_is_is_another_process(tmp_path):
    handle = os.open(tmp_path / ".x.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with (
        pytest.raises(MachineError, match="in use: another process"),
        write_lock(tmp_path / "x", "training"),
    ):
        raise AssertionError("two writers")
    os.close(handle)


def test_of_eight_processes_that_start_at_once_exactly_one_writes(tmp_path):
    processes = [start(tmp_path / "x") for _ in range(8)]
    answers = [said(process) for process in processes]
    for process in processes:
        let_go(process)
    assert answers.count("in") == 1, answers
    (winner,) = (p for p, answer in zip(processes, answers, strict=True) if answer == "in")
    refused = [answer for answer in answers if answer != "in"]
    assert all(a.startswith("4 ") and f"process {winner.pid} on" in a for a in refused), refused
    assert list(tmp_path.iterdir()) == []


def test_the_same_folder_by_another_path_is_the_same_lock(tmp_path, monkeypatch):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "also").symlink_to("runs")
    (tmp_path / "runs" / "y").symlink_to("x")
    holder = start(tmp_path / "runs" / "x")
    assert said(holder) == "in"
    monkeypatch.chdir(tmp_path / "runs" / "x")
    for path in (tmp_path / "also" / "x", tmp_path / "runs" / "y", Path("."), Path("../x")):
        with pytest.raises(MachineError, match="in use"), write_lock(path, "training"):
            raise AssertionError(f"two writers by {path}")
    let_go(holder)


def test_the_lock_holds_while_the_folder_is_moved_aside_and_made_anew(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    with write_lock(folder, "training"):
        folder.rename(tmp_path / "x.old-1")
        for _ in range(2):
            other = start(folder)
            assert said(other).startswith("4 ")
            let_go(other)
            folder.mkdir(exist_ok=True)


def test_the_same_thread_may_enter_twice_and_another_may_not(tmp_path):
    found = []

    def other():
        try:
            with write_lock(tmp_path / "x", "training"):
                found.append("in")
        except MachineError as error:
            found.append(str(error))

    with write_lock(tmp_path / "x", "recovering"):
        with (
            write_lock(tmp_path / "x", "measuring"),
            write_lock(tmp_path / "x" / "recover", "measuring"),
        ):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1 and f"process {os.getpid()}" in found[0] and "recovering" in found[0]
    other()
    assert found[1] == "in"


def test_an_error_inside_lets_the_lock_go(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), write_lock(tmp_path / "x", "training"):
            raise KeyError("x")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MachineError, match=r"cannot be locked: .* --runs"),
        write_lock(tmp_path / "file" / "x", "training"),
    ):
        raise AssertionError("there is no such folder")


def test_a_folder_of_somebody_else_is_one_sentence_with_exit_code_4(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o555)
    process = start(folder / "x", *(["65534"] if os.getuid() == 0 else []))
    assert said(process).startswith("4 run folder")
    let_go(process)
    folder.chmod(0o755)


def test_a_link_that_leads_out_is_not_written_through(tmp_path):
    away = tmp_path / "away"
    runs = tmp_path / "runs"
    away.mkdir()
    (runs / "real").mkdir(parents=True)
    (runs / "x").symlink_to(away)
    (runs / "real" / "eval").symlink_to(away)
    for name, link in (("x", "runs/x"), ("real", "real/eval")):
        with (
            pytest.raises(ConfigError, match=f"{link} is a link that leads out of"),
            write_lock(runs / name, "training"),
        ):
            raise AssertionError("written through")
    (away / "real").mkdir()
    with write_lock(away / "real", "training"):
        pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / ".x.lock").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("data")
    with (
        pytest.raises(MachineError, match="cannot be locked"),
        write_lock(tmp_path / "x", "training"),
    ):
        raise AssertionError("followed")
    assert (tmp_path / "precious").read_text() == "data"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)  # no such file system can be made here
    with write_lock(tmp_path / "x", "training"):
        err = capsys.readouterr().err
        assert "no file locks" in err and "start only one" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_who_writes_is_said_without_taking_the_lock(tmp_path):
    folder = tmp_path / "run"
    assert in_use(folder) == ""
    with write_lock(folder, "training"):
        assert f"process {os.getpid()} on host" in in_use(folder)
        assert "has been training since" in in_use(folder)
        with write_lock(folder, "training"):  # nobody took it meanwhile
            pass
    assert in_use(folder) == ""


def test_a_killed_process_writes_to_nothing_any_more(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = {"pid": gone.pid, "host": lock.platform.node(), "started": "x", "verb": "training"}
    (tmp_path / ".run.lock").write_text(json.dumps(record))
    assert in_use(tmp_path / "run") == ""
    (tmp_path / ".run.lock").write_text(json.dumps(record | {"host": "another"}))
    assert "on host another" in in_use(tmp_path / "run")
