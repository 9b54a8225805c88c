"""A headline's lines on claims: what is not beaten, beaten, or open; and its short numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from gradroute.config.controls import BY_NAME
from gradroute.report.judge.claims import Claim, simplest_first
from gradroute.report.judge.outcomes import DAMAGED, INCONCLUSIVE, NOT_MEASURED, SHOWN
from gradroute.report.results.label_information import LESS, phrase_of
from gradroute.report.results.seeds import OverSeeds

YES, NO, OPEN, PLAIN = "yes", "no", "open", ""


class Line(NamedTuple):
    """One line of the headline.

    Attributes:
        badge: The outcome in a word or two; empty if there is none to give.
        tone: `yes`, `no`, `open` or empty: how the badge is set.
        text: The line.
    """

    badge: str
    tone: str
    text: str


def tone(outcome: str) -> str:
    """How an outcome is set; the wording alone says what it is."""
    if outcome in (SHOWN, "lower"):
        return YES
    if outcome in (INCONCLUSIVE, NOT_MEASURED):
        return OPEN
    return NO if outcome.startswith("not shown") or outcome == "higher" else PLAIN


def brief_rate(rate: OverSeeds) -> str:
    """A rate in percent with its interval; the seeds stand in the tables."""
    return f"{100 * rate.mean:.0f} %{_bounds(rate, 100, '.0f')}"


def brief_gain(gain: OverSeeds) -> str:
    """A gain kept with its interval."""
    return "not defined" if math.isnan(gain.mean) else f"{gain.mean:.2f}{_bounds(gain, 1, '.2f')}"


def brief_points(gap: OverSeeds) -> str:
    """A difference of rates in percentage points with its interval."""
    return f"{100 * gap.mean:+.0f} points{_bounds(gap, 100, '+.0f')}"


def _bounds(number: OverSeeds, scale: int, form: str) -> str:
    if math.isnan(number.lower) or math.isnan(number.upper):
        return ""
    return f" [{scale * number.lower:{form}}, {scale * number.upper:{form}}]"


def not_beaten(claims: Sequence[Claim]) -> tuple[Line, ...]:
    """A line per routed group: the rivals that do as well with no more labels, simplest first."""
    merged: dict[str, list[Claim]] = {}
    for claim in simplest_first([claim for claim in claims if claim.not_beaten]):
        merged.setdefault(claim.group, []).append(claim)
    lines = []
    for group, found in merged.items():
        first = found[0]
        rivals = "; ".join(_rival(claim) for claim in found)
        text = (
            f"{rivals}; beside {group}, which uses {phrase_of(first.information.routed)} and "
            f"shows it in {brief_rate(first.rate)}{_at_gain(first.gain)}."
        )
        lines.append(Line("not beaten", NO, text))
    return tuple(lines)


def _rival(claim: Claim) -> str:
    used, equal = claim.information, claim.equal_gain
    only = " only" if used.control_used == LESS and used.control != "none" else ""
    text = (
        f"{claim.control}{_read_under(claim)}, which uses {phrase_of(used.control)}{only}, shows "
        f"it in {brief_rate(claim.control_rate)}{_at_gain(claim.control_gain)}"
    )
    if equal.rate is None or set(equal.scales) == {1}:
        return text
    return f"{text}, and in {brief_rate(equal.rate)} at equal gain kept"


def _read_under(claim: Claim) -> str:
    return "" if claim.control_mode == "full" else f" under {claim.control_mode}"


def _at_gain(gain: OverSeeds | None) -> str:
    return "" if gain is None else f" at gain kept {brief_gain(gain)}"


def against_controls(claims: Sequence[Claim]) -> list[Line]:
    """A line per routed group and outcome, with every control that it is the outcome against."""
    merged: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        merged.setdefault((claim.group, claim.decided), []).append(claim)
    lines = []
    for (group, decided), found in merged.items():
        controls = "; ".join(_control(claim) for claim in found)
        own = found[0]
        text = (
            f"{group} ({phrase_of(own.information.routed)}), {brief_rate(own.rate)}"
            f"{_at_gain(own.gain)}, against {controls}."
        )
        lines.append(Line(decided, tone(decided), text))
    return lines


def _control(claim: Claim) -> str:
    gap = claim.equal_gain.difference
    equal = claim.equal_gain.outcome if gap is None else brief_points(gap)
    at = "where it keeps most" if claim.equal_gain.short else "at equal gain kept"
    used = claim.information
    labels = f"{phrase_of(used.control)}, {used.control_used}"
    rate = f"{brief_rate(claim.control_rate)}{_at_gain(claim.control_gain)}"
    what = f"{BY_NAME[claim.kind].caption}; labels: {labels}"
    return f"{claim.control} ({what}), {rate}, {at} {equal}"


def not_shown_to_beat(claims: Sequence[Claim]) -> tuple[Line, ...]:
    """What is not beaten, group by group; a damaged model is compared with nothing."""
    damaged: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.decided == DAMAGED:
            damaged.setdefault(claim.group, []).append(claim)
    lines = against_controls([claim for claim in claims if claim.decided != DAMAGED])
    for group, found in damaged.items():
        gain = found[0].gain
        kept = "" if gain is None else f" keeps {brief_gain(gain)} of the gain and"
        others = ", ".join(dict.fromkeys(claim.control for claim in found))
        lines.append(Line(DAMAGED, NO, f"{group}{kept} counts against none of {others}."))
    return tuple(lines)
