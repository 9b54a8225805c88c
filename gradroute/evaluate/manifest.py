"""What a run says of itself before its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.data.examples import label_counts
from gradroute.evaluate.request import drawn_by_rows
from gradroute.prepare import Prepared


def manifest_of(
    prepared: Prepared, facts: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    """What a run's manifest states, but for its provenance.

    Args:
        prepared: Its data.
        facts: What it stands on besides its config, see `run_identity`.
        notes: What was said of it.
    """
    counts = label_counts(prepared.train)
    return {
        **facts,
        "notes": list(notes),
        "examples": {f"{true} labeled {label}": n for (true, label), n in counts.items()},
        "labels": prepared.labels,
        **({"drawn_by_rows": drawn} if (drawn := drawn_by_rows(prepared)) else {}),
    }


def data_report(prepared: Prepared) -> dict[str, Any]:
    """What is written about the rows that were skipped: how many, and each with its reason."""
    rows = [row._asdict() for row in prepared.skipped]
    return {"skipped": len(rows), "rows": rows}
