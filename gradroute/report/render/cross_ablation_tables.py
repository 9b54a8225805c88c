"""The matrix of behavior by ablated adapter as tables, for the page, Markdown and CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradroute.report.judge.cross_ablation import Crossing
from gradroute.report.render.table_cells import (
    JUDGED_HEADS,
    Cell,
    Table,
    counts_text,
    judged_cells,
    loss_cell,
    seeds_cell,
    seeds_gain,
    seeds_loss,
)
from gradroute.report.results.run_results import RunResults
from gradroute.report.results.seeds import OverSeeds

HEAT_STEPS = 8
"""Shades of the matrix; a cell without its own shade still has its number."""


def crossing_tables(crossings: Sequence[Crossing]) -> list[Table]:
    """Rates and their change against `full` by behavior and mode, then losses and gain kept."""
    if not crossings:
        return []
    modes = tuple(dict.fromkeys(mode for one in crossings for mode in one.modes))
    return [_rates_table(crossings, modes), _changes_table(crossings, modes), _rest(crossings)]


def _rates_table(crossings: Sequence[Crossing], modes: Sequence[str]) -> Table:
    return Table(
        "crossing",
        "Each behavior without each adapter: rate, %",
        "Rows are behaviors, columns ablation modes; the rate on prompts that draw the "
        f"behavior, with its 95 % interval; {_counts(crossings)}. The stronger a shade, the "
        "higher the rate. Framed: the behavior without its own adapter, which should be low; "
        "without the adapter of another behavior it should be as under `full`. `good_alone`: "
        "without the "
        "adapters of all behaviors.",
        ("group", "behavior", *modes),
        _rows(crossings, modes, "rates", sign=False),
    )


def _counts(crossings: Sequence[Crossing]) -> str:
    """Completions behind the rates."""
    rates = [rate for one in crossings for own in one.rates.values() for rate in own.values()]
    return f"completions of a rate: {', '.join(sorted({counts_text(rate.n) for rate in rates}))}"


def _changes_table(crossings: Sequence[Crossing], modes: Sequence[str]) -> Table:
    shown = [mode for mode in modes if mode != "full"]
    return Table(
        "crossing_changes",
        "Each behavior without each adapter: change against full, points",
        "Rate under the mode minus rate under `full`, on the same prompts with the same noise, in "
        "percentage points with the interval of paired rates.",
        ("group", "behavior", *shown),
        _rows(crossings, shown, "changes", sign=True),
    )


def _rows(
    crossings: Sequence[Crossing], modes: Sequence[str], what: str, *, sign: bool
) -> tuple[tuple[Cell, ...], ...]:
    rows = []
    for index, one in enumerate(crossings):
        numbers = one.rates if what == "rates" else one.changes
        for label, own in numbers.items():
            at = ("crossings", index, what, label)
            cells = [_cell(one, label, mode, own, at, sign) for mode in modes]
            rows.append((Cell(one.group), Cell(label), *cells))
    return tuple(rows)


def _cell(
    one: Crossing,
    label: str,
    mode: str,
    numbers: Mapping[str, OverSeeds],
    at: tuple[str | int, ...],
    sign: bool,
) -> Cell:
    number = numbers.get(mode)
    cell = seeds_cell(number, mode, *at, mode, scale=100, digits=0, sign=sign, counts=False)
    if number is None:
        return cell
    classes = [] if sign else [f"heat{round(HEAT_STEPS * number.mean)}"]
    classes += ["own"] if one.own(label, mode) else []
    return replace(cell, classes=" ".join(classes))


def _rest(crossings: Sequence[Crossing]) -> Table:
    labels = list(dict.fromkeys(label for one in crossings for label in one.behaviors))
    rows = []
    for index, one in enumerate(crossings):
        at = ("crossings", index)
        for mode in one.modes:
            losses = (
                seeds_loss(one.losses[label].get(mode), f"{label}_loss", *at, "losses", label, mode)
                for label in labels
            )
            rows.append(
                (
                    Cell(one.group),
                    Cell(mode),
                    seeds_loss(one.normal.get(mode), "normal_loss", *at, "normal", mode),
                    *losses,
                    seeds_gain(one.gain_kept.get(mode), "gain_kept", *at, "gain_kept", mode),
                )
            )
    return Table(
        "crossing_losses",
        "Held-out losses by mode",
        "Nats per target token of held-out text, normal and with each behavior. Gain kept: share "
        "of what tuning gains on normal text, against the runs' own `full` if there is no run that "
        "never saw the behaviors.",
        ("group", "mode", "normal loss", *(f"{label} loss" for label in labels), "gain kept"),
        tuple(rows),
    )


def behaviors_table(runs: Sequence[RunResults]) -> Table:
    """Every behavior of every run under every mode and on every kind of prompts."""
    rows = []
    for run in runs:
        for label, part in run.parts.items():
            for mode, cell in part.cells.items():
                at = ("runs", run.name, "behaviors", label, mode)
                loss = cell.loss.get("behavior")
                lost = loss_cell(loss, "behavior_loss", *at, "held_out_loss", "behavior")
                for kind in cell.rates:
                    names = (Cell(run.name), Cell(label), Cell(mode), Cell(kind))
                    rows.append((*names, *judged_cells(cell, kind, *at, "prompts", kind), lost))
    return Table(
        "modes",
        "Every behavior of every run under every mode",
        "Rates with Wilson intervals; score: mean of the detector's 0 to 1; too short: completions "
        "that it cannot judge, counted as not shown. Loss in nats per target token of held-out "
        "text with the behavior.",
        ("run", "behavior", "mode", "prompts", "rate, %", *JUDGED_HEADS, "loss"),
        tuple(rows),
    )
