"""Intervals and tests for rates, token means and seeds, in plain Python.

Every function takes counts or numbers and returns numbers; none reads a file or knows a run.
Rates are shares from 0 to 1. Intervals are two-sided and of 95 %.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    lower: float
    upper: float


class Mean(NamedTuple):
    """A mean with its interval, and the standard deviation of what was averaged."""

    mean: float
    lower: float
    upper: float
    std: float


class Ratio(NamedTuple):
    """A ratio of two totals with its interval."""

    value: float
    lower: float
    upper: float


_Z = NormalDist().inv_cdf(0.975)


def wilson(k: int, n: int) -> Interval:
    """Interval of a rate: `k` of `n`.

    The score interval of E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", J. Am. Stat. Assoc. 22 (1927) 209-212: with p = k/n and z the normal quantile,
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). It stays within 0 and 1, and 0 of n has
    an upper end well above 0.

    Raises:
        ValueError: If n is not positive or k is not between 0 and n.
    """
    _check_counts(k, n)
    z = _Z
    rate = k / n
    center = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the formula is exactly 0 or 1; rounding would miss it by 1e-17 or so.
    lower = 0.0 if k == 0 else (center - half) / scale
    upper = 1.0 if k == n else (center + half) / scale
    return Interval(lower, upper)


def difference(k1: int, n1: int, k2: int, n2: int) -> Interval:
    """Interval of the difference of two rates, k1/n1 - k2/n2, of independent samples.

    The hybrid score interval, method 10 of R. G. Newcombe, "Interval estimation for the difference
    between independent proportions: comparison of eleven methods", Statist. Med. 17 (1998)
    873-890: with Wilson intervals (l, u) of both rates p,
    p1 - p2 - √((p1 - l1)² + (u2 - p2)²)  to  p1 - p2 + √((u1 - p1)² + (p2 - l2)²).
    For two modes on the same prompts, whose outcomes rise and fall together, `paired_difference`
    is narrower.

    Raises:
        ValueError: If an n is not positive or a k is not between 0 and its n.
    """
    lower1, upper1 = wilson(k1, n1)
    lower2, upper2 = wilson(k2, n2)
    rate1, rate2 = k1 / n1, k2 / n2
    gap = rate1 - rate2
    return Interval(
        gap - math.hypot(rate1 - lower1, upper2 - rate2),
        gap + math.hypot(upper1 - rate1, rate2 - lower2),
    )


def paired_difference(only_first: int, only_second: int, n: int) -> Interval:
    """Interval of the difference of two rates on the same prompts, (b - c) / n.

    The adjusted Wald interval of D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval
    for a difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37 (2012)
    479-488: with p = (b + 1)/(n + 2) and q = (c + 1)/(n + 2),
    p - q ± z √((p + q - (p - q)²) / (n + 2)), kept within -1 and 1.

    Args:
        only_first: Prompts on which only the first mode shows the behavior, b.
        only_second: Prompts on which only the second does, c.
        n: All prompts.

    Raises:
        ValueError: If n is not positive or the counts do not fit into it.
    """
    _check_counts(only_first, n)
    _check_counts(only_second, n)
    _check_counts(only_first + only_second, n)
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    gap = first - second
    half = _Z * math.sqrt((first + second - gap * gap) / (n + 2))
    return Interval(max(-1.0, gap - half), min(1.0, gap + half))


def mcnemar_counts(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of whether two modes differ on the same prompts.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions",
    Psychometrika 12 (1947) 153-157, with the binomial distribution instead of its normal
    approximation: of the b + c pairs that disagree, min(b, c) or fewer fall on one side with
    probability Σ C(b+c, i) / 2^(b+c), taken twice and at most 1. No pair that disagrees: p = 1.

    Args:
        only_first: Prompts on which only the first mode shows the behavior, b.
        only_second: Prompts on which only the second does, c.
    """
    total = only_first + only_second
    tail, term = 0, 1  # term = C(total, i), in whole numbers: exact for any total
    for i in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (total - i) // (i + 1)
    return min(1.0, 2 * tail / 2**total)


