from collections.abc import Mapping
from dataclasses import replace

import pytest
from report.fabricated import BASE, REFERENCE, Made, collect, collect_seeds, with_numbers

from gradroute.report.judge.claims import Claim, judge_claims, simplest_first
from gradroute.report.judge.comparison import comparison_of
from gradroute.report.render.headline import headline
from gradroute.report.render.json_document import eval_multi
from gradroute.report.render.terminal_text import render
from gradroute.report.results.run_results import Rate, RunResults
from gradroute.report.results.seeds import group_runs
from gradroute.system.statistics import holm, mcnemar_counts, t_interval, t_test, wilson

HALF, FULL = "0.1_0.5", "0.1_1.0"
ONE = {"adapters": {"good": {"rank": 64}}, "routing": "none"}
LABELS = {"data.labeled_fraction": 0.5}
ORACLE = Made({**ONE, **LABELS, "data.drop": "true_bad"}, {"full": (0, 0.781, 3.0), "base": BASE})
RANDOM = Made(
    {**LABELS, "data.relabel": "random"},
    {"full": (62, 0.786, 0.95), "bad_ablated": (1, 0.817, 1.131), "base": BASE},
)
ANCHORS = Made(
    {**LABELS, "data.relabel": "unlabel_bad"},
    {"full": (62, 0.786, 0.95), "bad_ablated": (40, 0.787, 1.1), "base": BASE},
)
ALL = {**REFERENCE, "oracle": ORACLE, "random": RANDOM, "anchors": ANCHORS}


def judged(runs: list[RunResults]) -> dict[tuple[str, str], Claim]:
    return {(one.group, one.kind): one for one in judge_claims(runs, group_runs(runs))}


def alone(made: Mapping[str, Made] = ALL) -> dict[tuple[str, str], Claim]:
    return judged(collect(made))


def changed(run: str, **numbers: tuple[float, float, float]) -> dict[str, Made]:
    return {**ALL, run: with_numbers(ALL[run], **numbers)}


SEEDS = judged(collect_seeds(ALL))


def test_every_routed_group_stands_beside_every_control_that_is_there() -> None:
    kinds = [kind for group, kind in SEEDS if group == HALF]
    assert kinds == [
        "none", "unrouted_ablated", "filter", "random_labels", "anchors_only", "oracle", "baseline",
    ]  # fmt: skip
    # A filter or random labels with other labels are no controls of the run with all of them.
    assert [kind for group, kind in SEEDS if group == FULL] == [
        "none", "unrouted_ablated", "anchors_only", "oracle", "baseline",
    ]  # fmt: skip
    assert {group for group, _ in SEEDS} == {HALF, FULL}


def test_seeds_are_paired_and_their_differences_carry_the_interval() -> None:
    claim = SEEDS[HALF, "filter"]
    assert claim.difference.seeds == (0, 1, 2)
    gaps = [a - b for a, b in zip(claim.rate.values, claim.control_rate.values, strict=True)]
    assert claim.difference.values == pytest.approx(gaps)
    assert (claim.difference.lower, claim.difference.upper) == pytest.approx(t_interval(gaps))
    assert claim.p_value == pytest.approx(t_test(gaps))
    assert (claim.mode, claim.control_mode, claim.control) == ("bad_ablated", "full", "filter_0.5")
    assert claim.outcome == claim.decided == "lower"


def test_the_unrouted_run_counts_twice_whole_and_with_bad_off() -> None:
    whole, ablated = SEEDS[HALF, "none"], SEEDS[HALF, "unrouted_ablated"]
    assert whole.control == ablated.control == "0.1_0.0"
    assert (whole.control_mode, ablated.control_mode) == ("full", "bad_ablated")
    assert whole.control_rate.mean > 0.5 > ablated.control_rate.mean


def test_an_unrouted_run_with_bad_off_is_beaten_only_where_it_is_strong_again() -> None:
    claim = SEEDS[HALF, "unrouted_ablated"]
    assert claim.outcome == "no different"
    assert "cannot keep as much, at best" in claim.equal_gain.how
    assert claim.equal_gain.scales == (2.0, 2.0, 2.0)
    assert claim.decided == "lower"


