"""Several runs at a time, each in a process of its own with one thread.

Runs are independent, so results do not depend on how many run at a time. The processes end with
this one: asked to stop, it asks them and waits until each has saved its step; killed, it is missed
by them, and they stop by themselves.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.config.libraries import Libraries
from gradroute.config.run_config import RunConfig
from gradroute.errors import GradrouteError, Interrupted, MachineError
from gradroute.runs.folder import RunFolder
from gradroute.system.memory import is_out_of_memory
from gradroute.system.secrets import without_hub_code
from gradroute.system.signals import interruptible

_WATCH = 1.0  # seconds between two looks at what runs
_DEVICES = "CUDA_VISIBLE_DEVICES"
_GRACE = 1.0  # seconds that an orphan has for its last lines, once its work has ended


def run_in_parallel(
    configs: Sequence[RunConfig],
    root: Path,
    jobs: int | None,
    *,
    if_exists: str,
    evaluate: bool,
    overrides: Sequence[str] = (),
    audit: bool = False,
) -> list[RunFolder]:
    """Train and evaluate every run, `jobs` at a time (the number of cores).

    Args:
        configs: the runs.
        root: the folder of the runs.
        jobs: processes at the same time; None for as many as there are cores.
        if_exists: what a run folder that is there means, see `train_run`.
        evaluate: measure each run as soon as it is trained.
        overrides: what may have changed, see `train_run`.
        audit: see `train_run`.

    Returns:
        The run folders, in the order of `configs`.

    Raises:
        GradrouteError: whatever stops a run; the others are stopped too, and go on with the same
            command.
    """
    at_once = min(len(configs), jobs or os.cpu_count() or 1)
    # Longest first: routed runs take a little longer than the others.
    waiting = sorted(configs, key=lambda config: config.routing == "none")
    cell = partial(
        _run_one,
        root=root,
        if_exists=if_exists,
        evaluate=evaluate,
        overrides=overrides,
        audit=audit,
    )
    tasks = [Task(config.run_name, partial(cell, config)) for config in waiting]

    def ended(name: str, error: Exception | None) -> bool:
        if error is not None:
            raise error
        return False

    run_tasks(tasks, at_once, ended=ended)
    return [RunFolder(root / config.run_name) for config in configs]


class Task(NamedTuple):
    """Something that a process of its own does.

    Attributes:
        name: What messages call it.
        work: It; a new interpreter must be able to import what is called.
    """

    name: str
    work: Callable[[], None]


def run_tasks(
    tasks: Sequence[Task],
    at_once: int,
    *,
    ended: Callable[[str, Exception | None], bool],
    watch: Callable[[], None] | None = None,
    devices: Sequence[str] = (),
) -> None:
    """Do every task, so many at a time, each in a process of its own.

    Args:
        tasks: in the order in which they begin.
        at_once: processes at the same time.
        ended: is called with the name of a task that has ended and its error, None for a good end;
            True has it done again. What it raises stops the others and is raised.
        watch: is called about once a second; what it raises stops everything likewise.
        devices: what CUDA_VISIBLE_DEVICES is set to in the first process of those at a time, the
            second, and so on; empty leaves it as it is.
    """
    waiting, free = list(tasks), list(range(at_once))
    working: dict[Any, tuple[SpawnProcess, Task, int]] = {}  # by the connection of its answer
    try:
        while waiting or working:
            while waiting and free:
                task, slot = waiting.pop(0), free.pop(0)
                with _on_device(devices[slot] if devices else None):
                    answer, worker = _start(*task)
                working[answer] = worker, task, slot
            for answer in wait(list(working), timeout=None if watch is None else _WATCH):
                worker, task, slot = working.pop(answer)
                free.append(slot)
                error = None
                try:
                    _finish(answer, worker)
                except Exception as raised:
                    error = raised
                if ended(task.name, error):
                    waiting.append(task)
            if watch is not None:
                watch()
    except BaseException:
        _stop([worker for worker, _, _ in working.values()])
        raise


@contextmanager
def _on_device(visible: str | None) -> Iterator[None]:
    """Processes that are started meanwhile see these CUDA devices alone; None: those of this one.

    (This process itself has looked already, or never does.)
    """
    before = os.environ.get(_DEVICES)
    if visible is not None:
        os.environ[_DEVICES] = visible
    try:
        yield
    finally:
        if before is not None:
            os.environ[_DEVICES] = before
        elif visible is not None:
            del os.environ[_DEVICES]


def _start(name: str, cell: Callable[[], None]) -> tuple[Any, SpawnProcess]:
    """A process that does a run, and the connection through which it says how that ended."""
    context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(theirs, name, cell), name=name, daemon=True)
    # A Ctrl-C reaches every process. A worker is born deaf to it: training listens for it by
    # itself, and everything else is stopped from here.
    listening = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker.start()
    finally:
        signal.signal(signal.SIGINT, listening)
    theirs.close()  # so that the end of the worker is the end of the connection
    return answer, worker


def _finish(answer: Any, worker: SpawnProcess) -> None:
    """The end of one run; raises what it raised."""
    try:
        told = json.loads(answer.recv_bytes())
    except EOFError as end:
        worker.join()
        raise MachineError(
            f"the process of run {worker.name} was killed (exit code {worker.exitcode}), perhaps "
            f"because memory ran out. The same command goes on; --jobs 1 "
            "needs the least memory."
        ) from end
    worker.join()
    if told:
        raise _error(*told)


def _stop(workers: Iterable[SpawnProcess]) -> None:
    """Ask every worker to end, and wait: training finishes its step and saves."""
    workers = list(workers)
    for worker in workers:
        worker.terminate()
    try:
        for worker in workers:
            worker.join()
    except BaseException:  # asked again, and not willing to wait
        for worker in workers:
            worker.kill()
        raise


def _work(answer: Any, name: str, cell: Callable[[], None]) -> None:
    """What a worker does: one run, and word of how it ended."""
    ended = threading.Event()
    threading.Thread(target=_follow_parent, args=(ended,), daemon=True).start()
    told: list[str] = []
    try:
        with interruptible():
            cell()
    except KeyboardInterrupt:
        told = _error_texts(Interrupted(f"{name}: interrupted. The same command goes on."))
    except Exception as error:
        told = _error_texts(error)
    with suppress(OSError):  # nobody may be there to hear it
        answer.send_bytes(json.dumps(told).encode())
    ended.set()


def _follow_parent(ended: threading.Event) -> None:
    """End with the parent: a worker that it can no longer stop is stopped from here."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    ended.wait()
    time.sleep(_GRACE)
    os._exit(Interrupted.exit_code)


