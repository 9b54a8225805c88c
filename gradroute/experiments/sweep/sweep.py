"""A sweep from its file to its report: cells, those that are not finished, a back end, the end.

run_sweep      file -> cells -> local, slurm or ray -> report
stop_sweep     whoever runs cells has them save their steps, and ends
report_sweep   the report on every run that is measured
"""

from collections.abc import Mapping
from pathlib import Path

from gradroute.config.errors import Origin, validate_config
from gradroute.config.run_config import config_differences, load_config, several
from gradroute.config.sweep_file import RayConfig, SlurmConfig
from gradroute.config.yaml import Scalar
from gradroute.errors import ConfigError, DataError, GradrouteError, Interrupted
from gradroute.experiments.sweep.cells import Sweep, read_sweep
from gradroute.experiments.sweep.folder import Record, SweepFolder, record_of
from gradroute.experiments.sweep.local import run_locally
from gradroute.experiments.sweep.state import cells_text, finished
from gradroute.runs.lock import in_use, write_lock
from gradroute.system.files import clear_unfinished, remove, write_text
from gradroute.system.terminal import say

BACKENDS = ("local", "slurm", "ray")


def run_sweep(
    file: Path,
    root: Path,
    *,
    backend: str,
    jobs: int | None,
    retries: int,
    resources: Mapping[str, str],
) -> None:
    """Run every cell of a sweep that is not finished, and report on all of them.

    SLURM is given the cells, and the call returns.

    Args:
        file: Of the sweep.
        root: The folder of the runs; that of the sweep is in it.
        backend: One of `BACKENDS`.
        jobs: Cells at the same time; None for as many as the back end finds room for.
        retries: How often a cell is tried again that was killed or that the machine stopped.
        resources: What the command line gives a cell, by the names of `SlurmConfig` and
            `RayConfig`; it wins over the file.

    Raises:
        ConfigError: The file or a cell is wrong; nothing was started.
        MachineError: Another process sweeps in the folder, or the back end is not there.
        Interrupted: It was asked to stop.
        GradrouteError: Some cells failed; the others are finished.
    """
    sweep = read_sweep(file)
    folder = SweepFolder(root / sweep.name)
    record = record_of(sweep, folder)
    slurm, ray = resources_of(sweep, backend, resources)
    with write_lock(folder.path, "sweeping"):
        clear_unfinished(folder.own)
        remove(folder.stop)
        folder.write(sweep, record)
        cells = unfinished(sweep, folder, record)
        say(f"{folder.path}: {cells_text(len(record.cells))}, {len(cells)} to run.")
        failures: dict[str, Exception] = {}
        if cells and backend == "slurm":
            _submit(folder, cells, slurm, jobs, retries)
            return
        if cells and backend == "ray":
            from gradroute.experiments.sweep.on_ray import run_on_ray

            failures = run_on_ray(folder, record, cells, ray, jobs=jobs, retries=retries)
        elif cells:
            failures = run_locally(folder, record, cells, jobs=jobs, retries=retries)
        if record.evaluate:
            try:
                _report(folder, record, folder.path)
            except (ConfigError, DataError) as error:  # what was trained and measured stays
                say(f"{folder.path}: there is no report: {error}")
    if failures:
        raise _together(failures, folder, len(record.cells))


def unfinished(sweep: Sweep, folder: SweepFolder, record: Record) -> list[str]:
    """The names of the cells to run: also those that are to be measured in another way now."""
    changed = {
        cell.name
        for cell in sweep.cells
        if (begun := folder.run(cell.name).config).is_file()
        and config_differences(load_config(begun), cell.config)
    }
    return [
        cell.name
        for cell in record.cells
        if cell.name in changed or not finished(folder, cell, record.evaluate)
    ]