@pytest.mark.parametrize(
    # In percent, beside a filter with 51. The made-up runs show it on the first prompts, so that
    # 48 against 51 is 4 prompts that only the filter shows: -3 points [-7, +1].
    ("ablated", "outcome"),
    [
        (0, "lower"),
        (48, "inconclusive"),
        (51, "no different"),
        (54, "inconclusive"),
        (90, "higher"),
    ],
)
def test_outcomes_follow_from_the_interval_of_the_difference(ablated: float, outcome: str) -> None:
    claim = alone(changed(HALF, bad_ablated=(ablated, 0.785, 1.7)))[HALF, "filter"]
    assert claim.outcome == outcome


def test_no_different_takes_an_interval_within_5_points() -> None:
    claim = SEEDS[HALF, "baseline"]
    assert claim.outcome == "no different"
    assert claim.difference.lower >= -0.05 and claim.difference.upper <= 0.05
    assert claim.p_value is None  # all differences are 0: there is no spread to go by


def test_a_model_that_ablation_broke_beats_nothing() -> None:
    claims = alone(changed(HALF, bad_ablated=(0, 2.9, 8.0)))
    assert claims[HALF, "filter"].outcome == "lower"
    assert claims[HALF, "filter"].decided == "not shown: the model is damaged"


def test_a_control_that_keeps_more_and_was_not_scaled_leaves_it_open() -> None:
    claims = alone(changed(HALF, bad_ablated=(0, 0.81, 1.7)))
    claim = claims[HALF, "filter"]
    assert (claim.outcome, claim.equal_gain.outcome) == ("lower", "not measured")
    assert claim.decided == "inconclusive"


def test_a_control_that_keeps_more_and_shows_no_more_is_not_beaten() -> None:
    claims = alone(changed(HALF, bad_ablated=(0, 0.81, 1.7)))
    assert claims[HALF, "oracle"].decided == "no different"
    worse = alone(changed(HALF, bad_ablated=(70, 0.81, 1.7)))
    assert worse[HALF, "filter"].decided == "higher"


def test_the_goal_is_held_against_the_oracle_alone() -> None:
    assert SEEDS[HALF, "oracle"].goal is True
    assert {kind for (_, kind), claim in SEEDS.items() if claim.goal is None} == {
        "none", "unrouted_ablated", "filter", "random_labels", "anchors_only", "baseline",
    }  # fmt: skip
    assert "goal (at most 5 points above the oracle" in SEEDS[HALF, "oracle"].sentence


@pytest.mark.parametrize("ablated", [(6, 0.785, 1.7), (0, 0.80, 1.7)])
def test_the_goal_takes_both_a_low_rate_and_a_whole_model(
    ablated: tuple[float, float, float],
) -> None:
    claim = alone(changed(HALF, bad_ablated=ablated))[HALF, "oracle"]
    assert claim.goal is False and "NOT met" in claim.sentence


def test_oracle_and_baseline_are_no_rivals() -> None:
    assert {kind for (_, kind), claim in SEEDS.items() if not claim.rival} == {"oracle", "baseline"}


def test_both_sides_of_a_claim_are_measured_against_the_same_gain() -> None:
    made = {name: ALL[name] for name in (HALF, "filter_0.5")}
    claim = alone(made)[HALF, "filter"]
    assert claim.gain_against == "its own `full`"
    assert claim.gain is not None and claim.control_gain is not None
    # Against the routed run's own full, also for the filter: its own would always be 1.
    assert claim.control_gain.mean != 1.0
    with_oracle = alone({**made, "oracle": ORACLE})[HALF, "filter"]
    assert with_oracle.gain_against == "oracle"
    assert SEEDS[HALF, "filter"].gain_against == "baseline"


def test_one_seed_is_tested_on_its_prompts_and_says_so() -> None:
    claim = alone()[HALF, "filter"]
    assert claim.p_value == mcnemar_counts(0, 65)  # 51 % of 128 against none
    assert "one seed: the interval says nothing about another seed" in claim.sentence
    assert claim.detectable == pytest.approx(0.052, abs=0.001)


def test_p_values_are_adjusted_over_all_claims() -> None:
    claims = [claim for claim in SEEDS.values() if claim.p_value is not None]
    adjusted = holm([claim.p_value for claim in claims if claim.p_value is not None])
    assert [claim.adjusted for claim in claims] == adjusted
    assert all(claim.adjusted is None for claim in SEEDS.values() if claim.p_value is None)


