"""From the file of a sweep to its cells: each an ordinary configuration, all checked at once.

A cell is a run with its controls. Its name is made of the values that tell it from the others, so
that the same values give the same run folder, whatever else is in the grid.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig, Setting, find_config, read_config, several
from gradroute.config.sections import Section
from gradroute.config.sweep_file import ReadSweep, SweepFile, read_sweep_file
from gradroute.config.types import from_flow, show
from gradroute.config.yaml import is_null, plain_value
from gradroute.errors import ConfigError

MOST = 1000
"""Cells of a sweep: as many tasks as SLURM gives an array by default."""
_ELSEWHERE = {
    "run_name": "it is made of the values of the axes",
    "seed": "give seeds: [0, 1, 2]",
    "controls": "give controls: [...] beside axes",
    "control": "give controls: [...] beside axes",
    "control_of": "give controls: [...] beside axes",
}
_LONGEST, _CUT = 64, 38  # characters of a run's name; those of a cell's name that was too long
_SHORT = 24


@dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Attributes:
        config: Of its run, with the controls that belong to it; `config.run_name` names the cell.
        values: Axis -> value, as text.
    """

    config: RunConfig
    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the cell, its run and the run's folder."""
        return self.config.run_name


@dataclass(frozen=True)
class Sweep:
    """A sweep that can be started.

    Attributes:
        name: Of the sweep and of its folder.
        file: What its file says.
        cells: In order: the first axis changes slowest, the seed fastest.
    """

    name: str
    file: SweepFile
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Value:
    """One value of an axis: its text, the settings it stands for, whether that is its name."""

    text: str
    settings: tuple[Setting, ...]
    named: bool


def read_sweep(path: Path) -> Sweep:
    """Read the file of a sweep and check every cell; nothing is written.

    Raises:
        ConfigError: The file, an axis or a cell cannot be used; a line for each thing.
    """
    read = read_sweep_file(path)
    name = read.file.name or path.stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"{read.source}: the sweep gets the name of its file, and {show(name)} is no name of a "
            "folder that is safe everywhere; give name: ..."
        )
    fixed = [Setting(key, value, read.place("set", key)) for key, value in read.file.set.items()]
    axes = {name: _values(read, name, axis) for name, axis in read.file.axes.items()}
    _check_keys(read, fixed, axes)
    recipe = find_config(read.file.recipe)
    cells, problems = [], dict[str, None]()
    for values, settings, parts in _combinations(read, axes):
        config, found = read_config(recipe, [*fixed, *settings])
        problems |= dict.fromkeys(found)
        if config is not None and not found:
            named = _name(parts, config, seeded=bool(read.file.seeds))
            cells.append(Cell(config.model_copy(update={"run_name": named}), values))
    if problems:
        raise ConfigError(several(list(problems)))
    _check_distinct(read.source, cells)
    return Sweep(name, read.file, tuple(cells))


def _values(read: ReadSweep, name: str, axis: Any) -> list[_Value]:
    """The values of an axis: of one key, or of several that change together."""
    axis = from_flow(axis)
    found = []
    for at, entry in axis.items() if isinstance(axis, dict) else enumerate(axis):
        place = read.place("axes", name, at)
        entry = from_flow(entry)
        # A mapping in a list is one value of several keys, unless the axis is a key that takes one.
        together = isinstance(axis, dict) or (isinstance(entry, dict) and not _is_field(name))
        if together:
            settings = tuple(
                Setting(key, value, read.place("axes", name, at, key))
                for key, value in entry.items()
            )
            text = at if isinstance(axis, dict) else "_".join(_text(v) for v in entry.values())
        else:
            settings, text = (Setting(name, entry, place),), _text(entry)
        named = isinstance(axis, dict) and _safe(str(text)) == text
        found.append(_Value(str(text), settings, named))
    return found


def _is_field(name: str) -> bool:
    """Whether an axis of this name is a key of the configuration that takes a mapping."""
    return name in ("behavior", "routing", "adapters", "data.columns", "data.label_map")


def _text(value: Any) -> str:
    """A value as a text: as it is written, a list or mapping as JSON."""
    if is_null(value):
        return "null"
    value = from_flow(value)
    return json.dumps(plain_value(value)) if isinstance(value, list | dict) else str(value)