def resources_of(
    sweep: Sweep, backend: str, given: Mapping[str, str]
) -> tuple[SlurmConfig, RayConfig]:
    """What a cell gets: as the file has it, and as the command line has it over that.

    Raises:
        ConfigError: The back end knows no such resource, or not such a value.
    """
    slurm, ray = sweep.file.slurm, sweep.file.ray
    known = {"slurm": slurm, "ray": ray}.get(backend)
    fields = set() if known is None else set(type(known).model_fields)
    if unknown := sorted(set(given) - fields):
        raise ConfigError(
            f"--{unknown[0]} means nothing to --backend {backend}; leave it out, or give "
            f"--backend slurm{' or ray' if unknown[0] in RayConfig.model_fields else ''}."
        )
    if known is None or not given:
        return slurm, ray
    values = {name: Scalar(value) for name, value in given.items()}
    made, problems = validate_config(
        type(known), known.model_dump() | values, Origin("command line")
    )
    if made is None:
        raise ConfigError(several(problems))
    return (made, ray) if isinstance(made, SlurmConfig) else (slurm, made)


def stop_sweep(folder: SweepFolder) -> None:
    """Have every cell that runs save its step, and no other begin; returns at once.

    Raises:
        ConfigError: Nothing of the sweep runs.
        MachineError: SLURM refuses.
    """
    from gradroute.experiments.sweep.slurm import cancel

    folder.read()
    holder = in_use(folder.path)
    write_text(folder.stop, "")
    jobs = cancel(folder)
    if not holder and not jobs:
        remove(folder.stop)
        raise ConfigError(f"{folder.path}: nothing of this sweep runs.")
    told = [*([holder] if holder else []), *(f"job {job}" for job in jobs)]
    say(f"{folder.path}: asked to stop: {', '.join(told)}. gradroute sweep run goes on.")


def report_sweep(folder: SweepFolder, out: Path) -> None:
    """Compare the runs of a sweep that are measured so far, see `publish`.

    Raises:
        ConfigError: None is measured, or they cannot be compared.
        DataError: What was measured is damaged.
    """
    record = folder.read()
    if not _report(folder, record, out):
        raise ConfigError(f"{folder.path}: no run of this sweep is measured yet.")


def _report(folder: SweepFolder, record: Record, out: Path) -> bool:
    """Whether there was anything to report on."""
    from gradroute.report.publish import publish
    from gradroute.report.results.grid import GridCell

    cells = [
        GridCell(cell.values, tuple(run.name for run in cell.runs if run.measured))
        for cell in record.cells
    ]
    runs = [folder.run(name) for cell in cells for name in cell.runs]
    measured = [run for run in runs if run.results.is_file()]
    if not measured:
        return False
    if len(measured) < len(runs):
        say(f"{folder.path}: the report is on {len(measured)} of {len(runs)} runs, those measured.")
    publish(measured, out, page=True, grid=cells)
    return True


def _submit(
    folder: SweepFolder, cells: list[str], slurm: SlurmConfig, jobs: int | None, retries: int
) -> None:
    from gradroute.experiments.sweep.slurm import array_script, submit

    job = submit(folder, array_script(folder, cells, slurm, jobs=jobs, retries=retries))
    say(
        f"{folder.path}: {cells_text(len(cells))} submitted as job {job}. gradroute sweep status "
        f"{folder.path} shows them; gradroute sweep report {folder.path} compares them."
    )


def _together(failures: Mapping[str, Exception], folder: SweepFolder, cells: int) -> Exception:
    """One error for all cells that failed; of one kind where they all are."""
    kinds = {type(error) for error in failures.values()}
    kind = kinds.pop() if len(kinds) == 1 else GradrouteError
    if not issubclass(kind, GradrouteError):
        kind = GradrouteError
    lines = [f"{name}: {error}" for name, error in failures.items()]
    what = "were interrupted" if kind is Interrupted else "failed"
    return kind(
        "\n  ".join([f"{len(failures)} of {cells} cells {what}; {folder.log('CELL')}:", *lines])
    )
