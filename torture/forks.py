"""Many short-lived real processes: a server that has imported everything forks a child per try.

A child calls one function, `module:name`, in a session of its own with its own output files, and
ends as a program does. The server dies with its client, and its children die with it.

    with serving() as server:
        child = server.start("torture.runs:command", {"lines": [["train", "x.yaml"]]}, folder)
        child.wait(60)
"""

import atexit
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

PATIENCE = 600.0
"""Seconds after which a child that should have ended is taken for one that hangs."""


@dataclass
class Child:
    """A process that the server forked.

    Attributes:
        pid: of the process, and of its process group.
        out: file of its standard output.
        err: file of its standard error.
        code: how it ended (minus the signal that ended it), None while it lives.
    """

    server: "Server"
    pid: int
    out: Path
    err: Path
    code: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        self.server.listen(0)
        return self.code is None

    @property
    def said(self) -> str:
        """What it wrote to standard error up to now."""
        return self.err.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        """Send a signal to the process alone, as `kill` does."""
        self.server.order({"signal": number, "to": self.pid, "group": False})

    def kill(self) -> None:
        """SIGKILL the process and whatever it started, and wait until it is gone."""
        self.server.order({"signal": signal.SIGKILL, "to": self.pid, "group": True})
        self.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; a child that hangs is killed.

        Raises:
            TimeoutError: it did not end by itself.
        """
        end = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"process {self.pid} did not end within {seconds:.0f} s")
            self.server.listen(0.01)
        assert self.code is not None
        return self.code


@dataclass
class Server:
    """The parent of all tries; use it as a context.

    Attributes:
        preload: the module that the server imports before it forks.
        children: those that live, by process id.
    """

    preload: str = "torture.preloaded"
    children: dict[int, Child] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _unread: bytes = b""
    _ready: bool = False
    _number: int = 0
    _coming: Child | None = None

    def __enter__(self) -> "Server":
        root = Path(__file__).parent.parent
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MPLBACKEND": "Agg",
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.forks", self.preload],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        while not self._ready:
            self.listen(1.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        with self._process as process:  # closes its input, on which it ends its children
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def start(
        self,
        function: str,
        arguments: Mapping[str, Any],
        folder: Path,
        *,
        leave: bool = False,
        out: Path | None = None,
        err: Path | None = None,
    ) -> Child:
        """Fork a child that calls `function(**arguments)` in `folder` and ends with what it gives.

        Args:
            function: `module:name`; it returns an exit code.
            arguments: whatever JSON can carry.
            folder: the current directory of the child; its output is kept beside it.
            leave: what the child has started and leaves behind is left to the caller, not ended.
            out: what takes its standard output instead, a named pipe say.
            err: likewise.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        number = self._number
        out = out or folder.parent / f"{folder.name}.{number}.out"
        err = err or folder.parent / f"{folder.name}.{number}.err"
        order = {
            "function": function,
            "arguments": dict(arguments),
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
            "leave": leave,
        }
        out.touch()
        err.touch()
        child = self._coming = Child(self, 0, out, err)
        self.order(order)
        while not child.pid:
            self.listen(1.0)
        return child

    def order(self, order: Mapping[str, Any]) -> None:
        """Tell the server; signals go through it, for it alone knows whether a process is there."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def listen(self, seconds: float) -> None:
        """Take note of what the server says, waiting that long for it to say something."""
        assert self._process is not None
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], seconds)[0]:
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                raise RuntimeError("the fork server has ended; see above for why.")
            *lines, self._unread = (self._unread + read).split(b"\n")
            for line in lines:
                self._note(json.loads(line))
            seconds = 0

    def _note(self, news: Mapping[str, int]) -> None:
        if "ready" in news:
            self._ready = True
        elif "started" in news:
            assert self._coming is not None
            self._coming.pid = news["started"]
            self.children[self._coming.pid] = self._coming
        else:
            self.children.pop(news["ended"]).code = news["code"]


@contextmanager
def serving() -> Iterator[Server]:
    """The server of this process, which is started once; whatever it forked is ended."""
    if not _SHARED:
        server = Server()
        _SHARED.append(server.__enter__())
        atexit.register(server.__exit__, None, None, None)
    (server,) = _SHARED
    try:
        yield server
    finally:
        for child in list(server.children.values()):
            child.kill()


_SHARED: list[Server] = []


def _serve(preload: str) -> None:
    """Import, then fork a child for every line of standard input, until it ends."""
    import torch

    torch.set_num_threads(1)
    importlib.import_module(preload)
    wake, bell = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(bell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    living: dict[int, bool] = {}  # process -> whether to leave what it leaves behind
    unread = b""
    _say({"ready": 1})
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(living)
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                break
            *orders, unread = (unread + read).split(b"\n")
            for order in map(json.loads, orders):
                if "signal" in order:
                    _signal(order, living)
                else:
                    pid = _fork(order, (wake, bell))
                    living[pid] = order["leave"]
                    _say({"started": pid})
    for pid in living:
        _end(pid)
    while living:
        living.pop(os.wait()[0], None)


def _signal(order: Mapping[str, Any], living: Mapping[int, bool]) -> None:
    if order["to"] in living:  # until it is reaped, its number is nobody else's
        if order["group"]:
            _end(order["to"])
        else:
            os.kill(order["to"], order["signal"])


def _reap(living: dict[int, bool]) -> None:
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if not living.pop(pid):
            _end_group(pid)
        _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _end(pid: int) -> None:
    """End a child that was not reaped, with its group: it may not have made itself one yet."""
    _end_group(pid)
    os.kill(pid, signal.SIGKILL)


def _end_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _say(news: Mapping[str, int]) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


def _fork(order: Mapping[str, Any], bells: Sequence[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for bell in bells:
            os.close(bell)
        code = _child(order)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _child(order: Mapping[str, Any]) -> int:
    for handle, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_APPEND),
        (2, order["err"], os.O_WRONLY | os.O_APPEND),
    ):
        if handle == 2 and order["err"] == order["out"]:
            os.dup2(1, 2)  # a pipe's reader may have left: it cannot be opened again
            continue
        opened = os.open(path, flags)
        os.dup2(opened, handle)
        os.close(opened)
    os.chdir(order["folder"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        module, _, name = order["function"].partition(":")
        function: Callable[..., int] = getattr(importlib.import_module(module), name)
        code = function(**order["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _main() -> NoReturn:
    _serve(sys.argv[1])
    sys.exit(0)


if __name__ == "__main__":
    _main()
