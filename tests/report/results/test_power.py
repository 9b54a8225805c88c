"""What could have been found, against brute force and another implementation."""

import math

import pytest
from scipy import stats

from gradroute.report.results.power import (
    detectable_difference,
    detectable_over_seeds,
    detectable_pairs,
)
from gradroute.system.statistics import difference, mcnemar_counts


def power_of_difference(n1: int, n2: int, rate: float, rise: float) -> float:
    """Every pair of counts, one by one."""
    first = stats.binom.pmf(range(n1 + 1), n1, min(1.0, rate + rise))
    second = stats.binom.pmf(range(n2 + 1), n2, rate)
    return sum(
        first[k1] * second[k2]
        for k1 in range(n1 + 1)
        for k2 in range(n2 + 1)
        if difference(k1, n1, k2, n2).lower > 0
    )


def power_of_pairs(n: int, against: float, gap: float) -> float:
    """Every split of the prompts into for, against and neither."""
    chances = [against + gap, against, max(0.0, 1 - 2 * against - gap)]
    return sum(
        float(stats.multinomial(n, chances).pmf([b, c, n - b - c]))
        for b in range(n + 1)
        for c in range(min(b, n - b) + 1)
        if b > c and mcnemar_counts(b, c) <= 0.05
    )


@pytest.mark.parametrize(("n1", "n2", "rate"), [(20, 20, 0.0), (25, 15, 0.3), (12, 30, 0.5)])
def test_the_least_rise_is_the_one_at_which_the_power_reaches_80_percent(
    n1: int, n2: int, rate: float
) -> None:
    found = detectable_difference(n1, n2, rate)
    assert power_of_difference(n1, n2, rate, found + 1e-3) >= 0.8
    assert power_of_difference(n1, n2, rate, found - 1e-3) < 0.8


@pytest.mark.parametrize(("n", "against"), [(12, 0.0), (20, 0.05), (30, 0.1)])
def test_the_least_difference_of_pairs_is_the_one_at_which_the_power_reaches_80_percent(
    n: int, against: float
) -> None:
    found = detectable_pairs(n, against)
    assert power_of_pairs(n, against, found + 1e-3) >= 0.8
    assert power_of_pairs(n, against, found - 1e-3) < 0.8


@pytest.mark.parametrize(
    ("n", "rate", "rise"),
    # statsmodels 0.15: the rise at which NormalIndPower.solve_power gives 80 % for n per sample.
    [(128, 0.3, 0.1694), (256, 0.5, 0.1226), (1024, 0.2, 0.0517), (128, 0.6, 0.1620)],
)
def test_away_from_0_and_1_it_is_near_the_usual_approximation(
    n: int, rate: float, rise: float
) -> None:
    assert detectable_difference(n, n, rate) == pytest.approx(rise, rel=0.01)


def test_near_0_it_is_more_careful_than_the_usual_approximation() -> None:
    # statsmodels 0.15 as above gives 0.030 at a rate of 0, which 128 completions never show.
    assert detectable_difference(128, 128, 0.0) == pytest.approx(0.052, abs=0.001)


def test_more_examples_find_smaller_differences() -> None:
    for find in (lambda n: detectable_difference(n, n, 0.1), lambda n: detectable_pairs(n, 0.05)):
        found = [find(n) for n in (50, 100, 200, 400)]
        assert found == sorted(found, reverse=True)


def test_so_few_that_nothing_could_be_found_give_no_number() -> None:
    assert math.isnan(detectable_pairs(5, 0.0))  # the least p of 5 pairs is 0.0625
    assert math.isnan(detectable_difference(2, 2, 0.5))
    assert math.isnan(detectable_difference(50, 50, 1.0))


def test_over_seeds_it_is_what_a_simulated_t_test_finds_in_about_80_percent() -> None:
    differences = [0.1, 0.25, 0.31, 0.2]
    found = detectable_over_seeds(differences)
    spread = stats.tstd(differences)
    draws = stats.norm(found, spread).rvs((4000, 4), random_state=1)
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / 2)
    assert (abs(t) >= stats.t.ppf(0.975, 3)).mean() == pytest.approx(0.8, abs=0.06)


def test_one_seed_or_equal_ones_say_nothing_of_what_seeds_would_find() -> None:
    assert math.isnan(detectable_over_seeds([0.3]))
    assert math.isnan(detectable_over_seeds([0.3, 0.3, 0.3]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detectable_difference(0, 5, 0.1), "at least one example each, got 0 and 5"),
        (lambda: detectable_difference(5, 5, 1.5), "a rate lies between 0 and 1, got 1.5"),
        (lambda: detectable_pairs(0, 0.1), "at least one prompt, got 0"),
    ],
)
def test_what_has_no_answer_is_refused_in_words(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
