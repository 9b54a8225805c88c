import math
from dataclasses import replace

import pytest
from report.fabricated import BASE, REFERENCE, Made, collect, with_numbers

from gradroute.report.results.contrasts import (
    controls_of,
    gain_kept,
    gain_reference,
    localization,
    loss_difference,
    mode_difference,
    outcome_pairs,
    rate_difference,
)
from gradroute.report.results.run_results import RunResults
from gradroute.system.statistics import difference, paired_difference

RUNS = {run.name: run for run in collect()}
UNPAIRED = {run.name: run for run in collect(paired=False)}
BASELINE = RUNS["baseline"]


def cells(runs: dict[str, RunResults]) -> tuple[tuple[RunResults, str], tuple[RunResults, str]]:
    return (runs["0.1_0.5"], "bad_ablated"), (runs["0.1_0.0"], "bad_ablated")


def losses(run: str, mode: str) -> float:
    loss = RUNS[run].loss(mode, "normal")
    assert loss is not None
    return loss.mean


def test_gain_kept_is_the_share_of_the_baselines_gain_that_is_left() -> None:
    found = gain_kept(RUNS["0.1_0.0"], BASELINE)
    assert found is not None
    base, ablated = losses("0.1_0.0", "base"), losses("0.1_0.0", "bad_ablated")
    assert found.value == pytest.approx((base - ablated) / (base - losses("baseline", "full")))
    assert found.lower < found.value < found.upper
    assert (found.mode, found.against) == ("bad_ablated", "baseline")


def test_without_a_baseline_gain_kept_is_against_the_runs_own_full() -> None:
    found = gain_kept(RUNS["0.1_0.5"], None)
    assert found is not None
    base, full = losses("0.1_0.5", "base"), losses("0.1_0.5", "full")
    wanted = (base - losses("0.1_0.5", "bad_ablated")) / (base - full)
    assert found.value == pytest.approx(wanted)
    assert found.against == "its own `full`"


def test_a_run_with_nothing_to_ablate_is_judged_as_it_is() -> None:
    found = gain_kept(RUNS["filter_0.5"], BASELINE)
    assert found is not None
    assert found.mode == "full"
    assert found.value == pytest.approx(1.0, abs=0.05)


def test_without_single_examples_gain_kept_has_no_interval() -> None:
    found = gain_kept(UNPAIRED["0.1_0.0"], UNPAIRED["baseline"])
    paired = gain_kept(RUNS["0.1_0.0"], BASELINE)
    assert found is not None and paired is not None
    assert found.value == pytest.approx(paired.value)
    assert math.isnan(found.lower) and math.isnan(found.upper)


@pytest.mark.parametrize("full", [0.91, 0.95])
def test_a_baseline_that_gains_nothing_gives_no_share_of_it(full: float) -> None:
    made = {
        **REFERENCE,
        "baseline": with_numbers(REFERENCE["baseline"], full=(0, full, 3.0), base=(0, 0.9, 1.5)),
    }
    runs = {run.name: run for run in collect(made)}
    found = gain_kept(runs["0.1_0.5"], runs["baseline"])
    assert found is not None
    assert math.isnan(found.value)


def test_differences_of_losses_are_paired_by_example_where_examples_are_at_hand() -> None:
    paired = loss_difference(*cells(RUNS), "behavior")
    apart = loss_difference(*cells(UNPAIRED), "behavior")
    assert paired is not None and apart is not None
    assert paired.value == pytest.approx(apart.value)
    assert apart.lower < paired.lower < paired.value < paired.upper < apart.upper


def test_examples_that_are_not_the_same_are_not_paired() -> None:
    one, other = RUNS["0.1_0.5"], RUNS["0.1_0.0"]
    cell = ("bad_ablated", "behavior")
    renamed = {f"x{name}": value for name, value in other.examples[cell].items()}
    unlike = replace(other, examples={**other.examples, cell: renamed})
    apart = loss_difference(*cells(UNPAIRED), "behavior")
    assert loss_difference((one, "bad_ablated"), (unlike, "bad_ablated"), "behavior") == apart


def test_localization_is_a_difference_of_rates_paired_by_prompt() -> None:
    found = localization(RUNS["0.1_0.5"])
    good, bad = RUNS["0.1_0.5"].rate("good_ablated"), RUNS["0.1_0.5"].rate("bad_ablated")
    assert found is not None and good is not None and bad is not None
    assert found.value == good.mean - bad.mean
    assert found[1:] == paired_difference(good.shown - bad.shown, 0, 128)
    assert localization(RUNS["filter_0.5"]) is None


def test_without_single_outcomes_rates_are_taken_as_independent() -> None:
    run = {run.name: run for run in collect(sampled=False)}["0.1_0.5"]
    good, bad = run.rate("good_ablated"), run.rate("bad_ablated")
    found = localization(run)
    assert found is not None and good is not None and bad is not None
    assert found[1:] == difference(good.shown, 128, bad.shown, 128)
    assert found == rate_difference(good, bad)
    assert rate_difference(good, None) is None


def test_outcomes_that_are_not_of_the_same_prompts_or_not_all_there_are_not_paired() -> None:
    run = RUNS["0.1_0.5"]
    outcomes = dict(run.outcomes)
    del outcomes["full", "prefix"]
    assert outcome_pairs((replace(run, outcomes=outcomes), "full"), (run, "bad_ablated")) is None
    some = dict(list(run.outcomes["full", "prefix"].items())[:100])
    part = replace(run, outcomes={**run.outcomes, ("full", "prefix"): some})
    assert outcome_pairs((part, "full"), (part, "bad_ablated")) is None
    assert mode_difference(part, "full", "bad_ablated") == rate_difference(
        run.rate("full"), run.rate("bad_ablated")
    )


def test_pairs_count_what_only_one_of_the_two_shows() -> None:
    run = RUNS["0.1_0.0"]
    found = outcome_pairs((run, "full"), (run, "bad_ablated"))
    assert found == (78, 0, 128)
    assert outcome_pairs((run, "bad_ablated"), (run, "full")) == (0, 78, 128)


def test_the_whole_gain_is_the_baselines_else_the_oracles_else_ones_own() -> None:
    oracle = {"routing": "none", "data.drop": "true_bad", "adapters": {"good": {"rank": 64}}}
    made = {
        "o": Made(oracle, {"full": (0, 0.78, 3.0), "base": BASE}),
        "r": REFERENCE["0.1_0.5"],
        "baseline": REFERENCE["baseline"],
    }
    for names, wanted in ((("o", "r", "baseline"), "baseline"), (("o", "r"), "o"), (("r",), None)):
        runs = collect({name: made[name] for name in names})
        (run,) = [run for run in runs if run.name == "r"]
        reference = gain_reference(run, runs)
        assert (reference.name if reference else None) == wanted
        found = gain_kept(run, reference)
        assert found is not None and found.against == (wanted or "its own `full`")


def test_a_baseline_keeps_its_own_gain_not_another_seeds() -> None:
    other = replace(REFERENCE["baseline"], changes={**REFERENCE["baseline"].changes, "seed": 1})
    runs = collect({"a": REFERENCE["baseline"], "b": other})
    assert [gain_reference(run, runs) for run in runs] == [None, None]


def test_the_controls_of_a_run_are_runs() -> None:
    found = controls_of(RUNS["0.1_1.0"], list(RUNS.values()))
    assert {role: run.name for role, run in found.items()} == {
        "baseline": "baseline",
        "unrouted": "0.1_0.0",
    }
