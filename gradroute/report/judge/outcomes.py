"""The words for an outcome and the margins behind them, the same for every claim."""

from gradroute.report.results.seeds import OverSeeds

SHOWN = "shown"
NOT_SHOWN = "not shown"
INCONCLUSIVE = "inconclusive"
NOT_LEARNED = "not shown: the behavior was not learned"
DAMAGED = "not shown: the model is damaged"
IDLE = "not shown: the modes do not differ"

LOWER = "lower"
HIGHER = "higher"
SAME = "no different"
NOT_MEASURED = "not measured"

MARGIN = 0.05
"""Difference of two rates over seeds within which they count as no different."""
GOAL_GAIN = 0.9
"""Gain kept from which on a routed run counts as whole beside an oracle."""


def side(difference: OverSeeds) -> str:
    """Where the first of two rates lies, by the interval of their difference."""
    if difference.upper < 0:
        return LOWER
    if difference.lower > 0:
        return HIGHER
    within = difference.lower >= -MARGIN and difference.upper <= MARGIN
    return SAME if within else INCONCLUSIVE
