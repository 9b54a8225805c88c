"""Every interval and test against scipy, published figures, or its definition."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradroute.system.statistics import (
    difference,
    holm,
    mcnemar_counts,
    paired_difference,
    ratio,
    ratio_mean,
    t_interval,
    t_quantile,
    t_test,
    wilson,
)

CONFIDENCES = (0.5, 0.9, 0.95, 0.99, 0.999)


@st.composite
def rates(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 2000))
    return draw(st.integers(0, n)), n


@pytest.mark.parametrize("n", [1, 2, 7, 128, 100_000])
def test_wilson_equals_scipy_to_rounding(n: int):
    for k in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(rates())
def test_wilson_holds_the_rate_and_stays_between_0_and_1(rate: tuple[int, int]):
    k, n = rate
    lower, upper = wilson(k, n)
    assert 0 <= lower <= k / n <= upper <= 1
    assert upper - lower > 0


def test_wilson_ends_are_exact_where_nothing_or_everything_shows():
    assert wilson(0, 128).lower == 0.0
    assert wilson(128, 128).upper == 1.0
    assert wilson(0, 128).upper == pytest.approx(0.0291, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "lower", "upper"),
    # Method 10 of the paper; statsmodels 0.15, confint_proportions_2indep(method="newcomb").
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_difference_gives_the_figures_of_another_implementation(
    counts: tuple[int, int, int, int], lower: float, upper: float
):
    assert difference(*counts) == pytest.approx((lower, upper), abs=5.1e-5)


@given(rates(), rates())
def test_difference_is_antisymmetric_and_holds_the_difference(
    first: tuple[int, int], second: tuple[int, int]
):
    lower, upper = difference(*first, *second)
    mirrored = difference(*second, *first)
    assert (-mirrored.upper, -mirrored.lower) == pytest.approx((lower, upper), abs=1e-12)
    assert -1 - 1e-12 <= lower <= first[0] / first[1] - second[0] / second[1] <= upper <= 1 + 1e-12


@pytest.mark.parametrize("n", [20, 32, 128])
def test_paired_difference_covers_the_truth_about_as_often_as_it_says(n: int):
    """Exactly: every split of n prompts into first only, second only and neither or both."""
    shares = (0.0, 0.01, 0.05, 0.2, 0.5, 0.8, 1.0)
    coverages = []
    for first, second in itertools.product(shares, shares):
        if first + second > 1:
            continue
        covered = 0.0
        for b in range(n + 1):
            chance = stats.binom.pmf(b, n, first)
            if chance < 1e-9:
                continue
            rest = min(1.0, second / (1 - first)) if first < 1 else 0.0
            for c, other in enumerate(stats.binom.pmf(range(n - b + 1), n - b, rest)):
                if other > 1e-9:
                    lower, upper = paired_difference(b, c, n)
                    covered += chance * other * (lower - 1e-12 <= first - second <= upper + 1e-12)
        coverages.append(covered)
    assert min(coverages) > 0.92
    assert sum(coverages) / len(coverages) > 0.95


@given(st.integers(1, 500), st.data())
def test_paired_difference_is_antisymmetric_and_holds_the_difference(n: int, data: st.DataObject):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    lower, upper = paired_difference(b, c, n)
    mirrored = paired_difference(c, b, n)
    assert (-mirrored.upper, -mirrored.lower) == pytest.approx((lower, upper), abs=1e-12)
    assert -1 <= lower <= (b - c) / n + 1e-12 and (b - c) / n - 1e-12 <= upper <= 1


def test_paired_difference_is_narrower_than_that_of_independent_rates():
    # 70 of 128 against 50 of 128 where 45 prompts show it both times.
    paired, apart = paired_difference(25, 5, 128), difference(70, 128, 50, 128)
    assert paired.upper - paired.lower < apart.upper - apart.lower


@pytest.mark.parametrize(
    # statsmodels 0.15, mcnemar(exact=True) of tables with these off the diagonal.
    ("counts", "p_value"),
    [((12, 3), 0.03515625), ((1, 9), 0.021484375), ((0, 0), 1.0)],
)
def test_mcnemar_gives_the_figures_of_another_implementation(
    counts: tuple[int, int], p_value: float
):
    assert mcnemar_counts(*counts) == pytest.approx(p_value, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_disagree(only_first: int, only_second: int):
    total = only_first + only_second
    expected = stats.binomtest(only_first, total).pvalue if total else 1.0
    assert mcnemar_counts(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_stays_exact_for_thousands_of_pairs():
    expected = stats.binomtest(1900, 4000).pvalue
    assert mcnemar_counts(2100, 1900) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 29, 30, 101, 1000])
def test_t_quantile_equals_scipy(confidence: float, degrees: int):
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-10)


@given(st.lists(st.integers(-999, 999), min_size=2, max_size=9).filter(lambda x: len(set(x)) > 1))
def test_t_interval_equals_scipy(numbers: list[int]):
    means = [number / 64 for number in numbers]
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert t_interval(means) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(-999, 999), min_size=2, max_size=9).filter(lambda x: len(set(x)) > 1))
def test_t_test_equals_scipy(numbers: list[int]):
    differences = [number / 64 for number in numbers]
    t = sum(differences) / len(differences) / stats.sem(differences)
    expected = float(2 * stats.t.sf(abs(t), len(differences) - 1))
    assert t_test(differences) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_t_interval_gives_the_figures_of_another_implementation():
    # statsmodels 0.15, DescrStatsW([0.52, 0.49, 0.55]).tconfint_mean()
    found = t_interval([0.52, 0.49, 0.55])
    assert found == pytest.approx((0.44547586864749, 0.59452413135251), rel=1e-9)


def test_holm_gives_the_figures_of_another_implementation():
    # statsmodels 0.15, multipletests(..., method="holm")
    expected = [0.005, 0.09, 0.09, 0.2, 0.048]
    assert holm([0.001, 0.04, 0.03, 0.2, 0.012]) == pytest.approx(expected)


def test_holm_gives_the_adjusted_values_of_a_worked_example_in_the_given_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=6), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_closed_test_of_bonferroni_tests_rejects(
    p_values: list[float], level: float
):
    """Holm's procedure is the closure of Bonferroni: p is rejected if every set with it is."""
    indices = range(len(p_values))
    subsets = [s for r in range(1, len(p_values) + 1) for s in itertools.combinations(indices, r)]
    adjusted = holm(p_values)
    for i in indices:
        least = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s)
        assert adjusted[i] == pytest.approx(least)
        assert adjusted[i] >= p_values[i]


