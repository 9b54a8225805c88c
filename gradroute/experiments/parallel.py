"""Several runs at a time, each in a process of its own with one thread.

Runs are independent, so results do not depend on how many run at a time. The processes are forked
from a server that has imported what runs need (`preloaded`), where that is safe; elsewhere each is
a new interpreter. They end with this one: asked to stop, it asks them and waits until each has
saved its step; killed, it is missed by them, and they stop by themselves.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradroute.config.libraries import NEEDS, Libraries, holds_plain_numbers
from gradroute.config.run_config import RunConfig
from gradroute.data.behaviors import get_behaviors
from gradroute.errors import GradrouteError, Interrupted, MachineError
from gradroute.runs.folder import RunFolder
from gradroute.system.memory import is_out_of_memory
from gradroute.system.secrets import without_hub_code
from gradroute.system.signals import interruptible
from gradroute.system.terminal import say

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess, SpawnProcess  # not on every system

    _Worker = SpawnProcess | ForkServerProcess

_WATCH = 1.0  # seconds between two looks at what runs
_DEVICES = "CUDA_VISIBLE_DEVICES"
_PRELOADED = "gradroute.experiments.preloaded"
_BASES, _DRAWS = 1, 8  # that the process which others are forked from holds at most
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}
"""Libraries that start threads as they are imported, or as they load weights, must not in a process
that forks."""
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

    To evaluate a run is a task of its own, behind all trainings, so that no core is idle while the
    last run is trained and evaluated.

    Args:
        configs: the runs.
        root: the folder of the runs.
        jobs: processes at the same time; None for as many as there are cores.
        if_exists: what a run folder that is there means, see `train_run`.
        evaluate: measure each run once it is trained.
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
    train = partial(_train_one, root=root, if_exists=if_exists, overrides=overrides, audit=audit)
    tasks = [
        Task(
            config.run_name,
            partial(train, config),
            Task(config.run_name, partial(_evaluate_one, config, root)) if evaluate else None,
        )
        for config in waiting
    ]

    def ended(name: str, error: Exception | None) -> bool:
        if error is not None:
            raise error
        return False

    run_tasks(tasks, at_once, ended=ended, forked=for_forks(configs))
    return [RunFolder(root / config.run_name) for config in configs]


class Task(NamedTuple):
    """Something that a process of its own does.

    Attributes:
        name: What messages call it.
        work: It; a new interpreter must be able to import what is called.
        then: What waits behind all other tasks once this one has ended well.
    """

    name: str
    work: Callable[[], None]
    then: "Task | None" = None


def run_tasks(
    tasks: Sequence[Task],
    at_once: int,
    *,
    ended: Callable[[str, Exception | None], bool],
    watch: Callable[[], None] | None = None,
    devices: Sequence[str] = (),
    forked: Mapping[str, Any] | None = None,
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
        forked: fork the processes from one that has imported what runs need and has this at hand
            besides, see `for_forks`; None starts each by itself.
    """
    if forked is not None:
        _start_server(forked)
    waiting, free = list(tasks), list(range(at_once))
    working: dict[Any, tuple[_Worker, Task, int]] = {}  # by the connection of its answer
    try:
        while waiting or working:
            while waiting and free:
                task, slot = waiting.pop(0), free.pop(0)
                with _environment({_DEVICES: devices[slot]} if devices else {}):
                    answer, worker = _start(task.name, task.work, forked=forked is not None)
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
                elif error is None and task.then is not None:
                    waiting.append(task.then)
            if watch is not None:
                watch()
    except BaseException:
        _stop([worker for worker, _, _ in working.values()])
        raise


