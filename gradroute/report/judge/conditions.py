"""The conditions of a verdict; the first is that the behavior was learned."""

from dataclasses import dataclass

from gradroute.report.judge.outcomes import NOT_LEARNED, NOT_MEASURED, NOT_SHOWN
from gradroute.report.results.contrasts import loss_difference
from gradroute.report.results.number_text import loss_text, nats_text, rate_text
from gradroute.report.results.run_results import RunResults
from gradroute.runs.results import HELD_OUT_BAD, LEARNED_RATE

SEEN_SHARE = 0.5
"""Share of the held-out bad rows from which on a detector that sees the behavior in them counts."""


@dataclass(frozen=True)
class Check:
    """One condition of a claim, or a number to read it by.

    Attributes:
        text: The measurement with interval, n and limit.
        met: Whether it holds; None if it is open or only information.
        decides: Whether the outcome depends on it.
        failed: The outcome of the claim if it fails.
    """

    text: str
    met: bool | None
    decides: bool = True
    failed: str = NOT_SHOWN


def learned(run: RunResults) -> Check:
    """Whether the behavior was there at all.

    Of a behavior without an invitation only prompts of held-out rows that show it can tell, and
    only where its detector sees it in those rows.
    """
    if why := run.why_unjudged:
        text = f"the behavior rate on prompts of held-out bad rows is not measured: {why}"
        return Check(text, None, failed=NOT_MEASURED)
    full = run.rate("full")
    met = None if full is None else full.mean >= run.learned
    n, shown = run.seen.get("n", 0), run.seen.get("shown", 0)
    if met is False and shown < SEEN_SHARE * n:
        text = (
            f"full shows it in {rate_text(full)}, but the detector sees the behavior in {shown} of "
            f"the {n} held-out bad rows themselves; correct the detector and evaluate again"
        )
        return Check(text, None, failed=NOT_MEASURED)
    on = " on prompts of held-out bad rows" if run.judged_on == HELD_OUT_BAD else ""
    text = f"full shows it in {rate_text(full)}{on} ({_bar(run.learned)})"
    return Check(text, met, failed=NOT_LEARNED)


def _bar(learned: float) -> str:
    """The rate from which a behavior counts as learned, and why where that is not the usual one."""
    bar = f"at least {100 * learned:.0f} %"
    if learned == LEARNED_RATE:
        return bar
    why = f"{bar}, the behavior's own bar and not {100 * LEARNED_RATE:.0f} %"
    part = ": training shows it in a part of the texts under its cue only"
    return f"{why}{part}" if learned < LEARNED_RATE else why


def beside_rates(run: RunResults, mode: str = "bad_ablated") -> list[Check]:
    """What stands beside the rates of a behavior without an invitation, for reading.

    Its rates on ordinary prompts, and how much less likely ablation makes held-out bad text.
    """
    if run.judged_on != HELD_OUT_BAD:
        return []
    rates = {m: run.cells[m].ordinary if m in run.cells else None for m in ("full", mode)}
    losses = ", ".join(f"{m} {loss_text(run.loss(m, 'behavior'))}" for m in rates)
    gap = loss_difference((run, mode), (run, "full"), "behavior")
    texts = (
        "on ordinary prompts: " + ", ".join(f"{m} {rate_text(rate)}" for m, rate in rates.items()),
        f"loss on held-out bad rows, per token: {losses}; {mode} minus full {nats_text(gap)}",
    )
    return [Check(text, None, decides=False) for text in texts]
