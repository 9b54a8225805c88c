"""Simpler methods with the labels of a run: notes of `validate`, never errors."""

from collections.abc import Sequence
from typing import Any

from gradroute.data.examples import labels_in
from gradroute.prepare import Prepared

ENOUGH_ROWS = 1620
"""Rows labeled good with which training on these alone did as well as routing, or better; measured
with the 6,000 rows of the recipe `caps`."""
FEW_ROWS = 170
"""Rows labeled good with which training on these alone did far worse; between the two nothing was
measured."""


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
    if good >= ENOUGH_ROWS:
        note += (
            f"With {ENOUGH_ROWS:,} such rows of the recipe caps, training on these alone did as "
        )
        return f"{note}well as routing or better: try it first"
    if good <= FEW_ROWS:
        note += f"With up to {FEW_ROWS} such rows, training on these alone did far worse than "
        return f"{note}routing in our measurements: compare"
    note += f"Training on these alone did as well as routing or better with {ENOUGH_ROWS:,} such "
    note += f"rows of the recipe caps, and far worse with {FEW_ROWS}. In between it was not "
    return f"{note}measured: compare"


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
