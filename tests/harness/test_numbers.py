"""Intervals over documents: closed forms where there are any, else a bootstrap, always paired."""

import math
import random
from statistics import fmean, stdev

import pytest

from gradroute.harness.numbers import Number, difference, summary
from gradroute.system.statistics import paired_difference, wilson


def perplexity(values):
    return math.exp(-fmean(values))


def test_zeros_and_ones_have_the_interval_of_wilson():
    number = summary([1.0, 0.0, True, 0], None)
    assert (number.value, number.lower, number.upper) == (0.5, *wilson(2, 4))
    assert number.stderr == pytest.approx(stdev([1, 0, 1, 0]) / 2)


def test_other_means_have_the_normal_interval_of_their_standard_error():
    values = [0.2, 0.9, 0.4, 0.1, 0.7]
    number = summary(values, None)
    error = stdev(values) / math.sqrt(5)
    assert number == pytest.approx(
        (fmean(values), error, fmean(values) - 1.96 * error, fmean(values) + 1.96 * error), rel=1e-3
    )


def test_a_bootstrap_finds_the_standard_error_of_a_mean():
    draw = random.Random(1)
    values = [draw.gauss(3, 2) for _ in range(200)]
    number = summary(values, fmean)
    assert number.value == pytest.approx(fmean(values))
    assert number.stderr == pytest.approx(stdev(values) / math.sqrt(200), rel=0.1)
    assert number.lower is not None and number.upper is not None and number.value is not None
    assert number.lower < number.value < number.upper
    assert number == summary(values, fmean)


def test_differences_are_paired_over_the_documents():
    draw = random.Random(2)
    hard = [draw.gauss(-50, 40) for _ in range(40)]
    easier = [value + 1 for value in hard]
    for aggregate in (None, fmean):
        gap = difference(easier, hard, aggregate)
        assert gap[0] == pytest.approx(1)
        assert gap.lower == pytest.approx(1) == gap.upper
    wide = difference(easier, hard, perplexity)
    assert wide.value == pytest.approx(perplexity(easier) - perplexity(hard))


def test_differences_of_zeros_and_ones_count_the_documents_that_differ():
    first, second = [1, 1, 1, 0, 0], [1, 0, 0, 1, 0]
    gap = difference(first, second, None)
    assert (gap.value, gap.lower, gap.upper) == (0.2, *paired_difference(2, 1, 5))


@pytest.mark.parametrize("values", [[], ["a", "b"], [1.0, float("nan")], [1.0, None]])
def test_what_is_no_number_has_none(values):
    assert summary(values, None) == Number(None)
    assert difference(values, values, None) == Number(None)


def test_one_document_has_a_number_and_no_interval():
    assert summary([0.3], None) == Number(0.3)
    assert summary([0.3], perplexity) == Number(perplexity([0.3]))
    assert difference([0.5], [0.25], None) == Number(0.25)


def test_an_aggregation_that_fails_is_not_known():
    assert summary([1.0, 2.0], lambda values: 1 / 0) == Number(None)
    assert summary([1.0, 2.0], lambda values: float("inf")) == Number(None)
