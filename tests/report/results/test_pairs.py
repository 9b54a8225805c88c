import pytest
from report.fabricated import REFERENCE, collect, with_scales

from gradroute.report.results.pairs import pair_tests
from gradroute.report.results.power import detectable_pairs
from gradroute.system.statistics import holm, mcnemar_counts, paired_difference

RUNS = collect()


def test_full_is_tested_against_every_other_mode_on_the_same_prompts() -> None:
    found = pair_tests(RUNS)
    assert [(test.run, test.second) for test in found] == [
        (run.name, mode) for run in RUNS for mode in run.cells if mode != "full"
    ]
    test = next(t for t in found if (t.run, t.second) == ("0.1_0.0", "good_x2"))
    assert (test.first, test.kind, test.n) == ("full", "prefix", 128)
    assert (test.only_first, test.only_second) == (19, 0)  # 79 against 60, the same prompts first
    assert test.p_value == mcnemar_counts(19, 0)
    assert test.difference == (19 / 128, *paired_difference(19, 0, 128))
    assert test.detectable == detectable_pairs(128, 0.0)


def test_the_whole_table_is_adjusted_together() -> None:
    found = pair_tests(RUNS)
    assert [test.adjusted for test in found] == holm([test.p_value for test in found])


def test_points_of_scale_curves_take_no_power_from_the_table() -> None:
    made = with_scales(REFERENCE["0.1_0.5"], ("bad",), {0.5: (30, 0.78, 1.1)})
    found = pair_tests(collect({"r": made}))
    assert not any("=" in test.second for test in found)
    assert len(found) == 4


def test_without_single_outcomes_there_is_no_test() -> None:
    assert pair_tests(collect(sampled=False)) == []


def test_prompts_that_disagree_both_ways_make_differences_harder_to_find() -> None:
    assert detectable_pairs(128, 0.1) > detectable_pairs(128, 0.0) == pytest.approx(0.061, abs=1e-3)