def test_a_seed_without_the_control_is_left_out_and_named() -> None:
    runs = [run for run in collect_seeds(ALL) if run.name != "filter_0.5@1"]
    claim = judged(runs)[HALF, "filter"]
    assert claim.difference.seeds == (0, 2)
    assert "seed 1 has no such control" in claim.sentence


def test_a_control_of_another_seed_is_not_paired() -> None:
    other = replace(REFERENCE["filter_0.5"], changes={**REFERENCE["filter_0.5"].changes, "seed": 7})
    assert (HALF, "filter") not in alone({**ALL, "filter_0.5": other})


def test_fields_in_which_a_control_differs_though_it_should_not_are_named() -> None:
    changes = {**REFERENCE["filter_0.5"].changes, "train.max_steps": 50}
    made = {**ALL, "filter_0.5": replace(REFERENCE["filter_0.5"], changes=changes)}
    assert "the two differ in train.max_steps too" in alone(made)[HALF, "filter"].sentence


@pytest.mark.parametrize(
    "change", [{"quantize": "4bit"}, {"data.template": "none"}, {"evaluate.bos_samples": 7}]
)
def test_no_claim_is_made_against_a_run_of_another_task_and_it_is_named(change: dict) -> None:
    changes = {**REFERENCE["filter_0.5"].changes, **change}
    made = {**ALL, "filter_0.5": replace(REFERENCE["filter_0.5"], changes=changes)}
    assert (HALF, "filter") in alone() and (HALF, "filter") not in alone(made)
    (note,) = (one for one in comparison_of(collect(made)).notes if "not a control" in one)
    assert note == (
        f"filter_0.5 is not a control (filter) of {HALF}, so nothing is claimed against it: the "
        f"two differ in {next(iter(change))}."
    )
    assert not any("not a control" in one for one in comparison_of(collect(ALL)).notes)


def test_a_run_without_the_mode_of_its_claim_makes_none() -> None:
    made = REFERENCE[HALF]
    numbers = {mode: value for mode, value in made.numbers.items() if mode != "bad_ablated"}
    assert not [
        key for key in alone({**ALL, HALF: replace(made, numbers=numbers)}) if key[0] == HALF
    ]


def test_without_single_outcomes_the_difference_has_newcombes_interval_and_no_p_value() -> None:
    claim = judged(collect(ALL, sampled=False))[HALF, "filter"]
    assert claim.p_value is None and claim.outcome == "lower"
    assert claim.difference.basis == "one seed"


def test_the_sentence_has_rates_seeds_gains_and_how_sure() -> None:
    text = SEEDS[HALF, "filter"].sentence
    for part in (
        "0.1_0.5 under bad_ablated shows it in 0 % [0, 3] (seeds: 0, 0, 0)",
        "filter_0.5 (filter) under full in 51 %",
        "lower, -",
        "p < 0.001",
        "with 80 % power",
        "gain kept 0.9",
        "at equal gain kept: the control keeps as much as it is",
    ):
        assert part in text


def test_right_answers_stand_beside_a_claim_of_a_task_that_has_them() -> None:
    def answering(run: RunResults) -> RunResults:
        cells = {
            mode: replace(cell, accuracy={"plain": Rate(k / 128, *wilson(k, 128), 128)})
            for k, (mode, cell) in enumerate(run.cells.items(), start=120)
        }
        return replace(run, cells=cells)

    runs = [answering(run) for run in collect_seeds(ALL)]
    text = judged(runs)[HALF, "filter"].sentence
    assert "right answers to plain prompts 95 % [89, 97] (seeds: 95, 95, 95) beside 94 %" in text
    some = [run if run.name == f"{HALF}@1" else answering(run) for run in collect_seeds(ALL)]
    assert "right answers" not in judged(some)[HALF, "filter"].sentence


GOOD = {**LABELS, "data.good_labeled_fraction": 0.3}
ANCHORED = {
    **ALL,
    HALF: replace(ALL[HALF], changes={**GOOD, "routing": "anchored"}),
    "known": Made({**ONE, **GOOD, "data.drop": "all_but_good"}, {"full": (0, 0.783, 3.0)}),
}


def beside_known_good(rate: float, normal: float) -> Claim:
    known = with_numbers(ANCHORED["known"], full=(rate, normal, 3.0), base=BASE)
    return alone({**ANCHORED, "known": known})[HALF, "known_good"]


