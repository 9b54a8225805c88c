"""A control made as weak, or as strong, as the routed run, by scaling its update.

Every mode of the control that is its own mode times one number s was perhaps measured
(`gradroute eval --scale all=0.2,0.4,...,1`). Along s, gain kept rises from 0 (the untuned base)
to what the control keeps at s = 1, and may go on to rise beyond. Where it passes the gain kept
of the routed run, the two are compared; between two measured scales gain and rate are taken as
straight lines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from gradroute.report.judge.outcomes import NOT_MEASURED, side
from gradroute.report.results.contrasts import GainKept, rate_difference
from gradroute.report.results.number_text import join_words
from gradroute.report.results.roles import adapter_names
from gradroute.report.results.run_results import Rate, RunResults
from gradroute.report.results.scales import Point, shrink_curve
from gradroute.report.results.seeds import OverSeeds, over_seeds, rate_over_seeds
from gradroute.routing.policy import AblationMode
from gradroute.system.statistics import wilson

CLOSE = 0.02
"""Difference in gain kept that counts as none."""
WIDEST_STEP = 0.25
"""Scales that lie further apart than this are not bridged by a straight line."""

AS_IS = "keeps as much as it is"
REACHED = "made weaker or stronger"
SHORT = "cannot keep as much"


@dataclass(frozen=True)
class EqualGain:
    """A claim when the control keeps as much of the gain as the routed run does.

    Attributes:
        how: In words, how the control came to that gain, or why it could not.
        scales: Of the control's update, per seed; 1 is as trained.
        rate: The control's behavior rate there; None where it was not measured.
        difference: Routed minus that; None likewise.
        outcome: `lower`, `higher`, `no different`, `inconclusive` or `not measured`.
        short: Whether the control cannot keep as much at any scale, in some seed.
    """

    how: str
    scales: tuple[float, ...]
    rate: OverSeeds | None
    difference: OverSeeds | None
    outcome: str
    short: bool = False


class Spot(NamedTuple):
    """Where a control stands when it is compared: its scale, its rate, its gain, and how."""

    scale: float
    rate: Rate
    gain: float
    how: str


def at_equal_gain(
    pairs: Sequence[tuple[RunResults, RunResults]],
    mode: str,
    references: Sequence[RunResults],
    rates: Sequence[Rate],
    gains: Sequence[GainKept | None],
) -> EqualGain:
    """Compare routed runs with their controls at the gain kept of the routed ones.

    Args:
        pairs: Routed run and control, one pair per seed.
        mode: In which the control is read.
        references: Whose gain under `full` is the whole, for each pair.
        rates: Behavior rate of each routed run.
        gains: Its gain kept.
    """
    spots: list[Spot] = []
    for (run, control), reference, gain in zip(pairs, references, gains, strict=True):
        if gain is None or math.isnan(gain.value):
            return _not_measured(f"gain kept of {run.name} is not known")
        points = [p for p in shrink_curve(control, mode, reference) if p.rate and _gain(p)]
        spot = find_spot(points, gain.value)
        if spot is None:
            return _not_measured(_missing(run, control, mode, gain))
        spots.append(spot)
    seeds = [run.seed for run, _ in pairs]
    gaps = [rate_difference(one, spot.rate) for one, spot in zip(rates, spots, strict=True)]
    difference = over_seeds(
        seeds,
        [one.mean - spot.rate.mean for one, spot in zip(rates, spots, strict=True)],
        [spot.rate.n for spot in spots],
        [(math.nan, math.nan) if gap is None else gap[1:] for gap in gaps],
        (-1.0, 1.0),
    )
    return EqualGain(
        how=_how(spots),
        scales=tuple(spot.scale for spot in spots),
        rate=rate_over_seeds(seeds, [spot.rate for spot in spots]),
        difference=difference,
        outcome=side(difference),
        short=any(spot.how == SHORT for spot in spots),
    )


def find_spot(points: Sequence[Point], wanted: float) -> Spot | None:
    """Where on its curve a control keeps the wanted share of the gain.

    As trained, if that is close enough. Otherwise where the curve passes that share, at the scale
    nearest to 1; or, where all of it lies below, where it is highest.

    Args:
        points: Of the curve by ascending scale, each with rate and gain.
        wanted: Gain kept.

    Returns:
        None where the curve is not measured closely enough to say.
    """
    own = next((point for point in points if point.scale == 1), None)
    if own is None:
        return None
    if abs(_gain_of(own) - wanted) <= CLOSE:
        return _spot(own, AS_IS)
    crossings = []
    for low, high in pairwise(points):
        below, above = _gain_of(low) - wanted, _gain_of(high) - wanted
        if below * above <= 0 and below != above:
            crossings.append((low, high, low.scale - below / (above - below) * _step(low, high)))
    if crossings:
        low, high, scale = min(crossings, key=lambda crossing: abs(crossing[2] - 1))
        return _between(low, high, scale) if _step(low, high) <= WIDEST_STEP + 1e-9 else None
    best = max(points, key=_gain_of)
    return _spot(best, SHORT) if _gain_of(best) < wanted else None


def _between(low: Point, high: Point, scale: float) -> Spot:
    """On the straight line between two measured scales."""
    share = (scale - low.scale) / _step(low, high)
    one, other = low.rate, high.rate
    assert one is not None and other is not None
    mean = one.mean + share * (other.mean - one.mean)
    n = min(one.n, other.n)
    # The interval is that of the nearest whole count: a line between two rates has none of its own.
    gain = _gain_of(low) + share * (_gain_of(high) - _gain_of(low))
    return Spot(scale, Rate(mean, *wilson(round(mean * n), n), n), gain, REACHED)


def _spot(point: Point, how: str) -> Spot:
    assert point.rate is not None
    return Spot(point.scale, point.rate, _gain_of(point), how)


def _how(spots: Sequence[Spot]) -> str:
    """One sentence for all seeds; their spots may differ in kind."""
    parts = []
    for how in dict.fromkeys(spot.how for spot in spots):
        some = [spot for spot in spots if spot.how == how]
        scales = _each([spot.scale for spot in some])
        gains = _each([spot.gain for spot in some])
        if how == AS_IS:
            parts.append(f"the control keeps as much as it is ({gains})")
        elif how == REACHED:
            parts.append(
                f"the control's update is scaled by {scales}, between measured scales by straight "
                "lines"
            )
        else:
            parts.append(f"the control cannot keep as much, at best {gains} (at scale {scales})")
    return ", or ".join(parts)


def _each(numbers: Sequence[float]) -> str:
    return join_words(list(dict.fromkeys(f"{number:.2f}" for number in numbers)))


def _not_measured(why: str) -> EqualGain:
    return EqualGain(why, (), None, None, NOT_MEASURED)


def _missing(run: RunResults, control: RunResults, mode: str, gain: GainKept) -> str:
    """What to measure where a curve does not tell enough."""
    scales = AblationMode.parse(mode, adapter_names(control.config)).scales
    if all(scales.values()):
        asked = "--scale all=0.1,0.2,...,1"
    else:
        asked = "--mode " + ",".join(f"{name}={0.8 * scale:g}" for name, scale in scales.items())
        asked += " and more of the kind"
    return (
        f"{control.name} keeps a different share of the gain than {run.name} ({gain.value:.2f}) "
        f"and "
        f"was not measured close enough to it; see `gradroute eval {control.name} {asked}`"
    )


def _step(low: Point, high: Point) -> float:
    return high.scale - low.scale


def _gain(point: Point) -> GainKept | None:
    known = point.gain is not None and not math.isnan(point.gain.value)
    return point.gain if known else None


def _gain_of(point: Point) -> float:
    assert point.gain is not None
    return point.gain.value