def _check_keys(
    read: ReadSweep, fixed: Sequence[Setting], axes: Mapping[str, Sequence[_Value]]
) -> None:
    """Refuse keys that are given elsewhere, sections as a whole, and two axes with one key.

    Raises:
        ConfigError: A line for each.
    """
    problems = dict[str, None]()
    owners = {setting.key: "set" for setting in fixed}
    for setting in itertools.chain(fixed, *(v.settings for own in axes.values() for v in own)):
        if setting.key in _ELSEWHERE:
            problems[f"{setting.place}: {setting.key}: {_ELSEWHERE[setting.key]}."] = None
        field = RunConfig.model_fields.get(setting.key)
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, Section):
            problems[
                f"{setting.place}: {setting.key} is a section; give the keys below it, as in "
                f"{setting.key}.{next(iter(kind.model_fields))}: ..."
            ] = None
    for name, own in axes.items():
        keys = {setting.key: setting.place for value in own for setting in value.settings}
        for key, place in keys.items():
            for other, owner in owners.items():
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                    where = "under set" if owner == "set" else f"by the axis {owner}"
                    problems[f"{place}: {key} is also set {where}; keep one of them."] = None
        owners |= dict.fromkeys(keys, name)
    if problems:
        raise ConfigError(several(list(problems)))


def _combinations(
    read: ReadSweep, axes: Mapping[str, Sequence[_Value]]
) -> Iterator[tuple[dict[str, str], list[Setting], list[str]]]:
    """Of each cell the values, the settings and the parts of its name."""
    seeds = read.file.seeds or [None]
    count = len(seeds)
    for own in axes.values():
        count *= len(own)
    if count > MOST:
        raise ConfigError(
            f"{read.source}: {count:,} cells, and at most {MOST:,} can be in one sweep; leave out "
            "values, or make several files of it."
        )
    shown = _labels(list(axes))
    controls = read.file.controls
    own = [] if controls is None else [Setting("controls", controls, read.place("controls"))]
    for values in itertools.product(*axes.values()):
        texts = {name: value.text for name, value in zip(axes, values, strict=True)}
        settings = [setting for value in values for setting in value.settings]
        # A value with a name of its own says more than the name of its axis.
        parts = [
            value.text if value.named else f"{shown[name]}_{_safe(value.text)}"
            for name, value in zip(axes, values, strict=True)
        ]
        for seed in seeds:
            drawn = [] if seed is None else [Setting("seed", seed, read.place("seeds"))]
            yield texts, [*settings, *drawn, *own], parts


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Axis -> the end of its key that tells it from the other axes."""
    found = {}
    for name in names:
        parts = name.split(".")
        lengths = range(1, len(parts) + 1)
        ends = [".".join(parts[-length:]) for length in lengths]
        others = [other for other in names if other != name]
        found[name] = next(
            (end for end in ends if not any(f".{o}".endswith(f".{end}") for o in others)), name
        )
    return {name: _safe(end) for name, end in found.items()}


def _name(parts: Sequence[str], config: RunConfig, seeded: bool) -> str:
    """The name of a cell; one that leaves no room for its controls is cut, its hash behind it."""
    seed = f"s{config.seed}" if seeded else ""
    room = max((len(control) + 1 for control in config.controls or ()), default=0)
    stem = "-".join(parts)
    name = "-".join(part for part in (stem, seed) if part) or config.run_name
    if len(name) + room > _LONGEST:
        name = "-".join(part for part in (f"{stem[: _CUT - 7]}-{_hash(stem)}", seed) if part)
    return name


def _safe(text: str) -> str:
    """A text as part of a folder's name; the hash of one that had to be changed is behind it."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    return safe if safe == text and len(safe) <= _SHORT else f"{safe[:_SHORT]}_{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _check_distinct(source: str, cells: Sequence[Cell]) -> None:
    """Refuse two cells that are the same run, or whose folders would be the same.

    Raises:
        ConfigError: It names both.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        same = json.dumps(cell.config.model_dump() | {"run_name": ""}, sort_keys=False)
        for key in (same, cell.name.casefold()):
            if key in seen:
                raise ConfigError(
                    f"{source}: the cells {seen[key]} and {cell.name} are the same run; leave one "
                    "of the values out."
                )
            seen[key] = cell.name
