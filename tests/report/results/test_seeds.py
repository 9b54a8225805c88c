import math
from dataclasses import replace

import pytest
from report.fabricated import REFERENCE, Made, collect, collect_seeds, with_numbers

from gradroute.report.results.run_results import Rate, RunResults
from gradroute.report.results.seeds import Group, group_runs, over_seeds, rate_over_seeds
from gradroute.system.statistics import t_interval, wilson

HALF = "0.1_0.5"
SEEDS = collect_seeds()


def group_of(name: str, runs: list[RunResults] = SEEDS) -> Group:
    return next(group for group in group_runs(runs) if group.name == name)


def changed(made: Made, **changes: object) -> Made:
    return replace(made, changes={**made.changes, **changes})


def test_runs_that_differ_in_their_seed_alone_are_one_group_under_their_name() -> None:
    groups = group_runs(SEEDS)
    assert [group.name for group in groups] == list(REFERENCE)
    assert all(group.seeds == (0, 1, 2) for group in groups)
    assert groups[2].runs == (f"{HALF}@0", f"{HALF}@1", f"{HALF}@2")
    assert [group.role for group in groups] == [
        "baseline", "unrouted", "routed", "routed", "filter",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"train.save_every": 7},
        {"train.measure_every": 5},
        {"train.log_gradients_every": 0},
        {"train.reuse_gib": 2.0},
        {"evaluate.modes": ["full"]},
        {"evaluate.batch_rows": 1},
        {"data.label_seed": 9},
        {"controls": ["none"]},
    ],
)
def test_what_changes_no_result_separates_no_runs(change: dict[str, object]) -> None:
    made = REFERENCE[HALF]
    runs = collect({"a": made, "b": changed(made, seed=1, **change)})
    assert len(group_runs(runs)) == 1


@pytest.mark.parametrize(
    "change", [{"train.max_steps": 7}, {"routing": "absorb"}, {"evaluate.prompts": 9}]
)
def test_what_changes_a_result_does(change: dict[str, object]) -> None:
    made = REFERENCE[HALF]
    assert len(group_runs(collect({"a": made, "b": changed(made, seed=1, **change)}))) == 2


def test_one_run_named_twice_does_not_count_as_two_seeds() -> None:
    groups = group_runs(collect({"a": REFERENCE[HALF], "b": REFERENCE[HALF]}))
    assert [group.runs for group in groups] == [("a",), ("b",)]


def test_the_same_seed_with_other_labels_is_another_draw() -> None:
    made = REFERENCE[HALF]
    (group,) = group_runs(collect({"a-1": made, "a-2": changed(made, **{"data.label_seed": 5})}))
    assert group.seeds == (0, 0)
    assert group.name == "a"


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (("x@0", "x@1"), "x"),
        (("caps-s0", "caps-s1"), "caps"),
        (("caps_seed1", "caps_seed2"), "caps"),
        (("one", "two"), "one"),
    ],
)
def test_a_group_is_called_what_its_runs_names_share(names: tuple[str, str], shared: str) -> None:
    made = REFERENCE[HALF]
    (group,) = group_runs(collect({n: changed(made, seed=i) for i, n in enumerate(names)}))
    assert group.name == shared


def test_groups_of_one_name_are_told_apart() -> None:
    made = REFERENCE[HALF]
    names = {
        f"x-{i}": changed(made, seed=i % 2, **{"train.max_steps": 5 + i // 2}) for i in range(4)
    }
    assert [group.name for group in group_runs(collect(names))] == ["x", "x (2)"]


def test_a_rate_over_seeds_has_every_seed_and_the_t_interval_of_their_means() -> None:
    full = group_of(HALF).rate("full")
    assert full is not None
    assert full.basis == "seeds" and full.n == (128, 128, 128)
    assert full.values == tuple(run.cells["full"].rates["prefix"].mean for run in SEEDS[6:9])
    assert (full.lower, full.upper) == pytest.approx(t_interval(full.values))
    assert full.lower <= full.mean <= full.upper


def test_where_all_seeds_agree_it_is_the_widest_wilson_interval_of_one() -> None:
    found = group_of(HALF).rate("bad_ablated")
    assert found is not None
    assert (found.mean, found.lower, found.upper) == (0.0, *wilson(0, 128))
    assert found.basis == "equal seeds"
    rates = [Rate(0.0, *wilson(0, n), n) for n in (128, 32, 64)]
    assert rate_over_seeds([0, 1, 2], rates).upper == wilson(0, 32).upper


def test_one_seed_has_the_interval_of_its_own_completions_and_says_so() -> None:
    (group,) = group_runs(collect({HALF: REFERENCE[HALF]}))
    full = group.rate("full")
    assert full is not None
    assert full.basis == "one seed"
    assert (full.lower, full.upper) == wilson(77, 128)


def test_intervals_of_rates_stay_between_0_and_1_and_those_of_losses_do_not() -> None:
    rates = [Rate(k / 128, *wilson(k, 128), 128) for k in (0, 0, 3)]
    assert rate_over_seeds([0, 1, 2], rates).lower == 0.0
    nothing = [(math.nan, math.nan)] * 2
    assert over_seeds([0, 1], [0.01, 0.5], [0, 0], nothing).lower < 0


def test_a_number_without_any_interval_says_so() -> None:
    nothing = (math.nan, math.nan)
    assert over_seeds([0], [0.5], [0], [nothing]).basis == "none"
    assert over_seeds([0, 1], [0.5, 0.5], [0, 0], [nothing, nothing]).basis == "none"


def test_a_mode_that_one_seed_lacks_has_the_others() -> None:
    made = REFERENCE[HALF]
    few = replace(made, numbers={m: n for m, n in made.numbers.items() if m != "good_x2"})
    runs = collect({"x@0": made, "x@1": changed(few, seed=1), "x@2": changed(made, seed=2)})
    found = group_of("x", runs).rate("good_x2")
    assert found is not None and found.seeds == (0, 2)


def test_gain_kept_over_seeds_names_what_it_is_measured_against() -> None:
    group = group_of(HALF)
    assert group.gain_kept is not None and group.gain_kept.seeds == (0, 1, 2)
    assert group.gain_kept.mean == pytest.approx(0.97, abs=0.03)
    assert group.gain_against == ("baseline@0", "baseline@1", "baseline@2")


def test_gain_kept_is_not_there_where_the_reference_gains_nothing() -> None:
    made = {
        HALF: REFERENCE[HALF],
        "baseline": with_numbers(REFERENCE["baseline"], full=(0, 0.95, 3.0)),
    }
    assert group_of(HALF, collect(made)).gain_kept is None


def test_precision_of_the_labels_has_every_seed() -> None:
    labels = {"labeled_bad": 100, "true_bad": 60, "recall": 0.5}
    runs = [
        replace(run, manifest={"labels": {**labels, "precision": 0.3 + 0.01 * run.seed}})
        for run in SEEDS[6:9]
    ]
    (group,) = group_runs(runs)
    assert group.precision is not None
    assert group.precision.values == pytest.approx((0.3, 0.31, 0.32))
    assert group.precision.n == (100, 100, 100)
    none = [replace(run, manifest={"labels": {**labels, "precision": None}}) for run in runs]
    assert group_runs(none)[0].precision is None