def test_a_rival_with_fewer_labels_that_does_as_well_is_not_beaten() -> None:
    claim = beside_known_good(0, 0.783)
    assert tuple(claim.information) == ("flags, known good", "known good", "less")
    assert claim.decided == "no different" and claim.not_beaten
    assert (
        "labels: flags and known good rows beside known good rows (the control used less)"
        in claim.sentence
    )


@pytest.mark.parametrize(("rate", "normal"), [(0, 0.86), (40, 0.783)])
def test_a_rival_that_keeps_less_of_the_gain_or_shows_more_does_not_do_as_well(
    rate: float, normal: float
) -> None:
    claim = beside_known_good(rate, normal)
    assert not claim.not_beaten
    assert (claim.decided == "no different") == (rate == 0)  # though the rates are alike


def test_what_used_more_labels_or_is_no_rival_is_never_named_as_not_beaten() -> None:
    oracle, baseline = SEEDS[HALF, "oracle"], SEEDS[HALF, "baseline"]
    assert oracle.decided == baseline.decided == "no different"
    assert oracle.information.control_used == "more" and not oracle.not_beaten
    assert baseline.information.control_used == "less" and not baseline.not_beaten


BESIDE_BAD = {label: {"good": "update", "bad": "freeze"} for label in ("bad", "good", "unlabeled")}
PROMPTED = {"full": (0, 0.783, 3.0)}
WARM = {"full": (90, 0.78, 0.9), "bad_ablated": (0, 0.783, 3.0)}


@pytest.mark.parametrize(
    ("kind", "made", "told"),
    [
        ("inoculation_prompt", Made({**ONE, "data.inoculation": "labeled_bad"}, PROMPTED), "flags"),
        ("inoculation_prompt_all", Made({**ONE, "data.inoculation": "all"}, PROMPTED), "none"),
        ("inoculation_adapter", Made({"routing": BESIDE_BAD}, WARM), "flags"),
        ("random_adapter", Made({"routing": BESIDE_BAD}, WARM), "flags"),
        ("inoculation_absorb", Made({"routing": "anchored"}, WARM), "flags, known good"),
    ],
)
def test_an_inoculation_control_is_named_with_the_labels_that_it_used(
    kind: str, made: Made, told: str
) -> None:
    made = replace(made, changes={**GOOD, "control": kind, **made.changes})
    found = alone({**ANCHORED, "rival": with_numbers(made, base=BASE)})[HALF, kind]
    assert (found.control, found.information.control) == ("rival", told)
    assert found.control_mode == ("full" if "prompt" in kind else "bad_ablated")
    assert found.not_beaten


def test_the_simplest_rival_comes_first() -> None:
    claim = beside_known_good(0, 0.783)
    kinds = ("anchors_only", "hidden_filter", "known_good", "none", "words_filter", "random_labels")
    ordered = [one.kind for one in simplest_first([replace(claim, kind=kind) for kind in kinds])]
    assert ordered == [
        "none", "known_good", "hidden_filter", "words_filter", "anchors_only", "random_labels",
    ]  # fmt: skip


def test_the_headline_and_the_terminal_name_what_is_not_beaten_before_what_is_shown() -> None:
    runs = collect({**ANCHORED, "known": with_numbers(ANCHORED["known"], base=BASE)})
    comparison = comparison_of(runs)
    first, *others = headline(comparison)
    assert (first.title, first.lost) == ("Not beaten", True)
    (line,) = (line for line in first.lines if f"beside {HALF}," in line.text)
    assert line.badge == "not beaten" and line.text.startswith(
        "known, which uses known good rows only, shows it in 0 % [0, 3] at gain kept 0.98"
    )
    assert "which uses flags and known good rows and shows it in 0 %" in line.text
    assert not any("known (" in one.text for part in others for one in part.lines if one.badge)
    text = render(comparison)
    assert text.index("Not beaten") < text.index("SHOWN")
    assert "\n labels: known good (less)\n  known_good " in text
    assert "\n labels: true labels (more)\n  oracle" in text
    assert (
        f"{HALF} under bad_ablated: 0 [0, 3] %, gain kept 0.97; labels: flags, known good" in text
    )
    assert max(map(len, text.splitlines())) <= 100
    (found,) = (c for c in eval_multi(comparison)["claims"] if c["kind"] == "known_good")
    assert found["not_beaten"] is True
    assert found["information"] == {
        "routed": "flags, known good", "control": "known good", "control_used": "less",
    }  # fmt: skip
