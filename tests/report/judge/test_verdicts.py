from collections.abc import Mapping
from dataclasses import replace

import pytest
from report.fabricated import BASE, REFERENCE, Made, collect, with_numbers

from gradroute.report.judge.verdicts import Verdict, judge
from gradroute.report.render.terminal_text import render_verdicts

FULL, HALF = "0.1_1.0", "0.1_0.5"


def verdict(
    number: int, run: str, made: Mapping[str, Made] = REFERENCE, paired: bool = True
) -> Verdict:
    (found,) = [
        one for one in judge(collect(made, paired=paired)) if (one.number, one.run) == (number, run)
    ]
    return found


def changed(run: str, **numbers: tuple[float, float, float]) -> dict[str, Made]:
    return {**REFERENCE, run: with_numbers(REFERENCE[run], **numbers)}


def texts(verdict: Verdict, met: bool | None) -> list[str]:
    return [check.text for check in verdict.checks if check.decides and check.met is met]


def test_the_reference_comparison_shows_every_claim() -> None:
    found = [(one.number, one.run, one.outcome) for one in judge(collect())]
    assert found == [
        (1, FULL, "shown"),
        (2, HALF, "shown"),
        (3, HALF, "shown"),
        (3, FULL, "shown"),
        (4, HALF, "lower"),
        (4, FULL, "lower"),
    ]


@pytest.mark.parametrize(("number", "run"), [(1, FULL), (2, HALF)])
@pytest.mark.parametrize(
    ("numbers", "outcome", "reason"),
    [
        ({"full": (30, 0.784, 0.96)}, "not shown: the behavior was not learned", "full shows it"),
        ({"bad_ablated": (30, 0.785, 2.0)}, "not shown", "bad_ablated shows it in 30 %"),
        ({"good_x2": (47, 0.8, 2.0)}, "not shown", "good_x2 shows it in 47 %"),
        ({"bad_ablated": (0, 0.85, 2.0)}, "not shown: the model is damaged", "gain kept 0.4"),
        ({"bad_ablated": (0, 2.9, 8.0)}, "not shown: the model is damaged", "gain kept -1"),
    ],
)
def test_a_check_that_fails_decides_and_is_named(
    number: int, run: str, numbers: dict, outcome: str, reason: str
) -> None:
    found = verdict(number, run, changed(run, **numbers))
    assert found.outcome == outcome
    assert [text for text in texts(found, False) if text.startswith(reason)]


@pytest.mark.parametrize(
    "numbers",
    [
        {"bad_ablated": (8, 0.785, 2.0)},  # 8 % [4, 14] against 0 %
        {"good_x2": (8, 0.83, 2.2)},
        {"bad_ablated": (0, 0.8055, 2.0)},  # gain kept about 0.8
    ],
)
def test_an_interval_across_the_limit_is_inconclusive(numbers: dict) -> None:
    found = verdict(2, HALF, changed(HALF, **numbers))
    assert found.outcome == "inconclusive"
    assert len(texts(found, None)) == 1


def test_a_damaged_model_shows_nothing_about_where_the_behavior_sits() -> None:
    found = verdict(3, FULL, changed(FULL, bad_ablated=(0, 2.9, 8.0)))
    assert found.outcome == "not shown: the model is damaged"


def test_with_partial_labels_ablation_must_take_more_than_in_an_unrouted_run() -> None:
    found = verdict(2, HALF, changed(HALF, bad_ablated=(0, 0.785, 1.3)))
    assert found.outcome == "not shown"
    (reason,) = texts(found, False)
    assert "nats above that of 0.1_0.0, unrouted (at least 0.3)" in reason
    assert verdict(1, FULL, changed(FULL, bad_ablated=(0, 0.785, 1.3))).outcome == "shown"


@pytest.mark.parametrize(
    ("numbers", "outcome"),
    [
        ({"good_ablated": (2, 0.82, 1.1)}, "not shown"),
        ({"good_ablated": (20, 0.82, 1.1)}, "not shown"),
        ({"good_ablated": (50, 0.82, 1.1)}, "inconclusive"),  # -10 points [-16, -4] against 60 %
    ],
)
def test_a_behavior_that_goes_with_good_does_not_sit_in_bad(numbers: dict, outcome: str) -> None:
    assert verdict(3, HALF, changed(HALF, **numbers)).outcome == outcome


def test_a_behavior_that_nobody_shows_is_not_localized() -> None:
    nobody = dict.fromkeys(("full", "bad_ablated", "good_ablated"), (0, 0.785, 1.7))
    found = verdict(3, HALF, changed(HALF, **nobody))
    assert found.outcome == "not shown: the behavior was not learned"
    assert any("localization" in text for text in texts(found, False))


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    ("ablated", "told"), [(0.783, "ablation did nothing"), (0.785, "only the losses differ")]
)
def test_modes_that_do_not_differ_are_no_result(number: int, ablated: float, told: str) -> None:
    full = (60, 0.783, 0.95)
    made = with_numbers(REFERENCE[HALF], full=full, bad_ablated=(60, ablated, 0.95))
    if ablated == full[1]:  # the same records, not only the same mean
        made = replace(made, numbers={**made.numbers, "bad_ablated": full})
    runs = collect({HALF: replace(made, identical=frozenset({"bad_ablated"}))}, paired=False)
    if ablated == full[1]:
        cells = dict(runs[0].cells)
        cells["bad_ablated"] = replace(cells["bad_ablated"], loss=cells["full"].loss)
        runs = [replace(runs[0], cells=cells)]
    (found,) = [one for one in judge(runs) if one.number == number]
    assert found.outcome == "not shown: the modes do not differ"
    assert f"exactly what full wrote, 128 of 128 times: {told}" in found.sentence