def can_fork(configs: Sequence[RunConfig]) -> bool:
    """Whether processes that do these runs may be forked from one that has imported everything.

    Where not, a line says why: the driver of a GPU does not survive a fork, nor do libraries of
    macOS; Windows has none; and what was imported without bitsandbytes cannot get it later.
    """
    import torch

    why = None
    if sys.platform != "linux":
        why = "this system"
    elif torch.cuda.is_available():
        why = "a GPU"
    elif not all(holds_plain_numbers(config) for config in configs):
        why = "a base that may hold its weights in few bits"
    if why is not None:
        say(f"with {why} processes are not forked: each run imports its libraries by itself.")
    return why is None


def for_forks(configs: Sequence[RunConfig]) -> dict[str, Any] | None:
    """What the process that these runs are forked from has at hand; None where they cannot be."""
    return common_needs(configs) if can_fork(configs) else None


def common_needs(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """What several of these runs load or draw alike: names of bases, draws of embedded examples."""
    plain = [c.model for c in configs if c.start_adapter is None and c.gguf_file is None]
    drawn = [draw for config in configs for draw in _draws(config)]
    bases, examples = (
        [need for need, times in Counter(found).items() if times > 1] for found in (plain, drawn)
    )
    return {"bases": bases[:_BASES], "draws": examples[:_DRAWS]}


def _draws(config: RunConfig) -> list[tuple[str, str, int, int]]:
    """What a run draws from the embedded corpus, as the arguments of `embedded.drawn`."""
    if config.data.path is not None:
        return []
    corpus = next(iter(get_behaviors(config.behaviors).values())).corpus
    return [
        (corpus, "tune", config.data.train_examples, config.seed),
        (corpus, "test", config.evaluate.embedded_examples, 0),
    ]


def _start_server(needs: Mapping[str, Any]) -> None:
    """Start what processes are forked from, unless it runs; it ends with this process."""
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([_PRELOADED])
    # It imports before it is told this process's path (Python 3.11 to 3.13 never tell it), and a
    # folder of the same name where we happen to be must not come first.
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    given = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", NEEDS: json.dumps(needs)}
    with _environment({**_ONE_THREAD, **given}), _deaf():
        forkserver.ensure_running()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started meanwhile have these variables, too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started meanwhile do not hear a Ctrl-C, which reaches every process.

    Training listens for it by itself, and everything else is stopped from here.
    """
    listening = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, listening)


def _start(name: str, cell: Callable[[], None], *, forked: bool = False) -> "tuple[Any, _Worker]":
    """A process that does a run, and the connection through which it says how that ended."""
    if forked:
        context = multiprocessing.get_context("forkserver")
    else:
        context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe(duplex=False)
    given = (theirs, name, cell, dict(os.environ))
    worker = context.Process(target=_work, args=given, name=name, daemon=True)
    # The server was born deaf; to start a process takes as long as it takes to import everything.
    with nullcontext() if forked else _deaf():
        worker.start()
    theirs.close()  # so that the end of the worker is the end of the connection
    return answer, worker


def _finish(answer: Any, worker: "_Worker") -> None:
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


def _stop(workers: "Iterable[_Worker]") -> None:
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


def _work(answer: Any, name: str, cell: Callable[[], None], environment: Mapping[str, str]) -> None:
    """What a worker does: one run, and word of how it ended."""
    os.environ.clear()  # a server keeps that of when it was started
    os.environ.update(environment)
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


def _train_one(
    config: RunConfig, root: Path, if_exists: str, overrides: Sequence[str], audit: bool
) -> None:
    with _libraries(config):
        from gradroute.run import train_run

    train_run(config, root, if_exists=if_exists, bar=False, overrides=overrides, audit=audit)


def _evaluate_one(config: RunConfig, root: Path) -> None:
    with _libraries(config):
        from gradroute.run import evaluate_run

    evaluate_run(RunFolder(root / config.run_name))


@contextmanager
def _libraries(config: RunConfig) -> Iterator[None]:
    """What is imported here is imported for a run in a process of its own, which has one thread."""
    without_hub_code()
    with Libraries.of(config):
        import torch

        yield
    torch.set_num_threads(1)


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