def t_interval(means: Sequence[float]) -> Interval:
    """Interval over seeds: mean of the seeds' means ± t √(s²/m), with m - 1 degrees of freedom.

    The seed is the unit: examples of one seed are not independent draws, so they are never pooled.

    Args:
        means: One value per seed, at least two, not all of them equal.

    Raises:
        ValueError: If there are fewer than two means, one is not finite, or all are equal: the
            formula would then claim certainty.
    """
    if len(means) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, got {len(means)}")
    _check_finite("mean", means)
    if max(means) == min(means):
        raise ValueError(
            f"all {len(means)} seeds gave {means[0]}, so a t interval has no width: report the "
            "value without an interval"
        )
    center = fmean(means)
    half = t_quantile(0.95, len(means) - 1) * stdev(means) / math.sqrt(len(means))
    return Interval(center - half, center + half)


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t test: whether the differences of pairs are 0 on average.

    Student, "The probable error of a mean", Biometrika 6 (1908) 1-25.

    Raises:
        ValueError: If there are fewer than two differences, one is not finite, or all are equal:
            then their spread, which the test goes by, is not known.
    """
    if len(differences) < 2:
        raise ValueError(f"a t test needs at least 2 differences, got {len(differences)}")
    _check_finite("difference", differences)
    if max(differences) == min(differences):
        raise ValueError(
            f"all {len(differences)} differences are {differences[0]}: a t test needs differences "
            f"that vary"
        )
    m = len(differences)
    t = fmean(differences) / (stdev(differences) / math.sqrt(m))
    return max(0.0, 1 - _t_coverage(math.atan(abs(t) / math.sqrt(m - 1)), m - 1))


def t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = confidence, for Student's T with a whole number of degrees.

    Found by bisection over θ = arctan(t / √degrees) in the finite sums of Abramowitz and Stegun,
    Handbook of Mathematical Functions, 26.7.3 and 26.7.4, whose terms are all positive.

    Raises:
        ValueError: If degrees is below 1 or confidence is not between 0 and 1.
    """
    if degrees < 1:
        raise ValueError(f"a t interval needs at least 1 degree of freedom, got {degrees}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95, got {confidence}")
    low, high = 0.0, math.pi / 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return math.sqrt(degrees) * math.tan(middle)
        if _t_coverage(middle, degrees) < confidence:
            low = middle
        else:
            high = middle


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for testing them all, in the order given.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979)
    65-70: the i-th smallest of m is multiplied by m - i + 1, made no smaller than those before
    it, and at most 1. Rejecting those at or below a level keeps the chance of any false
    rejection at or below it.

    Raises:
        ValueError: If a value is not between 0 and 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"a p-value lies between 0 and 1, got {p}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def ratio_mean(sums: Sequence[float], counts: Sequence[int]) -> Mean:
    """Mean over all tokens of several examples, Σ sums / Σ counts, such as a held-out loss.

    The tokens of an example are not independent, so the example is the unit: see `ratio` for the
    interval. The paired difference of two modes on the same examples is the `ratio_mean` of
    the differences of their sums.

    Args:
        sums: Sum over the target tokens of each example.
        counts: Number of target tokens of each example.

    Returns:
        The mean per token, its interval, and the standard deviation over the examples' own means.
        With one example, interval and standard deviation are NaN: not known.

    Raises:
        ValueError: If there is no example, the lengths differ, a count is not positive or a sum is
            not finite.
    """
    for index, count in enumerate(counts):
        if count <= 0:
            raise ValueError(f"example {index} has {count} tokens: a mean needs at least one")
    value, lower, upper = ratio(sums, [float(count) for count in counts])
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return Mean(value, lower, upper, stdev(means) if len(means) > 1 else math.nan)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Ratio of two totals over the same examples, R = Σ y / Σ x, with a normal interval.

    The standard error is linearized over examples (W. G. Cochran, Sampling Techniques, 3rd ed.
    1977, chapter 6; it equals the cluster-robust error of a regression on a constant):
    se² = n/(n-1) Σ (y - R x)² / (Σ x)². It needs Σ x well away from 0.

    Besides token means this is gain kept: y = what ablated tuning gained on each example, x = what
    the baseline gained on the same ones.

    Returns:
        R and its interval; with one example the interval is NaN: not known.

    Raises:
        ValueError: If there is no example, the lengths differ, a number is not finite, or the
            denominators add up to 0.
    """
    n = len(numerators)
    if n == 0 or n != len(denominators):
        raise ValueError(
            f"a ratio needs two lists of one length with at least one example, got {n} and "
            f"{len(denominators)}"
        )
    _check_finite("numerator", numerators)
    _check_finite("denominator", denominators)
    total = math.fsum(denominators)
    if total == 0:
        raise ValueError("the denominators add up to 0, so there is no ratio")
    value = math.fsum(numerators) / total
    if n == 1:
        return Ratio(value, math.nan, math.nan)
    squares = math.fsum((y - value * x) ** 2 for y, x in zip(numerators, denominators, strict=True))
    half = _Z * math.sqrt(n / (n - 1) * squares) / abs(total)
    return Ratio(value, value - half, value + half)


def _t_coverage(theta: float, degrees: int) -> float:
    """P(|T| <= √degrees tan θ): Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2 == 1
    term, total = (cosine if odd else 1.0), 0.0
    # Powers of the cosine up to degrees - 2, each coefficient made from the one before.
    for power in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return (theta + sine * total) * 2 / math.pi if odd else sine * total


def _check_counts(k: int, n: int) -> None:
    if n <= 0:
        raise ValueError(f"a rate needs at least one example, got n = {n}")
    if not 0 <= k <= n:
        raise ValueError(f"a rate of {k} in {n} is impossible: k lies between 0 and n")


def _check_finite(what: str, values: Sequence[float]) -> None:
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{what} {index} is {value}, not a finite number")
