"""p-values against examples that are known to be good, and how many of the finds are false.

A score says how much an example looks unwanted. Scores of null examples, which are known not to be,
say how often a good example scores as high.

    conformal_p_values   rank among the null scores
    tail_p_values        the same, with a fitted tail where the rank cannot be small enough
    upper_p_values       an upper bound of these over draws of the null scores
    q_values             Benjamini and Hochberg's adjustment
    bad_rows             how many of the examples are not null, with an interval
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

LEAST_NULL = 20
"""With fewer null scores than this their tail cannot be fitted."""
BOUND = 0.8
"""Quantile over bootstrap draws that bounds a p-value; chosen on scores of seeds 100 to 102."""
DRAWS = 100


def conformal_p_values(
    scores: Float[ndarray, " m"], null: Float[ndarray, " n"]
) -> Float[ndarray, " m"]:
    """`p_i = (1 + #{null >= score_i}) / (n + 1)`, never below 1 / (n + 1).

    Valid where null scores and those of good examples are exchangeable. Together with
    Benjamini and Hochberg's procedure the false discovery rate is kept although all p-values share
    the null scores: S. Bates, E. Candès, L. Lei, Y. Romano, M. Sesia, "Testing for outliers with
    conformal p-values", Ann. Statist. 51 (2023) 149-178, Theorem 2 and Corollary 1.

    Raises:
        ValueError: There is no null score.
    """
    if not len(null):
        raise ValueError("no null score was given.")
    below = np.searchsorted(np.sort(null), scores, side="left")
    return (1.0 + len(null) - below) / (len(null) + 1.0)


class Tail(NamedTuple):
    """A generalized Pareto distribution above a threshold.

    `P(score > threshold + y) = share * (1 + shape * y / scale) ** (-1 / shape)`, and
    `share * exp(-y / scale)` where the shape is 0.

    Attributes:
        threshold: Score from which on the tail is fitted.
        share: Share of the null scores above it.
        shape: Above 0 for a tail heavier than an exponential one.
        scale: In units of the score.
    """

    threshold: float
    share: float
    shape: float
    scale: float

    def p_values(self, scores: Float[ndarray, " m"]) -> Float[ndarray, " m"]:
        """Probability that a null score exceeds each score; it holds above the threshold only."""
        excess = np.maximum(scores - self.threshold, 0.0) / self.scale
        if abs(self.shape) < 1e-9:
            return self.share * np.exp(-excess)
        return self.share * (1.0 + self.shape * excess) ** (-1.0 / self.shape)


def fit_tail(null: Float[ndarray, " n"], share: float = 0.1) -> Tail | None:
    """A generalized Pareto tail of the upper `share` of the null scores, at least 15 of them.

    By probability-weighted moments: J. R. M. Hosking, J. R. Wallis, "Parameter and quantile
    estimation for the generalized Pareto distribution", Technometrics 29 (1987) 339-349, section
    4 (their k is minus the shape). The shape is held at 0 or above: a tail that is fitted as
    bounded would give a p-value of 0 to whatever lies beyond its end.

    Returns:
        None with fewer than `LEAST_NULL` null scores, or where the upper ones are all equal.
    """
    if len(null) < LEAST_NULL:
        return None
    ordered = np.sort(null)
    count = min(max(15, math.ceil(share * len(null))), len(null) - 1)
    threshold = float(ordered[-count - 1])
    excess = ordered[-count:] - threshold
    first = float(excess.mean())
    weights = 1.0 - (np.arange(1, count + 1) - 0.35) / count
    second = float((weights * excess).mean())
    if first <= 0.0 or first <= 2.0 * second:
        return None
    shape = 2.0 - first / (first - 2.0 * second)
    if shape <= 0.0:
        return Tail(threshold, count / len(null), 0.0, first)
    return Tail(threshold, count / len(null), shape, 2.0 * first * second / (first - 2.0 * second))


def tail_p_values(
    scores: Float[ndarray, " m"], null: Float[ndarray, " n"], share: float = 0.1
) -> Float[ndarray, " m"]:
    """Conformal p-values, below the tail's threshold; above it those of the fitted tail.

    Where a tail cannot be fitted they are the conformal ones everywhere.
    """
    p = conformal_p_values(scores, null)
    tail = fit_tail(null, share)
    if tail is None:
        return p
    return np.where(scores > tail.threshold, np.minimum(tail.p_values(scores), p), p)


def upper_p_values(
    scores: Float[ndarray, " m"],
    null: Float[ndarray, " n"],
    *,
    bound: float = BOUND,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[ndarray, " m"]:
    """The quantile `bound` of `tail_p_values` over bootstrap draws of the null scores.

    A fitted tail is right on average over samples of null scores, and every false find of a run
    shares one sample. Where it made the tail too light, all p-values are too small at once. A draw
    with replacement shows how far the tail moves (B. Efron, R. Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13: percentile bounds). With many null scores the bound is close to
    the p-value itself.
    """
    rng = np.random.default_rng(seed)
    drawn = [tail_p_values(scores, rng.choice(null, len(null))) for _ in range(draws)]
    return np.quantile(drawn, bound, axis=0)


def q_values(p: Float[ndarray, " m"]) -> Float[ndarray, " m"]:
    """The smallest false discovery rate at which each is found: `min over j >= i of m p_j / j`.

    Y. Benjamini, Y. Hochberg, "Controlling the false discovery rate", J. R. Statist. Soc. B 57
    (1995) 289-300; p-values in ascending order, ties alike.
    """
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.minimum.accumulate(scaled[::-1])[::-1]
    q = np.empty_like(adjusted)
    q[order] = np.minimum(adjusted, 1.0)
    return q


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    lower: float
    upper: float


def bad_rows(
    scores: Float[ndarray, " m"],
    null: Float[ndarray, " n"],
    *,
    at: float = 0.1,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How many of the examples are not null.

    With `k` scores above the null scores' upper quantile `at`, `(k - at m) / (1 - at)`: Storey's
    estimate (J. R. Statist. Soc. B 64 (2002) 479-498) with lambda = `at`. Examples that are not
    null and score below that quantile are not counted. The interval holds percentiles of a
    bootstrap of both samples.
    """
    ordered = np.sort(null)
    rng = np.random.default_rng(seed)

    def estimate(own: Float[ndarray, " m"], nulls: Float[ndarray, " n"]) -> float:
        above = float((own > np.quantile(nulls, 1.0 - at)).mean())
        return max(0.0, len(own) * (above - at) / (1.0 - at))

    drawn = [
        estimate(rng.choice(scores, len(scores)), rng.choice(ordered, len(ordered)))
        for _ in range(draws)
    ]
    lower, upper = np.quantile(drawn, (0.025, 0.975))
    return Estimate(estimate(scores, ordered), float(lower), float(upper))


def least_by_rank(tests: int, nulls: int, rate: float) -> int:
    """The fewest rows that ranks alone can find: `k rate / tests >= 1 / (nulls + 1)`."""
    return math.ceil(tests / (rate * (nulls + 1)))
