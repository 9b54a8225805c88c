"""A sweep before it is started: its cells, what is there of them, what they take.

Estimates are those of `validate`, which runs real steps of a cell. Cells that differ only in fields
that cost nothing (`FREE_OF_COST`) take the same, so one of them is looked at for all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradroute.config.run_config import FREE_OF_COST, RunConfig, field_of, several
from gradroute.errors import GradrouteError
from gradroute.experiments.sweep.cells import Cell, read_sweep
from gradroute.experiments.sweep.folder import SweepFolder, record_of
from gradroute.experiments.sweep.state import CellState, cell_states, cells_text, duration
from gradroute.experiments.sweep.sweep import resources_of, unfinished
from gradroute.preflight.validation import validate
from gradroute.report.render.table_cells import aligned
from gradroute.system.files import format_bytes, free_bytes, nearest_existing


def plan_text(
    file: Path,
    root: Path,
    *,
    backend: str,
    jobs: int | None,
    retries: int,
    resources: Mapping[str, str],
) -> str:
    """What `run_sweep` would do, as text; nothing is written.

    Args:
        file: Of the sweep.
        root: The folder of the runs.
        backend: See `run_sweep`.
        jobs: See `run_sweep`.
        retries: See `run_sweep`.
        resources: See `run_sweep`.

    Raises:
        GradrouteError: Whatever would stop the sweep or a cell: configuration, data, model, disk.
    """
    sweep = read_sweep(file)
    folder = SweepFolder(root / sweep.name)
    record = record_of(sweep, folder)
    slurm, _ = resources_of(sweep, backend, resources)
    costs = _costs(sweep.cells, folder)
    states = cell_states(folder, record)
    shared = _shared(sweep.cells, costs) if backend == "local" else 0
    total = _total(states, costs, folder, jobs, shared)
    text = [_table(sweep.cells, states, costs), total]
    if backend == "slurm" and (cells := unfinished(sweep, folder, record)):
        from gradroute.experiments.sweep.slurm import array_script

        text += ["", array_script(folder, cells, slurm, jobs=jobs, retries=retries)]
    return "\n".join(text)


def _costs(cells: tuple[Cell, ...], folder: SweepFolder) -> list[dict[str, Any]]:
    """The estimate of every cell, with its controls."""
    import torch

    torch.set_num_threads(1)  # as a cell runs
    known: dict[str, dict[str, Any]] = {}
    problems: dict[str, GradrouteError] = {}
    found = []
    for cell in cells:
        key = _same_cost(cell.config)
        if key not in known:
            seen = validate(cell.config, folder.path)
            problems |= {f"{cell.name}: {problem}": problem for problem in seen.problems}
            known[key] = seen.facts.get("estimate", {})
        found.append(known[key])
    if problems:
        raise type(next(iter(problems.values())))(several(list(problems)))
    return found


def _same_cost(config: RunConfig) -> str:
    values = config.values_by_key
    return json.dumps({k: str(v) for k, v in values.items() if field_of(k) not in FREE_OF_COST})


def _table(cells: tuple[Cell, ...], states: list[CellState], costs: list[dict[str, Any]]) -> str:
    rows = [["cell", "there", "steps", "runs", "training", "disk"]]
    for cell, state, cost in zip(cells, states, costs, strict=True):
        there = f"{state.state} ({state.step})" if state.step < state.steps else state.state
        rows.append(
            [
                cell.name,
                state.state if not state.step else there,
                str(state.steps),
                str(cost["runs"]),
                duration(3600 * cost["hours"]),
                format_bytes(cost["disk"]),
            ]
        )
    return aligned(rows, [True, True, False, False, False, False])


def _shared(cells: tuple[Cell, ...], costs: list[dict[str, Any]]) -> int:
    """Bytes of the hidden states that the runs of a local sweep share in training."""
    runs = sum(cost["runs"] for cost in costs)
    most = sum(cost["runs"] * cost["shared"] for cost in costs) if runs > 1 else 0
    return min(most, int(2**30 * max(cell.config.train.reuse_gib for cell in cells)))


def _total(
    states: list[CellState],
    costs: list[dict[str, Any]],
    folder: SweepFolder,
    jobs: int | None,
    shared: int,
) -> str:
    """What is left of all cells together, and whether the disk has room for it."""
    left = sum(
        3600 * cost["hours"] * (1 - state.step / state.steps)
        for state, cost in zip(states, costs, strict=True)
    )
    absent = [
        cost["disk"] for state, cost in zip(states, costs, strict=True) if state.state != "finished"
    ]
    memory = [cost["memory"] for cost in costs if cost["memory"] is not None]
    side_by_side = f", {duration(left / jobs)} with --jobs {jobs}" if jobs else ""
    lines = [
        f"{cells_text(len(states))}, {len(absent)} to run: about {duration(left)} of training on "
        f"one core or GPU{side_by_side}; loading, measuring and reporting come on top."
    ]
    needed, free = sum(absent), free_bytes(nearest_existing(folder.path))
    room = "" if free is None else f" of {format_bytes(free)} free"
    lines.append(f"disk: at most {format_bytes(needed)}{room} in {folder.path}.")
    if shared:
        lines.append(
            f"besides, about {format_bytes(shared)} of hidden states that the cells share, as "
            "far as there is room."
        )
    if memory:
        lines.append(f"memory: at most {format_bytes(max(memory))} for each cell that runs.")
    if free is not None and needed > free:
        lines.append("The disk has too little room for all of them.")
    lines.append("Nothing was written. gradroute sweep run starts it.")
    return "\n".join(lines)
