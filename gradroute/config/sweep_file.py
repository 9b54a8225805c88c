"""The file of a sweep: a recipe, what every cell changes in it, axes, seeds, and where it runs.

    SweepFile   recipe, set, axes, seeds, controls, evaluate, name
    ├── slurm   SlurmConfig
    └── ray     RayConfig

Read as a configuration is: strictly, with the line and the nearest key of whatever is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from gradroute.config.errors import Origin, validate_config
from gradroute.config.run_config import several
from gradroute.config.sections import Section
from gradroute.config.types import (
    Above0,
    Controls,
    Count,
    Flag,
    NonNegative,
    OptionalText,
    Positive,
    RunName,
    Seed,
    Text,
    from_flow,
    show,
)
from gradroute.config.yaml import KeyPath, is_null, read_yaml_file
from gradroute.errors import ConfigError


def _axis(value: Any) -> Any:
    """An axis as it stands in the file: a list of values, or names with what each one sets."""
    value = from_flow(value)
    if not isinstance(value, list | dict) or not value:
        raise ValueError(
            "a list of values, or names with the keys that each sets, as in "
            f"{{small: {{train.max_steps: 100}}}}, is needed, got {show(value)}."
        )
    entries = value.values() if isinstance(value, dict) else value
    mappings = [isinstance(from_flow(entry), dict) for entry in entries]
    if isinstance(value, dict) and not all(mappings):
        raise ValueError(
            "below each name, keys with values are needed, as in {train.max_steps: 100}."
        )
    return value


def _list(value: Any) -> Any:
    value = from_flow(value)
    return [value] if not isinstance(value, list) and not is_null(value) else value


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice.")
    return seeds


def _sbatch_line(value: str) -> str:
    if not value.startswith("--"):
        raise ValueError(f"an option of sbatch, as in --account=lab, is needed, got {show(value)}.")
    return value


Axis = Annotated[Any, BeforeValidator(_axis)]
Seeds = Annotated[list[Seed], BeforeValidator(_list), AfterValidator(_distinct)]
Texts = Annotated[list[Text], BeforeValidator(_list)]
SbatchLines = Annotated[list[Annotated[Text, AfterValidator(_sbatch_line)]], BeforeValidator(_list)]


class SlurmConfig(Section):
    """What one cell gets from SLURM; options of the command line win."""

    partition: OptionalText = None
    """Partition; null = the cluster's default."""
    time: OptionalText = None
    """Longest time of a cell, such as 4:00:00; a cell that needs more goes on in a new job."""
    gpus: Count = 0
    """GPUs."""
    cpus: Positive = 1
    """Cores."""
    mem: OptionalText = None
    """Memory, such as 16G; null = the cluster's default."""
    lines: SbatchLines = Field(default_factory=list)
    """Further options of sbatch, each a line such as --account=lab."""
    setup: Texts = Field(default_factory=list)
    """Shell commands before the cell, such as source .venv/bin/activate."""


class RayConfig(Section):
    """What one cell gets from Ray; options of the command line win."""

    cpus: Above0 = 1.0
    """Cores."""
    gpus: NonNegative = 0.0
    """GPUs; 0.5 puts two cells on one."""
    address: OptionalText = None
    """Address of a Ray cluster that runs; null = one on this machine, for as long as the sweep."""


class SweepFile(Section):
    """A grid of runs: every combination of the axes' values and the seeds is a cell."""

    recipe: Text
    """The recipe: a YAML file, or the name of a shipped one."""
    name: RunName | None = None
    """Name of the sweep and of its folder; null = the file's own, without its ending."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key -> value, for every cell."""
    axes: dict[str, Axis] = Field(default_factory=dict)
    """Dotted key -> values; or a name -> {name of a value: {key: value, ...}}, for keys that
    change together."""
    seeds: Seeds = Field(default_factory=list)
    """Seeds of every combination; none = that of the recipe."""
    controls: Controls = None
    """Controls of every cell; null = those of the recipe."""
    evaluate: Flag = True
    """Measure every run as soon as it is trained, and report on all of them in the end."""
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)
    """Resources under SLURM."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """Resources under Ray."""


@dataclass(frozen=True)
class ReadSweep:
    """A sweep's file, and where its entries stand.

    Attributes:
        file: What it says.
        source: What messages call it.
        lines: Line of each key.
    """

    file: SweepFile
    source: str
    lines: Mapping[KeyPath, int]

    def place(self, *path: str | int) -> str:
        """The file and line of an entry."""
        return Origin(self.source, self.lines).place(path)


def read_sweep_file(path: Path) -> ReadSweep:
    """Read the file of a sweep.

    Raises:
        ConfigError: It cannot be read; a line for each thing that is wrong.
    """
    source = str(path)
    text = read_yaml_file(path, source)
    if not isinstance(text.value, dict):
        raise ConfigError(f"{source}: lines `key: value` are needed, got {show(text.value)}.")
    file, problems = validate_config(SweepFile, text.value, Origin(source, text.lines))
    problems = [*text.duplicates, *problems]
    if file is None or problems:
        raise ConfigError(several(problems))
    return ReadSweep(file, source, text.lines)
