"""The comparison for the terminal: a table of what was measured, then the verdicts."""

import math
import textwrap
from collections.abc import Iterable, Sequence

from gradroute.report.analysis import Loss, Rate, RunResults, controls_of, gain_kept
from gradroute.report.verdicts import Verdict

WIDTH = 100
_MARK = {True: "yes", False: "NO", None: "open"}


def render(runs: Sequence[RunResults], verdicts: Sequence[Verdict]) -> str:
    """The whole comparison as text for a terminal of 100 columns."""
    return f"{render_table(runs)}\n\n{render_verdicts(verdicts)}"


def render_table(runs: Sequence[RunResults]) -> str:
    """Rates and losses by run and mode, and gain kept on the line that it judges."""
    behavior = runs[0].config["behavior"] if runs else "behaviour"
    heads = ["run", "mode", f"{behavior} rate", "normal loss", f"{behavior} loss", "gain kept"]
    lines = [heads]
    for run in runs:
        kept = gain_kept(run, controls_of(run, runs).get("baseline"))
        for index, (mode, cell) in enumerate(run.cells.items()):
            lines.append(
                [
                    run.name if index == 0 else "",
                    mode,
                    _rate(cell.rate),
                    _loss(cell.loss.get("normal")),
                    _loss(cell.loss.get("behavior")),
                    _number(kept.value) if kept is not None and kept.mode == mode else "",
                ]
            )
    cells = [cell for run in runs for cell in run.cells.values()]
    completions = _range(cell.rate.n for cell in cells if cell.rate is not None)
    examples = _range(loss.n for cell in cells for loss in cell.loss.values())
    note = (
        f"[95 % intervals]; rates over {completions} completions, losses in nats per token over "
        f"{examples} held-out texts."
    )
    return f"{_aligned(lines, (True, True, True, True, True, False))}\n{note}"


def render_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Each verdict with its checks, one per line."""
    if not verdicts:
        return "No verdicts: they need a routed run with the adapters good and bad."
    blocks = []
    for verdict in verdicts:
        lines = [f"{verdict.run}: {verdict.outcome.upper()}", verdict.claim]
        for check in verdict.checks:
            mark = _MARK[check.met] if check.decides else "-"
            lines += textwrap.wrap(
                check.text,
                WIDTH - 4,
                initial_indent=f"  {mark:<5}",
                subsequent_indent=" " * 7,
                break_long_words=False,
                break_on_hyphens=False,
            )
        first, *rest = lines
        blocks.append("\n".join([f"({verdict.number}) {first}", *(f"    {line}" for line in rest)]))
    return "\n\n".join(blocks)


def _aligned(lines: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts)) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    return f"{100 * rate.mean:3.0f} % [{100 * rate.lower:.0f}, {100 * rate.upper:.0f}]"


def _loss(loss: Loss | None) -> str:
    return "" if loss is None else f"{loss.mean:.3f} [{loss.lower:.3f}, {loss.upper:.3f}]"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"
