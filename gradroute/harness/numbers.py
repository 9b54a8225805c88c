"""Numbers with intervals from the values of single documents, and differences of modes.

Documents are the unit. Two modes answer the same documents, so their difference is paired.
"""

import math
import random
from collections.abc import Callable, Sequence
from statistics import stdev
from typing import Any, NamedTuple

from gradroute.system.statistics import paired_difference, ratio, wilson

Aggregate = Callable[[Sequence[Any]], float]
"""Makes one number of the values of all documents, such as a perplexity."""

RESAMPLES = 1000
"""Bootstrap resamples where there is no formula."""


class Number(NamedTuple):
    """A number with its standard error and 95 % interval; None where they are not known."""

    value: float | None
    stderr: float | None = None
    lower: float | None = None
    upper: float | None = None


def summary(values: Sequence[Any], aggregate: Aggregate | None) -> Number:
    """The number that documents' values make.

    A mean of zeros and ones has Wilson's interval, another mean the normal one of its standard
    error s/√n, any other number the percentiles of a bootstrap over the documents (B. Efron,
    "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979) 1-26).

    Args:
        values: One per document.
        aggregate: What makes the number; None for the mean.
    """
    if aggregate is not None:
        return _bootstrap(lambda chosen: aggregate([values[at] for at in chosen]), len(values))
    numbers = _numbers(values)
    if numbers is None:
        return Number(None)
    mean = _mean(numbers)
    if len(numbers) > 1 and set(numbers) <= {0.0, 1.0}:
        lower, upper = wilson(round(math.fsum(numbers)), len(numbers))
        return mean._replace(lower=lower, upper=upper)
    return mean


def difference(first: Sequence[Any], second: Sequence[Any], aggregate: Aggregate | None) -> Number:
    """The number of the first mode minus that of the second, on the same documents in one order.

    Zeros and ones have the interval of Bonett and Price (see `gradroute.system.statistics`), other
    means the normal one of the documents' differences, any other number the percentiles of a
    bootstrap that takes the same documents of both.
    """
    assert len(first) == len(second), "two modes on different documents"
    if aggregate is not None:

        def gap(chosen: Sequence[int]) -> float:
            one, other = ([values[at] for at in chosen] for values in (first, second))
            return aggregate(one) - aggregate(other)

        return _bootstrap(gap, len(first))
    ones, others = _numbers(first), _numbers(second)
    if ones is None or others is None:
        return Number(None)
    gaps = [one - other for one, other in zip(ones, others, strict=True)]
    mean = _mean(gaps)
    if {*ones, *others} <= {0.0, 1.0}:
        bounds = paired_difference(gaps.count(1.0), gaps.count(-1.0), len(gaps))
        return Number(mean.value, None, *bounds)
    return mean


def _mean(numbers: Sequence[float]) -> Number:
    """The mean with the normal interval of its standard error; none of one number alone."""
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return Number(mean)
    found = ratio(numbers, [1.0] * len(numbers))
    return Number(mean, stdev(numbers) / math.sqrt(len(numbers)), found.lower, found.upper)


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as finite numbers; None if one is something else."""
    fine = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return [float(value) for value in values] if fine and values else None


def _bootstrap(number: Callable[[Sequence[int]], float], n: int) -> Number:
    """A number of n documents with the deviation and the 95 % percentiles over resamples of them.

    Whatever cannot be computed, by an aggregation that is a task's own too, is not known.
    """
    draw = random.Random(0)
    places = range(n)
    try:
        value = float(number(places))
        found = sorted(float(number(draw.choices(places, k=n))) for _ in range(RESAMPLES))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return Number(None)
    if n < 2 or not all(map(math.isfinite, (value, *found))):
        return Number(value if math.isfinite(value) else None)
    tail = round(0.025 * RESAMPLES)
    return Number(value, stdev(found), found[tail], found[-tail - 1])
