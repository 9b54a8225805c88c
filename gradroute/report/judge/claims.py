"""Claims of routing against each control, over seeds, at equal gain kept and label information.

A control that keeps more of the gain than the routed run has a harder task: any model shows less
of a behavior when its update is made weaker. So beside the plain difference stands the
difference *at equal gain kept*, see `equal_gain`. And a control that does as well with fewer labels
is the better method: every claim says which labels each side used, see `label_information`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradroute.config.controls import BY_NAME, CONTROLS, Control
from gradroute.report.judge.equal_gain import EqualGain, at_equal_gain
from gradroute.report.judge.outcomes import (
    DAMAGED,
    GOAL_GAIN,
    HIGHER,
    INCONCLUSIVE,
    MARGIN,
    NOT_MEASURED,
    SAME,
    side,
)
from gradroute.report.results.contrasts import (
    OWN_FULL,
    controls_of,
    gain_kept,
    gain_reference,
    outcome_pairs,
    rate_difference,
)
from gradroute.report.results.label_information import (
    Information,
    compare_information,
    phrase_of,
    simplicity,
)
from gradroute.report.results.number_text import (
    join_words,
    p_text,
    seeds_gain_text,
    seeds_points_text,
    seeds_rate_text,
)
from gradroute.report.results.power import detectable_difference, detectable_over_seeds
from gradroute.report.results.roles import adapter_names, confounders
from gradroute.report.results.run_results import Rate, RunResults
from gradroute.report.results.seeds import (
    Group,
    OverSeeds,
    gain_over_seeds,
    over_seeds,
    rate_over_seeds,
)
from gradroute.system.statistics import holm, mcnemar_counts, t_test

# Rivals first, then what routing is held to.
_JUDGED = sorted(CONTROLS, key=lambda control: (not control.rival, not control.goal))
_MODE = "bad_ablated"

Pair = tuple[RunResults, RunResults]  # a routed run and its control, of one seed


@dataclass(frozen=True)
class Claim:
    """A routed group beside one control, over the seeds that both have.

    Attributes:
        group: Name of the routed group.
        kind: Which control, see `config.controls`.
        control: Name of the control's group.
        mode: Under which the routed runs are read: `bad_ablated`.
        control_mode: Under which the control's runs are: `bad_ablated`, or `full` where nothing is
            to be ablated.
        rate: Behavior rate of the routed runs.
        control_rate: Of the control's runs, same seeds.
        difference: Routed minus control, by seed.
        gain: Gain kept of the routed runs; None where it was not measured.
        control_gain: Of the control's runs, against the same reference.
        gain_against: What gain kept is measured against.
        information: Which labels each side used, and whether the control used less.
        equal_gain: The same claim at equal gain kept.
        outcome: Of the difference as measured: `lower`, `higher`, `no different` (the interval lies
            within 5 points of 0) or `inconclusive`.
        decided: What a headline may say: the outcome at equal gain kept, or `inconclusive` where
            that takes a measurement that was not made, or `not shown: the model is damaged`.
        p_value: Two-sided, of the paired t test over seeds or, with one seed, of the exact McNemar
            test on its prompts; None where neither can be had.
        adjusted: The p-value after Holm's method over all claims of the comparison.
        detectable: The smallest difference that these seeds, with the spread that they have, would
            have found with 80 % power; with one seed, that so many prompts would have; None where
            that cannot be said.
        goal: Only against the oracle: whether the upper end of the difference is at most 5 points
            with gain kept of at least 0.9; otherwise None.
        notes: What a reader must know besides, such as seeds left out or fields in which the two
            differ although they should not.
    """

    group: str
    kind: str
    control: str
    mode: str
    control_mode: str
    rate: OverSeeds
    control_rate: OverSeeds
    difference: OverSeeds
    gain: OverSeeds | None
    control_gain: OverSeeds | None
    gain_against: str
    information: Information
    equal_gain: EqualGain
    outcome: str
    decided: str
    p_value: float | None
    adjusted: float | None
    detectable: float | None
    goal: bool | None
    notes: tuple[str, ...]

    @property
    def rival(self) -> bool:
        """Whether routing is meant to do better; oracle and baseline are what it is held to."""
        return BY_NAME[self.kind].rival

    @property
    def not_beaten(self) -> bool:
        """Whether a rival does as well with no more label information and no less gain kept."""
        as_good = self.decided in (SAME, HIGHER) and not self.equal_gain.short
        return self.rival and self.information.at_most_equal and as_good

    @property
    def sentence(self) -> str:
        """The claim in words, with every number that it stands on."""
        parts = [
            f"{self.group} under {self.mode} shows it in {seeds_rate_text(self.rate)}, "
            f"{self.control} ({self.kind}) under {self.control_mode} in "
            f"{seeds_rate_text(self.control_rate)}: {self.outcome}, "
            f"{seeds_points_text(self.difference)}{self._certainty()}",
            f"gain kept {seeds_gain_text(self.gain)} beside {seeds_gain_text(self.control_gain)}, "
            f"against {self.gain_against}",
            f"labels: {phrase_of(self.information.routed)} beside "
            f"{phrase_of(self.information.control)} (the control used "
            f"{self.information.control_used})",
            f"at equal gain kept: {self._equal()}",
        ]
        if self.goal is not None:
            parts.append(
                f"goal (at most {100 * MARGIN:.0f} points above the oracle by the upper end, gain "
                f"kept at least {GOAL_GAIN:g}): {'met' if self.goal else 'NOT met'}"
            )
        return "; ".join([*parts, *self.notes]) + "."

    def _certainty(self) -> str:
        found = []
        if self.p_value is not None:
            found.append(p_text(self.p_value))
        if self.adjusted is not None:
            found.append(f"{p_text(self.adjusted)} by Holm over all claims")
        if self.detectable is not None:
            found.append(
                f"{100 * self.detectable:.0f} points would have been found with 80 % power"
            )
        return f" ({', '.join(found)})" if found else ""

    def _equal(self) -> str:
        equal = self.equal_gain
        if equal.difference is None or equal.difference == self.difference:
            return f"{equal.how}: {equal.outcome}"
        return (
            f"{equal.how}, where it shows it in {seeds_rate_text(equal.rate)}: {equal.outcome}, "
            f"{seeds_points_text(equal.difference)}"
        )


def judge_claims(runs: Sequence[RunResults], groups: Sequence[Group]) -> list[Claim]:
    """Every routed group beside every control that is there, in the order of the groups.

    A control run counts for the routed run of its own seed (and for none other), so that what the
    two share, data, order and prompts, does not widen the interval.
    """
    by_name = {run.name: run for run in runs}
    claims: list[Claim] = []
    for group in groups:
        members = [by_name[name] for name in group.runs]
        if group.role != "routed" or not {"good", "bad"} <= set(adapter_names(members[0].config)):
            continue
        controls = {run.name: controls_of(run, runs) for run in members}
        for kind in _JUDGED:
            pairs = [
                (run, control)
                for run in members
                if (control := controls[run.name].get(kind.role)) is not None
                and control.seed == run.seed
            ]
            claim = _claim(group, kind, pairs, runs, groups)
            if claim is not None:
                claims.append(claim)
    known = [claim.p_value for claim in claims if claim.p_value is not None]
    adjusted = iter(holm(known))
    return [
        claim if claim.p_value is None else replace(claim, adjusted=next(adjusted))
        for claim in claims
    ]


def simplest_first(claims: Sequence[Claim]) -> list[Claim]:
    """The claims, those against the simplest control first, see `simplicity`."""
    return sorted(claims, key=lambda claim: simplicity(BY_NAME[claim.kind]))


def _claim(
    group: Group,
    kind: Control,
    pairs: Sequence[Pair],
    runs: Sequence[RunResults],
    groups: Sequence[Group],
) -> Claim | None:
    """One claim, or None where neither rate was measured in any seed that both have."""
    mode = kind.mode
    measured = [(pair, rates) for pair in pairs if (rates := _rates(pair, mode)) is not None]
    if not measured:
        return None
    kept = [pair for pair, _ in measured]
    seeds = [run.seed for run, _ in kept]
    ours = [rates[0] for _, rates in measured]
    theirs = [rates[1] for _, rates in measured]
    references = [gain_reference(run, runs) for run, _ in kept]
    # One and the same reference for both sides of a pair, also where it is the run's own full.
    whole = [reference or run for reference, (run, _) in zip(references, kept, strict=True)]
    gains = [gain_kept(run, one, _MODE) for (run, _), one in zip(kept, whole, strict=True)]
    others = [gain_kept(run, one, mode) for (_, run), one in zip(kept, whole, strict=True)]
    against = [OWN_FULL if one is None else _group_of(one, groups) for one in references]
    difference = _difference(kept, seeds, ours, theirs, mode)
    gain, other_gain = gain_over_seeds(seeds, gains), gain_over_seeds(seeds, others)
    outcome = side(difference)
    equal = at_equal_gain(kept, mode, whole, ours, gains)
    return Claim(
        group=group.name,
        kind=kind.name,
        control=_group_of(kept[0][1], groups),
        mode=_MODE,
        control_mode=mode,
        rate=rate_over_seeds(seeds, ours),
        control_rate=rate_over_seeds(seeds, theirs),
        difference=difference,
        gain=gain,
        control_gain=other_gain,
        gain_against=join_words(list(dict.fromkeys(against))),
        information=compare_information(*kept[0]),
        equal_gain=equal,
        outcome=outcome,
        decided=_decided(outcome, gain, other_gain, equal),
        p_value=_p_value(kept, difference, mode),
        adjusted=None,
        detectable=_detectable(difference, ours[0], theirs[0]),
        goal=_goal(difference, gain) if kind.goal else None,
        notes=(*_right_answers(kept, seeds, mode), *_notes(group, kept, seeds)),
    )


def _rates(pair: Pair, mode: str) -> tuple[Rate, Rate] | None:
    run, control = pair
    ours, theirs = run.rate(_MODE), control.rate(mode)
    return None if ours is None or theirs is None else (ours, theirs)


def _difference(
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    ours: Sequence[Rate],
    theirs: Sequence[Rate],
    mode: str,
) -> OverSeeds:
    """Routed minus control by seed; one seed's own interval is paired by prompt where it can be."""
    intervals = []
    for (run, control), one, other in zip(pairs, ours, theirs, strict=True):
        same = outcome_pairs((run, _MODE), (control, mode))
        estimate = rate_difference(one, other) if same is None else same.difference
        intervals.append((math.nan, math.nan) if estimate is None else estimate[1:])
    gaps = [one.mean - other.mean for one, other in zip(ours, theirs, strict=True)]
    counts = [min(one.n, other.n) for one, other in zip(ours, theirs, strict=True)]
    return over_seeds(seeds, gaps, counts, intervals, (-1.0, 1.0))


def _decided(
    outcome: str, gain: OverSeeds | None, other: OverSeeds | None, equal: EqualGain
) -> str:
    if gain is not None and gain.mean <= 0:
        return DAMAGED
    if equal.outcome != NOT_MEASURED:
        return equal.outcome
    # A control that keeps more and shows no more is not beaten by being made weaker.
    keeps_more = gain is not None and other is not None and other.mean >= gain.mean
    return outcome if keeps_more and outcome in (SAME, HIGHER) else INCONCLUSIVE


def _goal(difference: OverSeeds, gain: OverSeeds | None) -> bool:
    return difference.upper <= MARGIN and gain is not None and gain.mean >= GOAL_GAIN


def _p_value(pairs: Sequence[Pair], difference: OverSeeds, mode: str) -> float | None:
    values = difference.values
    if len(values) > 1:
        return t_test(values) if max(values) > min(values) else None
    run, control = pairs[0]
    same = outcome_pairs((run, _MODE), (control, mode))
    return None if same is None else mcnemar_counts(same.only_first, same.only_second)


def _detectable(difference: OverSeeds, ours: Rate, theirs: Rate) -> float | None:
    if len(difference.values) > 1:
        found = detectable_over_seeds(difference.values)
    else:
        lower = min(ours.mean, theirs.mean)
        found = detectable_difference(ours.n, theirs.n, round(lower, 2))
    return None if math.isnan(found) else found


def _right_answers(pairs: Sequence[Pair], seeds: Sequence[int], mode: str) -> list[str]:
    """What is to be kept in a task with right answers, on both sides, by kind of prompts."""
    first, control = pairs[0]
    kinds = first.cells[_MODE].accuracy.keys() & control.cells[mode].accuracy.keys()
    notes = []
    for kind in sorted(kinds):
        ours = [run.cells[_MODE].accuracy.get(kind) for run, _ in pairs]
        theirs = [run.cells[mode].accuracy.get(kind) for _, run in pairs]
        if None not in ours and None not in theirs:
            one, other = (
                seeds_rate_text(rate_over_seeds(seeds, [rate for rate in rates if rate]))
                for rates in (ours, theirs)
            )
            notes.append(f"right answers to {kind} prompts {one} beside {other}")
    return notes


def _notes(group: Group, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[str]:
    notes = []
    missing = [seed for seed in group.seeds if seed not in seeds]
    if missing:
        notes.append(f"seed {join_words([str(seed) for seed in missing])} has no such control")
    if len(seeds) == 1:
        notes.append("one seed: the interval says nothing about another seed")
    fields = dict.fromkeys(
        key for run, control in pairs for key in confounders(run.config, control.config)
    )
    if fields:
        notes.append(f"the two differ in {join_words(list(fields))} too")
    return notes


def _group_of(run: RunResults, groups: Sequence[Group]) -> str:
    return next(group.name for group in groups if run.name in group.runs)
