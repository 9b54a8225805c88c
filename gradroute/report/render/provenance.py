"""Provenance, labels and configurations of runs, and their differences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml

from gradroute.config.roles import Role
from gradroute.config.run_config import keys_with
from gradroute.report.render.table_cells import Cell, Table
from gradroute.report.results.roles import flat_settings
from gradroute.report.results.run_results import RunResults
from gradroute.system.secrets import redact

_NAMES = keys_with(Role.NAME)  # differ in every run and say nothing


@dataclass(frozen=True)
class ProvenanceGroup:
    """Runs that were made and measured alike, and by what.

    Attributes:
        runs: Their names in one line.
        facts: Name and value of each fact.
    """

    runs: str
    facts: tuple[tuple[str, str], ...]


def provenance_groups(runs: Sequence[RunResults]) -> list[ProvenanceGroup]:
    """Provenance, with runs of the same one together."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        found.setdefault(tuple(_facts(run)), []).append(run.name)
    if len(found) == 1:
        return [ProvenanceGroup("All runs", facts) for facts in found]
    return [ProvenanceGroup(", ".join(names), facts) for facts, names in found.items()]


def _facts(run: RunResults) -> Iterator[tuple[str, str]]:
    """Base model, where it was trained and where it was measured."""
    manifest = run.manifest
    if manifest.get("base"):
        yield "base model", redact(str(manifest["base"]))
    trained, measured = manifest.get("provenance") or {}, run.provenance
    yield from _machine("trained", trained)
    same = all(trained.get(key) == measured.get(key) for key in ("versions", "commit", "hardware"))
    if trained and measured and same:
        yield "measured", "with the same versions, commit and hardware"
    else:
        yield from _machine("measured", measured)


def _machine(verb: str, origin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    versions, hardware = origin.get("versions"), origin.get("hardware")
    if versions:
        text = ", ".join(f"{name} {value}" for name, value in versions.items())
        yield f"{verb} with", redact(text)
    if origin.get("commit"):
        yield f"{verb} at commit", str(origin["commit"])
    if hardware:
        parts = [hardware.get("processor") or hardware.get("system")]
        if hardware.get("cores"):
            parts.append(f"{hardware['cores']} cores, {hardware.get('threads')} used")
        if hardware.get("memory_gib"):
            parts.append(f"{hardware['memory_gib']} GiB")
        parts += [str(one) for one in hardware.get("accelerators") or ["no accelerator"]]
        yield f"{verb} on", redact(", ".join(str(part) for part in parts if part))


def config_texts(runs: Sequence[RunResults]) -> list[tuple[str, str]]:
    """Each run's name and its resolved configuration as YAML."""
    return [
        (run.name, yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True))
        for run in runs
    ]


def differences_table(runs: Sequence[RunResults]) -> Table:
    """Every field in which a run's configuration differs from that of the run before it."""
    rows = []
    for before, run in pairwise(runs):
        one, two = dict(flat_settings(before.config)), dict(flat_settings(run.config))
        changed = [key for key in one | two if one.get(key) != two.get(key) and key not in _NAMES]
        for key in changed or [""]:
            rows.append(
                (
                    Cell(run.name),
                    Cell(before.name),
                    Cell(key or "nothing but the name"),
                    Cell(_value(one, key), prose=True),
                    Cell(_value(two, key), prose=True),
                )
            )
    return Table(
        "differences",
        "What changed in the configuration from run to run",
        "",
        ("run", "run before", "field", "there", "here"),
        tuple(rows),
    )


def _value(leaves: Mapping[str, Any], key: str) -> str:
    if not key:
        return ""
    if key not in leaves:
        return "not there"
    return yaml.safe_dump(leaves[key], default_flow_style=True).removesuffix("\n...\n").strip()
