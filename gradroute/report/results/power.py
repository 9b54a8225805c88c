"""The smallest difference that a given number of examples would have shown.

A difference that was not found says little unless one of its size would have been. All of these
are exact for the test that the reports use: no normal approximation, which is far too hopeful
where a rate is near 0.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import stdev

from gradroute.system.statistics import difference, t_quantile

POWER = 0.8
"""The probability with which a difference is to be found."""


@lru_cache(maxsize=256)
def detectable_difference(n1: int, n2: int, rate: float) -> float:
    """The smallest rise above a rate that two independent samples would show.

    It is found if Newcombe's 95 % interval (`statistics.difference`) lies above 0. The power is the
    exact sum over both binomial distributions; the rise is the least one with that power.

    Args:
        n1: Size of the sample with the higher rate.
        n2: Size of the other.
        rate: Of the other.

    Returns:
        The rise, or NaN where even a rate of 1 would not be told from it.

    Raises:
        ValueError: If a size is not positive, or the rate no share.
    """
    _check(rate)
    if min(n1, n2) < 1:
        raise ValueError(f"samples need at least one example each, got {n1} and {n2}")
    least = _least_shown(n1, n2)
    other = _binomial(n2, rate)

    def found(rise: float) -> float:
        upper = _tails(n1, rate + rise)
        return math.fsum(p * upper[k] for p, k in zip(other, least, strict=True))

    return _least(found, 1 - rate)


@lru_cache(maxsize=256)
def detectable_pairs(n: int, against: float) -> float:
    """The smallest difference of two modes on the same prompts that McNemar's test would show.

    It is found if the exact two-sided p is at most 0.05. A share `against` of the prompts disagrees
    the other way; the share that disagrees in favor is raised until the power is reached.

    Args:
        n: Prompts.
        against: Share of the prompts on which only the lower mode shows the behavior.

    Returns:
        The difference of the two shares, or NaN where so few prompts can show none.

    Raises:
        ValueError: If n is not positive, or a share lies outside 0 and 1.
    """
    _check(against)
    if n < 1:
        raise ValueError(f"pairs need at least one prompt, got {n}")
    most = [_most_against(total) for total in range(n + 1)]

    def found(gap: float) -> float:
        disagree = 2 * against + gap
        if disagree == 0:
            return 0.0
        totals = _binomial(n, min(1.0, disagree))
        return math.fsum(
            p * math.fsum(_binomial(total, against / disagree, most[total]))
            for total, p in enumerate(totals)
            if p > 1e-9
        )

    return _least(found, 1 - 2 * against)


def detectable_over_seeds(differences: Sequence[float]) -> float:
    """The smallest mean difference that as many seeds with that spread would show.

    The approximation (t for 95 % + t for the power) s / √m with m - 1 degrees of freedom, as in
    J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. 1988, chapter 2.

    Returns:
        The difference, or NaN with fewer than two seeds or without any spread.
    """
    m = len(differences)
    if m < 2 or max(differences) == min(differences):
        return math.nan
    both = t_quantile(0.95, m - 1) + t_quantile(2 * POWER - 1, m - 1)
    return both * stdev(differences) / math.sqrt(m)


def _least(found: Callable[[float], float], most: float) -> float:
    """The least argument up to `most` with the power, by bisection to 1e-4."""
    if most <= 0 or found(most) < POWER:
        return math.nan
    low, high = 0.0, most
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= POWER else (middle, high)
    return high


def _least_shown(n1: int, n2: int) -> list[int]:
    """For every k2 of n2 the least k1 of n1 that lies above it by the interval; n1 + 1 for none."""
    least, k1 = [], 0
    for k2 in range(n2 + 1):
        while k1 <= n1 and difference(k1, n1, k2, n2).lower <= 0:
            k1 += 1
        least.append(k1)
    return least


@lru_cache(maxsize=4096)
def _most_against(total: int) -> int:
    """The most of `total` disagreeing pairs that may be against, for p <= 0.05; -1 for none."""
    tail, term, most = 0, 1, -1
    for k in range(total // 2 + 1):
        tail += term
        if 40 * tail > 2**total:  # 2 tail / 2^total > 0.05, in whole numbers
            break
        most, term = k, term * (total - k) // (k + 1)
    return most


def _binomial(n: int, rate: float, most: int | None = None) -> list[float]:
    """P(K = k) for k from 0 to n, or to `most`."""
    last = n if most is None else most
    if rate <= 0 or rate >= 1:
        return [float(k == (0 if rate <= 0 else n)) for k in range(last + 1)]
    yes, no, whole = math.log(rate), math.log1p(-rate), math.lgamma(n + 1)
    return [
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * yes + (n - k) * no)
        for k in range(last + 1)
    ]


def _tails(n: int, rate: float) -> list[float]:
    """P(K >= k) for k from 0 to n + 1."""
    tails = [0.0]
    for p in reversed(_binomial(n, rate)):
        tails.append(min(1.0, tails[-1] + p))
    return tails[::-1]


def _check(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"a rate lies between 0 and 1, got {share}")
