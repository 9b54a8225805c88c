"""Two modes of one run on the same prompts with the same noise, prompt by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradroute.report.results.contrasts import Pairs, outcome_pairs
from gradroute.report.results.power import detectable_pairs
from gradroute.report.results.run_results import Estimate, RunResults
from gradroute.runs.results import ELICIT
from gradroute.system.statistics import holm, mcnemar_counts


@dataclass(frozen=True)
class PairTest:
    """Whether two modes of a run differ in behavior rate, on the same prompts.

    Attributes:
        run: Name of the run.
        kind: Kind of prompts.
        first: A mode.
        second: Another.
        n: Prompts.
        difference: Rate of the first minus that of the second, with the interval of paired rates.
        only_first: Prompts on which only the first shows the behavior.
        only_second: Prompts on which only the second does.
        p_value: Of the exact McNemar test, two-sided.
        adjusted: The p-value after Holm's method over the whole table.
        detectable: The smallest difference that so many prompts would have found with 80 % power.
    """

    run: str
    kind: str
    first: str
    second: str
    n: int
    difference: Estimate
    only_first: int
    only_second: int
    p_value: float
    adjusted: float
    detectable: float


def pair_tests(runs: Sequence[RunResults]) -> list[PairTest]:
    """`full` against every other named mode of every run: one table, adjusted as a whole.

    Points of a scale curve are left out: their tests say the same over and over, and would take
    the power from those that say something. So are kinds of prompts of the elicitation grid, for
    the same reason, and modes without single outcomes on the same prompts as `full`.
    """
    found: list[tuple[RunResults, str, str, Pairs]] = []
    for run in runs:
        for mode, cell in run.cells.items():
            for kind in cell.rates if mode != "full" and "=" not in mode else ():
                asked = not kind.startswith(ELICIT)
                pairs = outcome_pairs((run, "full"), (run, mode), kind) if asked else None
                if pairs is not None:
                    found.append((run, kind, mode, pairs))
    p_values = [mcnemar_counts(pairs.only_first, pairs.only_second) for *_, pairs in found]
    return [
        PairTest(
            run=run.name,
            kind=kind,
            first="full",
            second=mode,
            n=pairs.n,
            difference=pairs.difference,
            only_first=pairs.only_first,
            only_second=pairs.only_second,
            p_value=p_value,
            adjusted=adjusted,
            detectable=detectable(pairs),
        )
        for (run, kind, mode, pairs), p_value, adjusted in zip(
            found, p_values, holm(p_values), strict=True
        )
    ]


def detectable(pairs: Pairs) -> float:
    """The smallest difference that McNemar's test would have shown on as many prompts.

    As many of them (in whole percent) are taken to disagree the other way as did here.
    """
    fewer = min(pairs.only_first, pairs.only_second)
    return detectable_pairs(pairs.n, round(fewer / pairs.n, 2))
