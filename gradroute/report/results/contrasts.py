"""Contrasts of two numbers: differences of rates and losses, localization, gain kept.

Where outcomes of single prompts or losses of single examples are at hand, differences are paired
by prompt or example; otherwise two intervals are combined as if independent, which is too wide
rather than too narrow.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from gradroute.report.results.roles import adapter_names, behavior_labels, find_controls
from gradroute.report.results.run_results import Estimate, Rate, RunResults
from gradroute.routing.policy import shipped_mode
from gradroute.system.statistics import difference, paired_difference, ratio, ratio_mean

OWN_FULL = "its own `full`"
"""What gain kept is measured against where there is no run to measure it against."""


class GainKept(NamedTuple):
    """Share of what tuning gains in held-out normal loss that a run keeps under a mode.

    Attributes:
        value: (base - kept) / (base - reference), in losses; NaN if the reference gains nothing.
        lower: Of the 95 % interval; NaN if losses of single examples are not at hand.
        upper: Likewise.
        mode: The mode that is judged.
        against: What the gain is measured against: the name of the reference run, or `OWN_FULL`.
    """

    value: float
    lower: float
    upper: float
    mode: str
    against: str


class Pairs(NamedTuple):
    """How the same prompts came out twice."""

    only_first: int
    only_second: int
    n: int

    @property
    def difference(self) -> Estimate:
        """First rate minus second, with the interval of paired rates."""
        gap = (self.only_first - self.only_second) / self.n
        return Estimate(gap, *paired_difference(self.only_first, self.only_second, self.n))


def outcome_pairs(
    first: tuple[RunResults, str], second: tuple[RunResults, str], kind: str | None = None
) -> Pairs | None:
    """Prompt by prompt, two modes of one run or of two; None if the prompts are not the same.

    Without a kind, on the prompts that the first is judged on. Prompts are the same if they have
    the same ids and as many were counted in both rates.
    """
    kind = kind or first[0].judged_on
    one, two = (run.outcomes.get((mode, kind), {}) for run, mode in (first, second))
    rates = [run.rate(mode, kind) for run, mode in (first, second)]
    if not one or one.keys() != two.keys():
        return None
    if any(rate is None or rate.n != len(one) for rate in rates):
        return None
    only_first = sum(shows and not two[prompt] for prompt, shows in one.items())
    only_second = sum(shows and not one[prompt] for prompt, shows in two.items())
    return Pairs(only_first, only_second, len(one))


def rate_difference(first: Rate | None, second: Rate | None) -> Estimate | None:
    """First rate minus second, as independent ones (Newcombe); None if one was not measured."""
    if first is None or second is None:
        return None
    interval = difference(first.shown, first.n, second.shown, second.n)
    return Estimate(first.mean - second.mean, *interval)


def mode_difference(
    run: RunResults, first: str, second: str, kind: str | None = None
) -> Estimate | None:
    """Rate under the first mode minus that under the second; None if one was not measured.

    Paired by prompt where `samples.jsonl` is at hand.
    """
    pairs = outcome_pairs((run, first), (run, second), kind)
    if pairs is not None:
        return pairs.difference
    return rate_difference(run.rate(first, kind), run.rate(second, kind))


def loss_difference(
    first: tuple[RunResults, str], second: tuple[RunResults, str], dataset: str
) -> Estimate | None:
    """Loss of a run under a mode minus that of another; None if one is missing."""
    gap = _paired_gap(first, second, dataset)
    if gap is not None:
        return Estimate(*ratio_mean(*gap)[:3])
    a, b = (run.loss(mode, dataset) for run, mode in (first, second))
    if a is None or b is None:
        return None
    value = a.mean - b.mean
    lower = value - math.hypot(a.mean - a.lower, b.upper - b.mean)
    upper = value + math.hypot(a.upper - a.mean, b.mean - b.lower)
    return Estimate(value, lower, upper)


def _paired_gap(
    first: tuple[RunResults, str], second: tuple[RunResults, str], dataset: str
) -> tuple[list[float], list[int]] | None:
    """First minus second summed loss of each example, and its tokens; None if not the same ones."""
    one, two = (run.examples.get((mode, dataset), {}) for run, mode in (first, second))
    if not one or {i: n for i, (_, n) in one.items()} != {i: n for i, (_, n) in two.items()}:
        return None
    return [one[i][0] - two[i][0] for i in one], [n for _, n in one.values()]


def localization(run: RunResults) -> Estimate | None:
    """rate(good_ablated) - rate(bad_ablated): how much of the behavior goes with `bad`."""
    return mode_difference(run, "good_ablated", "bad_ablated")


def deployed_mode(run: RunResults) -> str:
    """The mode that would be shipped: `bad_ablated`, or `full` where nothing is to be ablated.

    Of several behaviors it is the mode without the adapters of all of them.
    """
    shipped = shipped_mode(adapter_names(run.config), behavior_labels(run.config))
    name = "full" if shipped is None else shipped.name
    return name if name in run.cells else "full"


def gain_reference(run: RunResults, runs: Sequence[RunResults]) -> RunResults | None:
    """What gain kept is measured against: the baseline of a run, else its oracle, else None.

    A baseline is measured against itself: another seed's would only say how seeds differ.
    """
    if run.role == "baseline":
        return None
    controls = controls_of(run, runs)
    return controls.get("baseline") or controls.get("oracle")


def gain_kept(
    run: RunResults, reference: RunResults | None, mode: str | None = None
) -> GainKept | None:
    """How much of the gain in held-out normal loss is left (see `GainKept`).

    Args:
        run: The run.
        reference: A run that never saw the behavior, whose gain under `full` is the whole; None
            measures against the run's own full.
        mode: The mode that is judged; None for the one that would be shipped.

    Returns:
        None if a loss that it takes was not measured.
    """
    mode = deployed_mode(run) if mode is None else mode
    best_run, against = (run, OWN_FULL) if reference is None else (reference, reference.name)
    base, kept = run.loss("base", "normal"), run.loss(mode, "normal")
    best = best_run.loss("full", "normal")
    if base is None or kept is None or best is None:
        return None
    gain, possible = base.mean - kept.mean, base.mean - best.mean
    if possible <= 0:
        return GainKept(math.nan, math.nan, math.nan, mode, against)
    gains = _paired_gap((run, "base"), (run, mode), "normal")
    possibles = _paired_gap((run, "base"), (best_run, "full"), "normal")
    if gains is None or possibles is None or len(gains[0]) < 2:
        return GainKept(gain / possible, math.nan, math.nan, mode, against)
    if ratio_mean(*possibles).lower <= 0:  # no gain to speak of, so no share of it
        return GainKept(math.nan, math.nan, math.nan, mode, against)
    return GainKept(*ratio(gains[0], possibles[0]), mode, against)


def controls_of(run: RunResults, runs: Sequence[RunResults]) -> dict[str, RunResults]:
    """The runs that a run is compared with, by role (see `config.controls`)."""
    by_name = {other.name: other for other in runs}
    found = find_controls(run.name, {other.name: other.facts for other in runs})
    return {role: by_name[name] for role, name in found.items()}
