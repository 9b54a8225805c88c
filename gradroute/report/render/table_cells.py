"""Cells of tables: the displayed number, the plain value, and its place in the JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradroute.report.results.contrasts import GainKept
from gradroute.report.results.number_text import count_range
from gradroute.report.results.run_results import Cell as Measured
from gradroute.report.results.run_results import Estimate, Loss, Rate
from gradroute.report.results.seeds import OverSeeds

Number = float | int | str | None


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: As shown; empty where there is nothing to show.
        interval: What stands behind it in gray: interval, n.
        numbers: The columns that it takes in a CSV file, by name; none for what `text` says.
        at: JSON pointer (RFC 6901) of the number in `eval_multi_results.json`; empty if there is
            none.
        prose: Whether it is a sentence, which may break over lines.
        classes: Of the cell on the page: how it is set.
    """

    text: str
    interval: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    at: str = ""
    prose: bool = False
    classes: str = ""


@dataclass(frozen=True)
class Table:
    """A table under a name.

    Attributes:
        name: Of its CSV file.
        title: What it shows.
        note: How to read it, with units.
        heads: Of the columns.
        rows: As many cells each as there are heads; the first is the row's name.
    """

    name: str
    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def pointer(*steps: str | int) -> str:
    """A JSON pointer from its steps (RFC 6901)."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)


def rate_cell(rate: Rate | None, name: str, *at: str | int) -> Cell:
    """A rate in percent with its interval and n."""
    if rate is None:
        return Cell("")
    interval = f"{_interval(rate.lower, rate.upper, 100, 0)} of {rate.n}"
    return Cell(f"{100 * rate.mean:.0f}", interval, _columns(name, rate[:3], rate.n), pointer(*at))


def loss_cell(loss: Loss | None, name: str, *at: str | int) -> Cell:
    """A held-out loss in nats per token with its interval and n."""
    if loss is None:
        return Cell("")
    interval = f"{_interval(loss.lower, loss.upper, 1, 3)} n {loss.n}"
    return Cell(f"{loss.mean:.3f}", interval, _columns(name, loss[:3], loss.n), pointer(*at))


def gain_cell(gain: GainKept | None) -> Cell:
    """Gain kept, a share of 1."""
    if gain is None:
        return Cell("")
    if math.isnan(gain.value):
        return Cell("not defined", numbers=_columns("gain_kept", gain[:3]))
    interval = _interval(gain.lower, gain.upper, 1, 2)
    return Cell(f"{gain.value:.2f}", interval, _columns("gain_kept", gain[:3]))


def seeds_cell(
    number: OverSeeds | None,
    name: str,
    *at: str | int,
    scale: int,
    digits: int,
    sign: bool = False,
    counts: bool = True,
) -> Cell:
    """A number over seeds with its interval.

    Args:
        number: What was measured, if it was.
        name: Of the columns in a CSV file, which hold it unscaled.
        at: Steps of the JSON pointer.
        scale: What it is multiplied by to be read: 100 for percent.
        digits: Behind the point.
        sign: Whether a plus is written.
        counts: Whether the interval is followed by how many examples it stands on.
    """
    if number is None:
        return Cell("")
    bounds = (number.mean, number.lower, number.upper)
    return Cell(
        _number_text(number.mean, scale, digits, sign),
        _interval(number.lower, number.upper, scale, digits, sign)
        + (f" of {counts_text(number.n)}" if counts and any(number.n) else ""),
        _columns(name, bounds) | {f"{name}_seeds": len(number.seeds)},
        pointer(*at),
    )


JUDGED_HEADS = ("score", "too short")
"""Heads of what `judged_cells` has beside the rate."""


def judged_cells(measured: Measured, kind: str, *at: str | int) -> tuple[Cell, ...]:
    """Rate on a kind of prompts, mean score, and how many completions were too short to judge."""
    return (
        rate_cell(measured.rates.get(kind), "rate", *at, "behavior_rate"),
        number_cell(measured.scores.get(kind), "score", 2, *at, "behavior_score", "mean"),
        count_cell(measured.unjudged.get(kind), "too_short", *at, "too_short"),
    )


def loss_cells(losses: Mapping[str, Loss | None], *at: str | int) -> tuple[Cell, ...]:
    """Held-out losses on normal text and on text with the behavior."""
    return tuple(
        loss_cell(losses.get(name), f"{name}_loss", *at, "held_out_loss", name)
        for name in ("normal", "behavior")
    )


def counts_text(n: Sequence[int]) -> str:
    """Examples behind a number over seeds: how many seeds times how many each."""
    each = count_range(n)
    return each if len(n) == 1 else f"{len(n)} x {each}"


def points_cell(estimate: Estimate | None, name: str, *at: str | int) -> Cell:
    """A difference of two rates in percentage points."""
    if estimate is None:
        return Cell("")
    return Cell(
        _number_text(estimate.value, 100, 0, True),
        _interval(estimate.lower, estimate.upper, 100, 0, True),
        _columns(name, estimate),
        pointer(*at),
    )


def p_value_cell(p: float | None, name: str, *at: str | int) -> Cell:
    """A p-value; small ones as a bound."""
    if p is None:
        return Cell("")
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", numbers={name: p}, at=pointer(*at))


def number_cell(
    number: float | None, name: str, digits: int, *at: str | int, sign: bool = False
) -> Cell:
    """A plain number."""
    if number is None:
        return Cell("")
    return Cell(
        _number_text(number, 1, digits, sign), numbers={name: _finite(number)}, at=pointer(*at)
    )


def percent_cell(share: float | None, name: str, *at: str | int) -> Cell:
    """A share in percent."""
    if share is None:
        return Cell("")
    return Cell(f"{100 * share:.0f}", numbers={name: share}, at=pointer(*at))


def count_cell(count: int | None, name: str, *at: str | int) -> Cell:
    """A whole number."""
    return Cell("") if count is None else Cell(f"{count:,}", numbers={name: count}, at=pointer(*at))


def steps_cell(steps: int | None, most: int, name: str, *at: str | int) -> Cell:
    """Steps until something happened, or that it did not."""
    if steps is None:
        return Cell(
            f"not within {most}", numbers={name: None, f"{name}_max": most}, at=pointer(*at)
        )
    return Cell(f"{steps}", numbers={name: steps, f"{name}_max": most}, at=pointer(*at))


def seeds_rate(number: OverSeeds | None, name: str, *at: str | int, counts: bool = True) -> Cell:
    """A rate over seeds in percent."""
    return seeds_cell(number, name, *at, scale=100, digits=0, counts=counts)


def seeds_loss(number: OverSeeds | None, name: str, *at: str | int) -> Cell:
    """A held-out loss over seeds in nats per token."""
    return seeds_cell(number, name, *at, scale=1, digits=3)


def seeds_gain(number: OverSeeds | None, name: str, *at: str | int) -> Cell:
    """Gain kept over seeds, a share of 1."""
    return seeds_cell(number, name, *at, scale=1, digits=2)


def _number_text(number: float, scale: int, digits: int, sign: bool) -> str:
    if math.isnan(number):
        return "not defined"
    value = round(scale * number, digits) + 0.0  # + 0.0: no minus zero
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _interval(lower: float, upper: float, scale: int, digits: int, sign: bool = False) -> str:
    if math.isnan(lower) or math.isnan(upper):
        return ""
    low, high = (_number_text(bound, scale, digits, sign) for bound in (lower, upper))
    return f"[{low}, {high}]"


def _columns(name: str, bounds: Sequence[float], n: int | None = None) -> dict[str, Number]:
    value, lower, upper = (_finite(bound) for bound in bounds)
    columns: dict[str, Number] = {name: value, f"{name}_lower": lower, f"{name}_upper": upper}
    return columns if n is None else columns | {f"{name}_n": n}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def aligned(lines: Sequence[Sequence[str]], left: Sequence[bool] | None = None) -> str:
    """Rows of cells as text in columns, two spaces apart.

    Args:
        lines: Rows of the same number of cells.
        left: By column, whether its cells begin at the same place, as words do, or end there, as
            numbers do; None: all begin.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [True] * len(widths) if left is None else left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )
