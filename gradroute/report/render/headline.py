"""The headline of a report: shown, not shown, controls, cost and certainty.

Every line follows from a verdict, a claim or a count; none is chosen by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gradroute.config.controls import BY_NAME, CONTROLS
from gradroute.report.judge.claims import Claim
from gradroute.report.judge.comparison import Comparison, MultiBehaviorComparison
from gradroute.report.judge.cross_ablation import Crossing
from gradroute.report.judge.outcomes import NOT_MEASURED
from gradroute.report.judge.relearning import Relearning
from gradroute.report.judge.verdicts import INCONCLUSIVE, SHOWN, Verdict
from gradroute.report.render.claim_lines import (
    NO,
    PLAIN,
    Line,
    against_controls,
    brief_gain,
    brief_points,
    brief_rate,
    not_beaten,
    not_shown_to_beat,
    tone,
)
from gradroute.report.results.contrasts import deployed_mode
from gradroute.report.results.number_text import count_range, join_words
from gradroute.report.results.run_results import by_behavior
from gradroute.report.results.seeds import Group
from gradroute.runs.results import HELD_OUT_BAD

# What routing is held to first, then the rivals that take one adapter.
IN_ORDER = sorted(
    CONTROLS, key=lambda control: (control.rival, control.rival and not control.one_adapter)
)
"""Every control that a claim may have, in the order in which they are named."""


@dataclass(frozen=True)
class Part:
    """One question and its lines; `lost` where routing is not shown to beat a control."""

    title: str
    lines: tuple[Line, ...]
    lost: bool = False


def headline(comparison: Comparison) -> list[Part]:
    """The parts of the headline that have something to say, in reading order."""
    if isinstance(comparison, MultiBehaviorComparison):
        claims, compared = (), _beside(comparison.crossings)
        needed = "an adapter for every behavior"
    else:
        claims, compared = comparison.claims, _compared(comparison.claims)
        needed = "good and bad"
    beaten = [claim for claim in claims if claim.rival and claim.decided == "lower"]
    open_claims = [
        claim
        for claim in claims
        if claim.rival and claim.decided != "lower" and not claim.not_beaten
    ]
    verdicts = _verdicts(comparison)
    shown = [line for line in verdicts if line.badge == SHOWN]
    other = [line for line in verdicts if line.badge != SHOWN]
    none = "No claim of the method is shown by these runs."
    if not comparison.verdicts and not claims:
        none = f"No claim is made: a claim needs a routed run with {needed}."
    parts = [
        Part("Not beaten", not_beaten(claims), lost=True),
        Part("Shown", (*shown, *against_controls(beaten)) or (Line("", PLAIN, none),)),
        Part("Not shown", (*other, *_suppressed(comparison))),
        Part("Not shown to beat", not_shown_to_beat(open_claims), lost=True),
        Part("Compared with", compared),
        Part("At what cost", _cost(comparison, claims)),
        Part("How sure", _sure(comparison, claims)),
    ]
    return [part for part in parts if part.lines]


MOST_SENTENCES = 2
"""Routed groups up to which each has a sentence; of more there is a table."""


def lead_sentences(comparison: Comparison) -> list[str]:
    """Per routed group what the behavior does when `bad` goes, and which rival does as well.

    Nothing where there are more than `MOST_SENTENCES`: a table says it better.
    """
    if isinstance(comparison, MultiBehaviorComparison):
        return _drop_text(comparison.crossings)
    if sum(group.role == "routed" for group in comparison.groups) > MOST_SENTENCES:
        return []
    sentences = []
    for group in comparison.groups:
        full, ablated = group.rate("full"), group.rate("bad_ablated")
        if group.role == "routed" and full is not None and ablated is not None:
            sentences.append(
                f"{group.name}: {comparison.behavior} in {brief_rate(full)} of completions"
                f"{_prompts_text(group)} as trained, in {brief_rate(ablated)} without "
                f"`bad`{_kept(group)}."
            )
            own = [claim for claim in comparison.claims if claim.group == group.name]
            sentences += [f"Not beaten: {line.text}" for line in not_beaten(own)]
    return sentences


def _prompts_text(group: Group) -> str:
    """To which prompts, where it is not those that invite the behavior."""
    return " of held-out bad prompts" if group.judged_on == HELD_OUT_BAD else ""


def _drop_text(crossings: Sequence[Crossing]) -> list[str]:
    """By how much each behavior falls without its own adapter, and without another's."""
    routed = [one for one in crossings if one.role == "routed"]
    sentences = []
    for one in routed[:MOST_SENTENCES]:
        for label, changes in one.changes.items():
            own = changes.get(f"{label}_ablated")
            if own is None:
                continue
            others = {other: changes.get(f"{other}_ablated") for other in one.behaviors}
            beside = "".join(
                f", by {brief_points(gap)} without `{other}`"
                for other, gap in others.items()
                if gap is not None and other != label
            )
            sentences.append(
                f"{one.group}: {label} in {brief_rate(one.rates[label]['full'])} of completions as "
                f"trained; it changes by {brief_points(own)} without its own adapter{beside}."
            )
    return sentences


def _kept(group: Group) -> str:
    if group.gain_kept is None:
        return ""
    return f", which keeps {brief_gain(group.gain_kept)} of what tuning gains on normal text"


class VerdictGroup(NamedTuple):
    """Verdicts of one claim and one outcome, and the runs that they are of in words."""

    claim: str
    outcome: str
    names: str
    verdicts: tuple[Verdict, ...]


def group_verdicts(comparison: Comparison) -> list[VerdictGroup]:
    """The verdicts, those of one claim and outcome together, in the order of the claims."""
    merged: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in comparison.verdicts:
        merged.setdefault((verdict.claim, verdict.outcome), []).append(verdict)
    return [
        VerdictGroup(
            claim, outcome, _names([one.run for one in found], comparison.groups), tuple(found)
        )
        for (claim, outcome), found in merged.items()
    ]


def _verdicts(comparison: Comparison) -> list[Line]:
    """A line per claim and outcome, with what a claim that is not shown fails on.

    Geometry (claim 4) is a description, not a success: it stands in its own section.
    """
    lines = []
    for claim, outcome, names, found in group_verdicts(comparison):
        if found[0].number == 4:
            continue
        text = f"{claim.removesuffix('.')} ({names})"
        wanted = None if outcome in (INCONCLUSIVE, NOT_MEASURED) else False
        deciding = [check for check in found[0].checks if check.decides and check.met is wanted]
        if outcome == NOT_MEASURED:
            deciding = [check for check in deciding if check.failed == NOT_MEASURED]
        reasons = [check.text for check in deciding]
        if outcome != SHOWN and reasons:
            text += f"; in {found[0].run}: " if len(found) > 1 else ": "
            text += "; ".join(reasons)
        lines.append(Line(outcome, tone(outcome), f"{text}."))
    return lines


def _suppressed(comparison: Comparison) -> list[Line]:
    """Routed runs in which the behavior comes back sooner than it is learned anew."""
    routed = {run.name for run in by_behavior(comparison.runs) if run.role == "routed"}
    merged: dict[str, list[Relearning]] = {}
    for one in comparison.relearning:
        if one.run in routed and one.outcome == "suppressed":
            attack = f"at learning rate {one.learning_rate:.2g}"
            if one.of_rates is not None:
                attack = f"of all weights, at the strongest of {one.of_rates} learning rates,"
            merged.setdefault(attack, []).append(one)
    lines = []
    for attack, found in merged.items():
        against = _names([one.against for one in found if one.against], comparison.groups)
        text = (
            f"Plain fine-tuning {attack} brings {comparison.behavior} back "
            f"after {', '.join(_steps(one.steps, one.max_steps) for one in found)} steps "
            f"({_names([one.run for one in found], comparison.groups)}), sooner than it is learned "
            f"anew: {', '.join(_steps(one.against_steps, one.max_steps) for one in found)} "
            f"({against}). It is suppressed, not removed."
        )
        lines.append(Line("suppressed", NO, text))
    return lines


def _steps(steps: int | None, most: int) -> str:
    return f"more than {most}" if steps is None else str(steps)


def _names(runs: Sequence[str], groups: Sequence[Group]) -> str:
    """Runs by name; a group by its own where all of its runs are there."""
    left = list(runs)
    names = []
    for group in groups:
        if len(group.runs) > 1 and set(group.runs) <= set(left):
            names.append(f"{group.name}, {len(group.runs)} seeds")
            left = [run for run in left if run not in group.runs]
    return "; ".join([*names, *left])


def _beside(crossings: Sequence[Crossing]) -> tuple[Line, ...]:
    """With several behaviors no claim is made against a control."""
    others = [one.group for one in crossings if one.role != "routed"]
    text = "There is no other run."
    if others:
        text = f"The matrices of {join_words(others)} are shown for comparison."
    note = f"{text} No claim against controls is computed for several behaviors."
    return (Line("", PLAIN, note),)


def _compared(claims: Sequence[Claim]) -> tuple[Line, ...]:
    there: dict[str, list[str]] = {}
    for claim in claims:
        names = there.setdefault(claim.kind, [])
        if claim.control not in names:
            names.append(claim.control)
    found = [f"{' and '.join(names)} ({BY_NAME[kind].caption})" for kind, names in there.items()]
    missing = [one.name for one in IN_ORDER if one.name not in there]
    lines = [Line("", PLAIN, f"{', '.join(found)}.")] if found else []
    if missing:
        lines.append(Line("", PLAIN, f"Not compared with {', '.join(missing)}."))
    return tuple(lines)


def _cost(comparison: Comparison, claims: Sequence[Claim]) -> tuple[Line, ...]:
    """What is left of the gain, and whether the goal against the oracle is reached."""
    routed = [group for group in comparison.groups if group.role == "routed"]
    by_reference: dict[str, list[str]] = {}
    for group in routed:
        against = _names(list(dict.fromkeys(group.gain_against)), comparison.groups)
        if group.gain_kept is not None:
            found = by_reference.setdefault(against, [])
            found.append(f"{group.name} {brief_gain(group.gain_kept)}")
    lines = [
        Line("", PLAIN, f"Share of the gain of {against} that is kept: {'; '.join(found)}.")
        for against, found in by_reference.items()
    ]
    unknown = [group.name for group in routed if group.gain_kept is None]
    if unknown:
        lines.append(Line("", PLAIN, f"Gain kept was not measured for {', '.join(unknown)}."))
    goals = [claim for claim in claims if claim.goal is not None]
    if goals:
        text = "; ".join(
            f"{'reached' if claim.goal else 'not reached'} by {claim.group}, "
            f"{brief_points(claim.difference)}"
            for claim in goals
        )
        goal = "The goal, at most 5 points above the oracle by the upper end with gain kept of at"
        lines.append(Line("", PLAIN, f"{goal} least 0.9, is {text}."))
    return tuple(lines)


def _sure(comparison: Comparison, claims: Sequence[Claim]) -> tuple[Line, ...]:
    """Seeds, completions, and the difference that they would have found."""
    most = max((len(group.seeds) for group in comparison.groups), default=0)
    if most > 1:
        text = (
            f"Up to {most} seeds per row: 95 % t intervals over seeds, each of which is shown below"
        )
    else:
        text = (
            "One seed: 95 % intervals over its own completions and texts, which say nothing about "
            "another seed"
        )
    rates = [run.rate(deployed_mode(run)) for run in by_behavior(comparison.runs)]
    counts = [rate.n for rate in rates if rate is not None]
    if counts:
        text += f". {count_range(counts)} completions per run and mode, the same noise in each"
    found = [claim.detectable for claim in claims if claim.detectable is not None]
    if found:
        low, high = (f"{100 * bound:.0f}" for bound in (min(found), max(found)))
        span = low if low == high else f"{low} to {high}"
        text += (
            f". Differences of {span} points would have been found with 80 % power; p-values of "
            "the claims are adjusted by Holm's method"
        )
    return (Line("", PLAIN, f"{text}."),)
