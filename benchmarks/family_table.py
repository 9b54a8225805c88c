"""The table of model families: its rows in a file, as markdown, and in the docs."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.family_promises import Promise

COLUMNS: Mapping[str, str] = {
    "gradient": "gradient, largest error",
    "ablated": "ablated = never had it",
    "base": "`base` = the base",
    "learns": "trains",
    "modes": "modes generate alike",
    "writes": "batch writes what one row does",
    "scores": "losses, batch against one row",
    "packs": "packing",
    "bare": "padding without mask",
    "reuses": "frozen layers once",
    "peft": "PEFT reload",
    "export": "export peft",
    "merged": "export merged",
    "bf16": "merge bf16 (rounding alone)",
}
"""Promise -> heading."""
BEGIN, END = "<!-- families: from benchmarks/families.py --docs -->", "<!-- end of families -->"


@dataclass(frozen=True)
class Row:
    """What was found of one family.

    Attributes:
        family: Its name, of the newer ones the `model_type` of its config.
        model: The class.
        covered: What has adapters and what does not, as training says it.
        promises: By their names in `COLUMNS`; one that is missing was not tried.
    """

    family: str
    model: str
    covered: str
    promises: dict[str, Promise]

    @property
    def holds(self) -> bool:
        """Whether no promise is broken; what is refused beforehand is not promised."""
        return all(promise.holds is not False for promise in self.promises.values())


def read_rows(path: Path) -> dict[str, Row]:
    """Family -> row of a result file; nothing where there is none."""
    if not path.is_file():
        return {}
    rows = {}
    for own in json.loads(path.read_text())["families"]:
        promises = {name: Promise(**promise) for name, promise in own["promises"].items()}
        rows[own["family"]] = Row(own["family"], own["model"], own["covered"], promises)
    return rows


def write_rows(
    path: Path, rows: Sequence[Row], bounds: Mapping[str, float], facts: Mapping[str, Any]
) -> None:
    """The rows as JSON, and beside it as a page."""
    whole = {"bounds": bounds, "families": [asdict(row) for row in rows], **facts}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    page = (
        f"# Model families, {path.stem}\n\n{table(rows)}\n\n{notes(rows)}\n\n"
        f"Bounds: {dict(bounds)}. Commit {facts['commit']}; {facts['hardware']['processor']}; "
        f"{versions}.\n"
    )
    path.with_suffix(".md").write_text(page)


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    heads = ["family", "adapters", *COLUMNS.values(), "left out"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *map(line, rows)])


def line(row: Row) -> str:
    """One row of the table."""
    count = re.search(r"adapters on (\d+)", row.covered)
    _, _, left = row.covered.partition("left out: ")
    left = re.sub(r" \([^()]*\)", "", left)
    cells = [_cell(row.promises.get(name)) for name in COLUMNS]
    return f"| {' | '.join([row.family, count[1] if count else '', *cells, left])} |"


def notes(rows: Sequence[Row]) -> str:
    """Why a promise is broken or something is refused; families of one reason share a line."""
    told: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, promise in row.promises.items():
            if promise.why:
                why = promise.why.replace(f"the model {row.model}", "it")
                told.setdefault((COLUMNS[name], why), []).append(row.family)
    return "\n".join(
        f"- **{', '.join(families)}**, {heading}: {why}"
        for (heading, why), families in told.items()
    )


def into_page(page: Path, rows: Sequence[Row]) -> None:
    """Put the table and its notes into a page of the docs, between two marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{notes(rows)}\n\n{END}{after}")


def _cell(promise: Promise | None) -> str:
    if promise is None:
        return ""
    return f"**{promise.cell}**" if promise.holds is False else promise.cell