def _run_one(
    config: RunConfig,
    root: Path,
    if_exists: str,
    evaluate: bool,
    overrides: Sequence[str],
    audit: bool,
) -> None:
    without_hub_code()  # this is a process of its own
    with Libraries.of(config):
        import torch

        from gradroute.run import evaluate_run, train_run

    torch.set_num_threads(1)

    folder = train_run(
        config, root, if_exists=if_exists, bar=False, overrides=overrides, audit=audit
    )
    if evaluate:
        evaluate_run(folder)


def _error_texts(error: Exception) -> list[str]:
    """An error as plain texts: the name of its class, its message and its traceback."""
    kind, message = type(error).__name__, str(error)
    if isinstance(error, OSError | MemoryError) or is_out_of_memory(error):
        message = f"the operating system reports an error: {message or 'out of memory'}."
        kind = "MachineError"
    return [kind, message, "".join(traceback.format_exception(error))]


def _error(kind: str, message: str, told: str) -> Exception:
    """The inverse of `_error_texts`; an error that is not one of ours is a fault of the program."""
    ours = {one.__name__: one for one in GradrouteError.__subclasses__()}
    error = ours[kind](message) if kind in ours else RuntimeError(f"{kind}: {message}")
    error.add_note(f"\nin the process of the run:\n{told}")
    return error
