"""Cells on Ray: a trial of Ray Tune each, which runs the cell's command and gives its exit code.

What a cell has done is in its run folder, so nothing is restored from Ray: a sweep whose driver
died is started again, and finished cells are no trials any more. The cell is a process of its own,
since training hears signals in a main thread alone, and a trial is none. It ends with its trial.
"""

import logging
import math
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gradroute.config.sweep_file import RayConfig
from gradroute.errors import Interrupted, MachineError
from gradroute.experiments.sweep.folder import Record, SweepFolder
from gradroute.experiments.sweep.one_cell import failure_of
from gradroute.experiments.sweep.state import cell_states, summary
from gradroute.system.files import remove, write_text
from gradroute.system.signals import interruptible
from gradroute.system.terminal import first_line, say

_STARTS = 3
_LOOK = 0.5  # seconds between two looks at a cell's process and at a request to stop
_TOLD = 30.0  # seconds between two lines on all cells
_MACHINE = MachineError.exit_code


def run_on_ray(
    folder: SweepFolder,
    record: Record,
    cells: Sequence[str],
    settings: RayConfig,
    *,
    jobs: int | None,
    retries: int,
) -> dict[str, Exception]:
    """Run cells until each is finished or has failed; see `run_locally`.

    Args:
        folder: Of the sweep; on a cluster, on a disk that all its machines have.
        record: Of the sweep.
        cells: Names of those to run.
        settings: Resources of a cell, and the cluster.
        jobs: Cells at the same time; None for as many as Ray has resources for.
        retries: How often a cell is tried again that was killed or that the machine stopped.

    Returns:
        What stopped each cell that is not finished, by name.

    Raises:
        MachineError: Ray is not installed, or does not start.
        Interrupted: The sweep was asked to stop; every cell has saved its step.
    """
    os.environ.update(_environment(settings))  # read when ray is imported, and by its processes
    try:
        from ray import tune
    except ImportError as error:
        raise MachineError(
            f"--backend ray needs {error.name}: pip install 'gradroute[ray]'."
        ) from error
    with _ray(settings):
        tuner = _tuner(tune, folder, record, cells, settings, jobs=jobs, retries=retries)
        results = _fit(tuner, folder)
        codes: dict[str, int] = {}
        for result in results:
            if result.metrics and "code" in result.metrics:
                codes[str(result.metrics["cell"])] = int(result.metrics["code"])
    if folder.stop.exists():
        raise Interrupted(f"{folder.path}: stopped as asked; gradroute sweep run goes on.")
    # A trial without an answer was killed with its worker.
    ended = {cell: codes.get(cell, -signal.SIGKILL) for cell in cells}
    return {cell: failure_of(folder, cell, code) for cell, code in ended.items() if code}


def _tuner(
    tune: Any,
    folder: SweepFolder,
    record: Record,
    cells: Sequence[str],
    settings: RayConfig,
    *,
    jobs: int | None,
    retries: int,
) -> Any:
    """A trial of Ray Tune for each cell; arguments as for `run_on_ray`."""
    storage = folder.path.resolve() / ".sweep" / "ray"
    remove(storage)  # of a driver that died
    given = {
        "folder": str(folder.path.resolve()),
        "cwd": str(Path.cwd()),
        "retries": retries,
        "cell": tune.grid_search(list(cells)),
    }
    return tune.Tuner(
        tune.with_resources(_trial, {"cpu": settings.cpus, "gpu": settings.gpus}),
        param_space=given,
        tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
        run_config=tune.RunConfig(
            storage_path=str(storage),
            name="trials",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[_told_now_and_then(folder, record)],
        ),
    )


