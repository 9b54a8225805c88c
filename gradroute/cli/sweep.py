"""`sweep run`, `sweep status`, `sweep stop`, `sweep report`, `sweep cell`."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.cli.arguments import Verbs, add_verb, positive, whole
from gradroute.errors import ConfigError

if TYPE_CHECKING:
    from gradroute.experiments.sweep.folder import SweepFolder

_RESOURCES = {
    "partition": "slurm: partition",
    "time": "slurm: longest time of a job, such as 4:00:00",
    "mem": "slurm: memory, such as 16G",
    "cpus": "slurm, ray: cores",
    "gpus": "slurm, ray: GPUs",
    "address": "ray: of a cluster that runs",
}


def add(verbs: Verbs) -> None:
    """Add the verb `sweep` with verbs of its own."""
    parser = verbs.add_parser("sweep", help="run a grid of runs here, on SLURM or on Ray")
    own = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_run(own)
    status = add_verb(
        own,
        "status",
        "show how far every cell of a sweep is",
        _status,
        ["gradroute sweep status labels.yaml", "gradroute sweep status runs/labels --watch 5"],
    )
    _takes_sweep(status)
    status.add_argument(
        "--watch", type=positive, metavar="SECONDS", help="show it again so often, until all ended"
    )
    stop = add_verb(
        own,
        "stop",
        "have every running cell of a sweep save its step, and end the sweep",
        _stop,
        ["gradroute sweep stop runs/labels"],
    )
    _takes_sweep(stop)
    report = add_verb(
        own,
        "report",
        "report on the runs of a sweep that are measured, with rate and gain kept over each axis",
        _report,
        ["gradroute sweep report runs/labels --out comparison"],
        out=True,
    )
    _takes_sweep(report)
    cell = add_verb(
        own,
        "cell",
        "run one cell of a sweep that was started: what every back end calls",
        _cell,
        ["gradroute sweep cell runs/labels labeled_fraction_0.02-s0"],
        runs_folder=False,
    )
    cell.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of the sweep")
    cell.add_argument("cell", metavar="CELL", help="the name of the cell")
    cell.add_argument(
        "--with-parent", action="store_true", help="stop when standard input is closed"
    )


def _add_run(verbs: Verbs) -> None:
    run = add_verb(
        verbs,
        "run",
        "run every cell of a sweep that is not finished, then report on all (the word run may be "
        "left out)",
        _run,
        [
            "gradroute sweep labels.yaml --dry-run",
            "gradroute sweep run labels.yaml --jobs 2 --retries 1",
            "gradroute sweep run labels.yaml --backend slurm --gpus 1 --time 4:00:00",
        ],
    )
    run.add_argument("file", type=Path, metavar="FILE", help="the YAML file of the sweep")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="show the cells, what is there, and what they cost (with slurm its script), and stop",
    )
    run.add_argument("--backend", choices=("local", "slurm", "ray"), default="local")
    run.add_argument(
        "--jobs", type=positive, help="cells at the same time (local: GPUs, or else cores)"
    )
    run.add_argument(
        "--retries",
        type=whole,
        default=0,
        help="try a cell that was killed, or that the machine stopped, so often again (0)",
    )
    for name, told in _RESOURCES.items():
        run.add_argument(f"--{name}", help=f"{told}, for a cell; wins over the file")


def _takes_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweep", type=Path, metavar="SWEEP", help="a sweep's folder, its file, or its name"
    )


def _run(options: argparse.Namespace) -> None:
    given = vars(options)
    resources = {name: given[name] for name in _RESOURCES if given[name] is not None}
    if options.dry_run:
        from gradroute.preflight.sweep_plan import plan_text

        print(
            plan_text(
                options.file,
                options.runs,
                backend=options.backend,
                jobs=options.jobs,
                retries=options.retries,
                resources=resources,
            )
        )
        return
    from gradroute.experiments.sweep.sweep import run_sweep

    run_sweep(
        options.file,
        options.runs,
        backend=options.backend,
        jobs=options.jobs,
        retries=options.retries,
        resources=resources,
    )


def _status(options: argparse.Namespace) -> None:
    from gradroute.experiments.sweep.state import cell_states, status_text
    from gradroute.system.terminal import safe_text

    folder = _folder(options)
    while True:
        record = folder.read()
        states = cell_states(folder, record)
        running = sum(one.state == "running" for one in states)
        print(safe_text(status_text(states, max(1, running))), flush=True)
        if not options.watch or all(one.state in ("finished", "failed") for one in states):
            return
        time.sleep(options.watch)


def _stop(options: argparse.Namespace) -> None:
    from gradroute.experiments.sweep.sweep import stop_sweep

    stop_sweep(_folder(options))


def _report(options: argparse.Namespace) -> None:
    from gradroute.experiments.sweep.sweep import report_sweep

    folder = _folder(options)
    report_sweep(folder, options.out or folder.path)


def _cell(options: argparse.Namespace) -> None:
    from gradroute.experiments.sweep.folder import SweepFolder
    from gradroute.experiments.sweep.one_cell import run_cell

    folder = SweepFolder(options.folder)
    record = folder.read()
    names = [cell.name for cell in record.cells]
    if options.cell not in names:
        raise ConfigError(f"{folder.path} has no cell {options.cell}; it has {', '.join(names)}.")
    if options.with_parent:
        _end_with_input()
    run_cell(folder, options.cell, evaluate=record.evaluate, log=False)


def _end_with_input() -> None:
    """Ask this process to stop once its standard input ends: whoever started it is gone."""
    import signal
    import threading

    def follow() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


def _folder(options: argparse.Namespace) -> "SweepFolder":
    """The folder of the sweep that was named."""
    from gradroute.experiments.sweep.folder import SweepFolder

    given: Path = options.sweep
    if given.is_file():
        from gradroute.config.sweep_file import read_sweep_file

        return SweepFolder(options.runs / (read_sweep_file(given).file.name or given.stem))
    return SweepFolder(given if given.is_dir() else options.runs / given)