def _clusters(examples: int) -> list[list[float]]:
    generator = random.Random(7)
    means = [generator.gauss(2, 0.4) for _ in range(examples)]
    return [[generator.gauss(m, 1) for _ in range(generator.randint(1, 60))] for m in means]


def test_ratio_mean_is_the_mean_over_tokens_with_the_cluster_robust_error():
    clusters = _clusters(40)
    result = ratio_mean([sum(c) for c in clusters], [len(c) for c in clusters])
    tokens = [value for cluster in clusters for value in cluster]
    mean = sum(tokens) / len(tokens)
    # The sandwich estimator of a regression on a constant, spelled out over tokens.
    meat = sum(sum(value - mean for value in cluster) ** 2 for cluster in clusters)
    error = math.sqrt(40 / 39 * meat) / len(tokens)
    half = stats.norm.ppf(0.975) * error
    assert result[:3] == pytest.approx((mean, mean - half, mean + half), rel=1e-12)


def test_ratio_mean_of_equally_long_examples_is_the_plain_mean_of_their_means():
    sums = [3.0, 5.0, 4.0, 9.0]
    result = ratio_mean(sums, [10] * 4)
    means = [s / 10 for s in sums]
    error = stats.sem(means)
    assert result.mean == pytest.approx(sum(means) / 4)
    assert result.upper - result.mean == pytest.approx(stats.norm.ppf(0.975) * error)
    assert result.std == pytest.approx(stats.tstd(means))


def test_ratio_mean_covers_the_truth_about_as_often_as_it_says():
    generator = random.Random(3)
    hits = 0
    for _ in range(1000):
        counts = [generator.randint(5, 60) for _ in range(100)]
        sums = [c * generator.gauss(2, 0.5) for c in counts]
        result = ratio_mean(sums, counts)
        hits += result.lower <= 2 <= result.upper
    assert 0.92 < hits / 1000 < 0.97


def test_ratio_agrees_with_the_jackknife():
    generator = random.Random(5)
    base = [generator.gauss(0.3, 0.1) for _ in range(200)]
    kept = [0.9 * x + generator.gauss(0, 0.02) for x in base]
    result = ratio(kept, base)
    left_out = [(sum(kept) - y) / (sum(base) - x) for y, x in zip(kept, base, strict=True)]
    center = sum(left_out) / 200
    error = math.sqrt(199 / 200 * sum((v - center) ** 2 for v in left_out))
    assert result.value == pytest.approx(sum(kept) / sum(base))
    assert result.upper - result.value == pytest.approx(1.959964 * error, rel=0.02)


def test_one_example_gives_a_mean_without_an_interval():
    result = ratio_mean([6.0], [3])
    assert result.mean == 2.0
    assert math.isnan(result.lower) and math.isnan(result.upper) and math.isnan(result.std)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, 0), "at least one example, got n = 0"),
        (lambda: wilson(3, 2), "a rate of 3 in 2 is impossible"),
        (lambda: wilson(-1, 2), "a rate of -1 in 2 is impossible"),
        (lambda: difference(1, 2, 0, 0), "at least one example, got n = 0"),
        (lambda: paired_difference(3, 2, 4), "a rate of 5 in 4 is impossible"),
        (lambda: paired_difference(0, 0, 0), "at least one example, got n = 0"),
        (lambda: t_test([0.5]), "at least 2 differences, got 1"),
        (lambda: t_test([0.5, 0.5]), r"all 2 differences are 0\.5"),
        (lambda: t_test([0.5, math.inf]), "difference 1 is inf"),
        (lambda: t_interval([0.5]), "needs at least 2 seeds, got 1"),
        (lambda: t_interval([0.5, math.nan]), "mean 1 is nan, not a finite number"),
        (lambda: t_interval([0.0, 0.0]), r"all 2 seeds gave 0\.0, so a t interval has no width"),
        (lambda: t_quantile(95.0, 1), "confidence lies between 0 and 1, such as 0.95, got 95"),
        (lambda: t_quantile(0.95, 0), "at least 1 degree of freedom, got 0"),
        (lambda: holm([0.5, 1.5]), "a p-value lies between 0 and 1, got 1.5"),
        (lambda: holm([math.nan]), "a p-value lies between 0 and 1, got nan"),
        (lambda: ratio_mean([], []), "at least one example, got 0 and 0"),
        (lambda: ratio_mean([1.0], [1, 2]), "at least one example, got 1 and 2"),
        (lambda: ratio_mean([1.0, 2.0], [3, 0]), "example 1 has 0 tokens"),
        (lambda: ratio_mean([1.0, math.inf], [3, 3]), "numerator 1 is inf"),
        (lambda: ratio([1.0, 2.0], [1.0, -1.0]), "the denominators add up to 0"),
    ],
)
def test_what_has_no_answer_is_refused_in_words(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