def _environment(settings: RayConfig) -> dict[str, str]:
    """Settings of Ray that it takes from the environment alone."""
    common = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, none seen
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    if settings.address:
        return common
    return common | {
        # Ray listens on the loopback alone, as it does by itself on the systems that this is named
        # for. (127.0.0.1 as the node's address is replaced by the machine's own.)
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A token of this cluster alone; without one Ray leaves a file of it in the home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@contextmanager
def _ray(settings: RayConfig) -> Iterator[None]:
    """A Ray cluster: the one that is named, or one on this machine that ends with the context.

    Its own processes listen on the loopback alone, and end with this one however that ends.

    Raises:
        MachineError: It does not start, or has too little for one cell.
    """
    import ray

    with TemporaryDirectory(prefix="gradroute-ray-") as scratch:
        _begin(settings, scratch)
        try:
            have = ray.cluster_resources()
            for name, wanted in (("CPU", settings.cpus), ("GPU", settings.gpus)):
                if wanted > have.get(name, 0.0):
                    raise MachineError(
                        f"a cell needs {wanted:g} {name}, and Ray has {have.get(name, 0.0):g}; "
                        "lower ray in the sweep's file."
                    )
            yield
        finally:
            ray.shutdown()


def _begin(settings: RayConfig, scratch: str) -> None:
    """Start Ray, or join it; a busy machine takes longer than the 30 seconds that Ray waits.

    Raises:
        MachineError: It does not start.
    """
    import ray

    for attempt in range(_STARTS):
        try:
            if settings.address:
                ray.init(settings.address, log_to_driver=False, logging_level=logging.ERROR)
                return
            ray.init(
                "local",  # whatever RAY_ADDRESS says
                num_cpus=max(os.cpu_count() or 1, math.ceil(settings.cpus)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=scratch,
            )
            return
        except Exception as error:  # a start that takes too long is an Exception and nothing more
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise MachineError(
                    f"Ray does not start: {first_line(error).rstrip('.')}."
                ) from error


def _fit(tuner: Any, folder: SweepFolder) -> Any:
    """All trials; a signal has every cell save its step, as `gradroute sweep stop` does.

    Ray takes SIGTERM, and Tune SIGINT and SIGUSR1, to end at once. So the handlers are put back
    once Ray has begun, and Tune works in another thread, where it sets none.
    """
    done: list[Any] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def fit() -> None:
        try:
            done.append(tuner.fit())
        except BaseException as error:
            errors.append(error)
        ended.set()

    with interruptible():
        try:
            threading.Thread(target=fit, daemon=True).start()
            # Not `join`: before Python 3.13 one that a signal interrupts takes it for ended.
            while not ended.wait(_LOOK):
                pass
        except KeyboardInterrupt:
            write_text(folder.stop, "")
            ended.wait()  # asked again, it is not waited for
            raise
    for error in errors:
        raise MachineError(
            f"Ray Tune ends with an error: {first_line(error).rstrip('.')}."
        ) from error
    return done[0]


def _trial(given: Mapping[str, Any]) -> dict[str, Any]:
    """One cell, in a worker of Ray: its command until it ends, tried again where that may help."""
    folder = SweepFolder(Path(given["folder"]))
    code = 0
    for _ in range(given["retries"] + 1):
        code = _cell_process(folder, given["cell"], given["cwd"])
        if 0 <= code <= 128 and code != _MACHINE:
            break
    return {"cell": given["cell"], "code": code}


def _cell_process(folder: SweepFolder, name: str, cwd: str) -> int:
    """The exit code of a cell's command, which is asked to stop where the sweep is."""
    if folder.stop.exists():
        return Interrupted.exit_code
    command = [sys.executable, "-m", "gradroute", "sweep", "cell", str(folder.path), name]
    log = folder.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        # The cell is asked to stop when its standard input ends: with this process, however that
        # ends, and with this block.
        process = subprocess.Popen(
            [*command, "--with-parent"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
        )
        with process:
            while process.poll() is None and not folder.stop.exists():
                time.sleep(_LOOK)
    return process.returncode


def _told_now_and_then(folder: SweepFolder, record: Record) -> Any:
    """What has Ray Tune say now and then how far the cells are."""
    from ray import tune

    class Told(tune.Callback):
        last = time.monotonic()

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if time.monotonic() > self.last + _TOLD:
                self.last = time.monotonic()
                at_once = sum(trial.status == "RUNNING" for trial in trials)
                say(summary(cell_states(folder, record), max(1, at_once)))

    return Told()
