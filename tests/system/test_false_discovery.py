"""p-values and the false discovery rate, against scipy, their definitions and simulation."""

import numpy as np
import pytest
from numpy import ndarray
from scipy import stats

from gradroute.system.false_discovery import (
    bad_rows,
    conformal_p_values,
    fit_tail,
    least_by_rank,
    q_values,
    tail_p_values,
    upper_p_values,
)


def draws(seed: int, n: int) -> ndarray:
    return np.random.default_rng(seed).standard_normal(n)


def test_conformal_p_values_equal_their_definition_with_ties():
    scores, null = np.round(draws(0, 60), 1), np.round(draws(1, 40), 1)
    expected = [(1 + sum(other >= score for other in null)) / 41 for score in scores]
    assert conformal_p_values(scores, null) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no null"):
        conformal_p_values(scores, null[:0])


@pytest.mark.parametrize("n", [1, 2, 50, 500])
def test_q_values_equal_scipys_and_do_not_depend_on_the_order(n: int):
    p = np.round(np.random.default_rng(n).random(n), 2)
    assert q_values(p) == pytest.approx(stats.false_discovery_control(p))
    assert q_values(p[::-1])[::-1] == pytest.approx(q_values(p))


@pytest.mark.parametrize("shape", [0.0, 0.2, 0.4])
def test_the_fitted_tail_finds_the_distribution_that_scores_were_drawn_from(shape: float):
    null = np.asarray(stats.genpareto.rvs(shape, scale=2.0, size=20_000, random_state=5))
    tail = fit_tail(null, share=1.0)
    assert tail is not None
    assert tail.shape == pytest.approx(shape, abs=0.05)
    at = np.array([5.0, 20.0, 60.0])
    expected = stats.genpareto.sf(at, shape, scale=2.0)
    assert np.log(tail.p_values(at)) == pytest.approx(np.log(expected), rel=0.15)


def test_the_tail_continues_the_ranks_below_the_smallest_p_value_that_they_can_give():
    null = draws(2, 400)
    scores = np.array([-3.0, 0.0, 3.0, 6.0, 9.0])
    ranks, p = conformal_p_values(scores, null), tail_p_values(scores, null)
    assert (p[:2] == ranks[:2]).all()
    assert (np.diff(p) < 0).all()
    assert 0 < p[-1] < p[-2] < 1 / 401 == ranks[-1]


def test_few_or_equal_null_scores_leave_the_ranks():
    for null in (draws(3, 19), np.zeros(100)):
        assert fit_tail(null) is None
        scores = np.array([0.0, 50.0])
        assert (tail_p_values(scores, null) == conformal_p_values(scores, null)).all()


@pytest.mark.parametrize("nulls", [60, 300])
def test_among_the_found_at_most_the_nominal_share_is_false_on_average(nulls: int):
    rates, powers = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores = np.concatenate([rng.standard_normal(900), rng.standard_normal(100) + 5])
        found = q_values(tail_p_values(scores, rng.standard_normal(nulls))) <= 0.05
        rates.append(found[:900].sum() / max(1, found.sum()))
        powers.append(found[900:].mean())
    assert np.mean(rates) <= 0.07
    assert np.mean(powers) >= 0.7


def test_the_number_of_bad_rows_lies_in_its_interval_in_about_95_percent_of_mixtures():
    hits = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = np.concatenate([rng.standard_normal(900), rng.standard_normal(100) + 6])
        found = bad_rows(scores, rng.standard_normal(300), draws=200)
        assert found.lower <= found.value <= found.upper
        hits.append(found.lower <= 100 <= found.upper)
    assert np.mean(hits) >= 0.85


def test_ranks_find_no_fewer_rows_than_said():
    tests, nulls, rate = 4000, 256, 0.05
    least = least_by_rank(tests, nulls, rate)
    null = draws(0, nulls)
    for count in (least - 1, least):
        scores = np.concatenate([np.full(count, 99.0), np.full(tests - count, -99.0)])
        found = q_values(conformal_p_values(scores, null)) <= rate
        assert found.sum() == (count if count == least else 0)


def test_the_upper_bound_is_above_the_p_value_and_approaches_it_with_more_null_scores():
    scores = np.linspace(1.0, 6.0, 30)
    distances = []
    for nulls in (50, 5000):
        null = draws(7, nulls)
        p, upper = tail_p_values(scores, null), upper_p_values(scores, null)
        assert (np.diff(upper) <= 0).all()
        assert (upper <= 1).all()
        distances.append(np.log(upper / p).max())
        assert upper_p_values(scores, null, bound=0.2).sum() < upper.sum()
    assert 0 < distances[1] < 0.6 * distances[0]


def test_where_null_scores_have_a_heavy_tail_the_bound_lowers_the_share_of_false_finds():
    shares: dict[str, list[float]] = {"p": [], "upper": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        good, null = rng.standard_exponential(2000) ** 1.5, rng.standard_exponential(68) ** 1.5
        scores = np.concatenate([good, rng.standard_exponential(200) + 19])
        for name, rule in (("p", tail_p_values), ("upper", upper_p_values)):
            found = q_values(rule(scores, null)) <= 0.05
            shares[name].append(found[:2000].sum() / max(1, found.sum()))
    assert np.mean(shares["upper"]) < 0.06 < 0.07 < np.mean(shares["p"])