def test_controls_stand_beside_the_claim_without_deciding_it() -> None:
    found = verdict(2, HALF)
    beside = [check.text for check in found.checks if not check.decides]
    assert beside[1].startswith("filter_0.5, filter: full 51 % [42, 59] of 128")
    assert beside[2].startswith("0.1_0.0, unrouted: bad_ablated 1 % [0, 4] of 128, good_x2 47 %")
    assert "localization +2 points" in verdict(3, FULL).sentence


def test_a_run_alone_is_compared_with_itself_and_says_so() -> None:
    found = judge(collect({HALF: REFERENCE[HALF]}))
    assert [(one.number, one.outcome) for one in found] == [(2, "shown"), (3, "shown"),
                                                            (4, "higher")]  # fmt: skip
    assert "against the untuned base" in found[0].sentence
    assert "against its own `full`" in found[0].sentence
    assert "random updates" in found[2].claim


def test_without_losses_of_single_examples_gain_kept_has_no_interval_and_its_value_decides() -> (
    None
):
    found = verdict(2, HALF, paired=False)
    assert "gain kept 0.97 against baseline" in found.sentence
    assert texts(found, None) == []
    low = verdict(2, HALF, changed(HALF, bad_ablated=(0, 0.85, 2.0)), paired=False)
    assert low.outcome == "not shown: the model is damaged"


def test_a_mode_that_was_not_measured_leaves_the_claim_open() -> None:
    made = REFERENCE[HALF]
    numbers = {mode: value for mode, value in made.numbers.items() if mode != "good_x2"}
    found = verdict(2, HALF, {**REFERENCE, HALF: replace(made, numbers=numbers)})
    assert found.outcome == "inconclusive"
    assert "good_x2 shows it in (not measured)" in found.sentence


def test_a_control_that_differs_in_more_is_named_as_such() -> None:
    baseline = REFERENCE["baseline"]
    other = replace(baseline, changes={**baseline.changes, "train.max_steps": 50})
    found = verdict(2, HALF, {**REFERENCE, "baseline": other})
    assert "[differs in train.max_steps too]" in found.sentence


@pytest.mark.parametrize(
    ("cosine", "outcome"), [(0.05, "lower"), (0.313, "no different"), (0.6, "higher")]
)
def test_cosines_are_read_against_the_unrouted_run(cosine: float, outcome: str) -> None:
    made = {**REFERENCE, HALF: replace(REFERENCE[HALF], cosine=cosine)}
    found = verdict(4, HALF, made)
    assert found.outcome == outcome
    assert "random updates of the same shapes 0.004: higher" in found.sentence


def test_only_routed_runs_are_judged() -> None:
    made = {name: one for name, one in REFERENCE.items() if not name.startswith("0.1_")}
    assert judge(collect(made)) == []
    assert "need a routed run" in render_verdicts([])


def test_labels_of_a_file_are_not_taken_for_the_dials() -> None:
    made = replace(REFERENCE[HALF], changes={"data.path": "mine.jsonl"})
    found = verdict(2, HALF, {HALF: made})
    assert found.claim.startswith("With the labels that training saw")


def test_a_rate_of_a_model_worse_than_the_base_is_marked() -> None:
    past_use = changed(HALF, good_x2=(0, 1.9, 3.0))
    (text,) = [t for t in texts(verdict(2, HALF, past_use), True) if t.startswith("good_x2")]
    assert "says little: normal loss 1.90, the untuned base has" in text
    (text,) = [t for t in texts(verdict(2, HALF, past_use), True) if t.startswith("bad_ablated")]
    assert "says little" not in text


def test_two_modes_on_the_same_prompts_are_tested_exactly_and_with_what_could_be_found() -> None:
    text = next(check.text for check in verdict(2, HALF).checks if "McNemar" in check.text)
    assert text.startswith(
        "on the same 128 prompts full alone shows it 77 times, bad_ablated alone"
    )
    assert "+60 points [+51, +68], exact McNemar p < 0.001" in text
    assert "a difference of 6 points would have been found with 80 % power" in text


def test_the_quality_of_the_labels_stands_beside_the_claim() -> None:
    labels = {"labeled_bad": 835, "true_bad": 600, "precision": 300 / 835, "recall": 0.5}
    runs = [replace(run, manifest={"labels": labels}) for run in collect()]
    (found,) = [one for one in judge(runs) if (one.number, one.run) == (2, HALF)]
    text = (
        "labels: 300 of 835 labeled bad are bad (precision 36 %), 300 of 600 bad ones are labeled"
    )
    assert f"{text} (recall 50 %)" in found.sentence


def test_without_a_baseline_an_oracle_takes_its_place_for_the_gain() -> None:
    oracle = {"routing": "none", "data.drop": "true_bad", "adapters": {"good": {"rank": 64}}}
    made = {HALF: REFERENCE[HALF], "o": Made(oracle, {"full": (0, 0.78, 3.0), "base": BASE})}
    assert "against o (at least 0.80)" in verdict(2, HALF, made).sentence
