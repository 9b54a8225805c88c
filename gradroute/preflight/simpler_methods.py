"""Simpler methods with the labels of a run: notes of `validate`, never errors."""

from collections.abc import Sequence
from typing import Any

from gradroute.data.examples import labels_in
from gradroute.prepare import Prepared

ENOUGH_ROWS = 1000
"""Rows labeled good from which on training on these alone is to be tried first."""
ENOUGH_SHARE = 0.2
"""The same as a share of the rows."""


def simpler_methods(prepared: Prepared, controls: Sequence[str]) -> dict[str, Any]:
    """What the labels of a routed run would do in a simpler method.

    Args:
        prepared: The examples and the table; of one that does not route there is nothing to say.
        controls: Those that the run has.

    Returns:
        `known_good` and `flagged`, the numbers of rows labeled good as a whole and labeled bad, and
        `notes`, a sentence for each method that is worth a try.
    """
    if not prepared.policy.routes_anything:
        return {"known_good": 0, "flagged": 0, "notes": []}
    rows = prepared.train
    labels = [labels_in(example) for example in rows]
    good = sum(own == {"good"} for own in labels) + len(prepared.null)
    flagged = sum(bool(own & set(prepared.behaviors)) for own in labels)
    notes = []
    if good:
        notes.append(_known_good(good, len(rows)) + _ask("known_good", controls))
    if flagged:
        notes.append(_words(flagged, good, bool(prepared.null)) + _ask("words_filter", controls))
    return {"known_good": good, "flagged": flagged, "notes": notes}


def _known_good(good: int, rows: int) -> str:
    note = f"known_good: {good:,} of {rows:,} rows ({100 * good / rows:.0f} %) are labeled good. "
    limit = f"{ENOUGH_ROWS:,} rows, or {100 * ENOUGH_SHARE:.0f} % of the rows"
    if good >= ENOUGH_ROWS or good >= ENOUGH_SHARE * rows:
        note += f"With at least {limit}, training on these alone did as well as routing in our "
        return f"{note}measurements: try it first"
    note += f"With fewer than {limit}, training on these alone kept less of the gain than routing "
    return f"{note}in our measurements: compare"


def _words(flagged: int, good: int, held_out: bool) -> str:
    note = f"words_filter: {flagged:,} rows are labeled bad. Where their words give them away, "
    note += "dropping them and the rows that a classifier of words finds is simpler than routing: "
    note += "try it first"
    if not good:
        return f"{note}; it needs rows labeled good too"
    return note if held_out else f"{note}; it needs data.null_fraction above 0"


def _ask(control: str, controls: Sequence[str]) -> str:
    """The end of a sentence: how to compare with a control."""
    return " (it is among the controls)." if control in controls else f" (controls=[{control}])."
