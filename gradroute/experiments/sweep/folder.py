"""The folder of a sweep: its cells' run folders, and what the sweep itself keeps beside them.

runs/<sweep>/<cell>/           the run of a cell; controls beside it as <cell>-<control>/
runs/<sweep>/.sweep/           sweep.json (the cells), cells/<cell>.yaml (their configurations),
                               logs/<cell>.log, failed/<cell>.json, stop, array.sh, slurm.json

Whatever runs a cell needs this folder alone, not the file of the sweep or the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.config.run_config import (
    FREE_ON_RESUME,
    RunConfig,
    config_differences,
    dump_config,
    load_config,
    several,
)
from gradroute.errors import ConfigError, DataError
from gradroute.experiments.sweep.cells import Cell, Sweep
from gradroute.runs.folder import RunFolder
from gradroute.runs.resume import allowed_changes
from gradroute.system.files import read_json, write_json, write_text

_SCHEMA = 1


class RunOfCell(NamedTuple):
    """A run that belongs to a cell: the cell's own, a control, or what a control is made of."""

    name: str
    steps: int
    measured: bool


@dataclass(frozen=True)
class RecordedCell:
    """A cell as the sweep's record has it; all that its state is read by.

    Attributes:
        name: Of the cell.
        values: Axis -> value, as text.
        seed: Of the run.
        runs: Of the cell, its own first.
        mode: In which its run ships.
    """

    name: str
    values: Mapping[str, str]
    seed: int
    runs: tuple[RunOfCell, ...]
    mode: str


@dataclass(frozen=True)
class Record:
    """What a sweep has written down of itself.

    Attributes:
        evaluate: Whether its runs are measured.
        axes: Their names, in order.
        cells: In order.
    """

    evaluate: bool
    axes: tuple[str, ...]
    cells: tuple[RecordedCell, ...]


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep; nothing is created until something is written."""

    path: Path

    @property
    def own(self) -> Path:
        """Where the sweep keeps what is its own."""
        return self.path / ".sweep"

    @property
    def stop(self) -> Path:
        """There while whoever runs cells of the sweep is asked to stop."""
        return self.own / "stop"

    def run(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / name)

    def cell(self, name: str) -> Path:
        """The configuration of a cell."""
        return self.own / "cells" / f"{name}.yaml"

    def log(self, name: str) -> Path:
        """What a cell says."""
        return self.own / "logs" / f"{name}.log"

    def failure(self, name: str) -> Path:
        """Why a cell failed when it was last tried."""
        return self.own / "failed" / f"{name}.json"

    def read(self) -> Record:
        """The record.

        Raises:
            ConfigError: There is none: no sweep was started here.
            DataError: It is damaged.
        """
        path = self.own / "sweep.json"
        if not path.is_file():
            raise ConfigError(
                f"{self.path} is no folder of a sweep: it has no .sweep/sweep.json. Start one: "
                "gradroute sweep run FILE."
            )
        try:
            found = read_json(path)
            cells = tuple(
                RecordedCell(**{**cell, "runs": tuple(RunOfCell(*run) for run in cell["runs"])})
                for cell in found["cells"]
            )
            return Record(bool(found["evaluate"]), tuple(found["axes"]), cells)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error!r}); gradroute sweep run FILE writes it again."
            ) from None

    def write(self, sweep: Sweep, record: Record) -> None:
        """Write the record and the configuration of every cell."""
        for cell in sweep.cells:
            write_text(self.cell(cell.name), dump_config(cell.config))
        write_json(self.own / "sweep.json", {"schema": _SCHEMA, **asdict(record)})


def record_of(sweep: Sweep, folder: SweepFolder) -> Record:
    """Every run of a sweep; nothing is written.

    Raises:
        ConfigError: A control cannot be made, or a run folder was begun with other settings.
    """
    cells, problems = [], dict[str, None]()
    for cell in sweep.cells:
        try:
            runs = _runs(cell, folder)
            for config, _ in runs:
                _check_begun(folder.run(config.run_name), config)
        except ConfigError as error:
            problems[str(error)] = None
            continue
        cells.append(
            RecordedCell(
                name=cell.name,
                values=dict(cell.values),
                seed=cell.config.seed,
                runs=tuple(
                    RunOfCell(config.run_name, config.train.max_steps, measured)
                    for config, measured in runs
                ),
                mode=_shipped(cell.config),
            )
        )
    if problems:
        raise ConfigError(several(list(problems)))
    return Record(sweep.file.evaluate, tuple(sweep.file.axes), tuple(cells))


def _shipped(config: RunConfig) -> str:
    from gradroute.routing.policy import shipped_mode

    mode = shipped_mode(tuple(config.adapters), tuple(config.behaviors))
    return "full" if mode is None else mode.name


def _runs(cell: Cell, folder: SweepFolder) -> Sequence[tuple[RunConfig, bool]]:
    """The runs of a cell, and whether each is measured."""
    if not cell.config.controls:
        return [(cell.config, True)]
    from gradroute.config.controls import BY_NAME
    from gradroute.experiments.controls import control_configs
    from gradroute.experiments.inoculation import inoculation_config

    controls = control_configs(cell.config, folder.path)
    runs = [(cell.config, True)]
    if any(BY_NAME[str(control.control)].start for control in controls):
        runs.append((inoculation_config(cell.config), False))
    return [*runs, *((control, True) for control in controls)]


def _check_begun(folder: RunFolder, config: RunConfig) -> None:
    """See that a run that is there was begun with these settings.

    Raises:
        ConfigError: It was begun with others; a table says what.
    """
    if folder.config.is_file():
        changes: Mapping[str, Any] = config_differences(load_config(folder.config), config)
        allowed_changes(folder, changes, (), free=FREE_ON_RESUME)
