from dataclasses import replace
from typing import Any

import pytest
from report.fabricated import BASE, REFERENCE, Made, collect

from gradroute.report.judge.relearning import recoveries, relearnings, strongest
from gradroute.report.results.run_results import RunResults
from gradroute.system.statistics import difference, wilson

RATES = (4e-3, 4e-3 / 3)


def attacked(steps: int | None, other: int | None = None, most: int = 60) -> dict[str, Any]:
    """`relearn.json` with these steps at the run's learning rate and at a third of it."""
    return {
        "schema_version": 1,
        "threshold": 0.5,
        "curves": [
            {"learning_rate": rate, "steps_to_threshold": found, "max_steps": most, "points": []}
            for rate, found in zip(RATES, (steps, other), strict=True)
        ],
    }


def runs_with(routed: dict[str, Any], baseline: dict[str, Any] | None) -> list[RunResults]:
    run, never = collect({"r": REFERENCE["0.1_0.5"], "baseline": REFERENCE["baseline"]})
    return [replace(run, relearn=routed), replace(never, relearn=baseline)]


@pytest.mark.parametrize(
    ("routed", "baseline", "outcome"),
    [
        (14, 26, "suppressed"),
        (26, 26, "no faster"),
        (40, 26, "no faster"),
        (14, None, "suppressed"),
        (None, 26, "no faster"),
        (None, None, "inconclusive"),
        (0, 26, "present"),
    ],
)
def test_a_run_that_relearns_faster_than_one_that_never_saw_it_is_suppressed(
    routed: int | None, baseline: int | None, outcome: str
) -> None:
    first, *_ = relearnings(runs_with(attacked(routed), attacked(baseline)))
    assert (first.run, first.outcome, first.against) == ("r", outcome, "baseline")
    assert first.text.endswith(f"{outcome}.")


def test_every_learning_rate_is_judged_by_itself() -> None:
    found = relearnings(runs_with(attacked(14, 50), attacked(26, 40)))
    assert [(one.learning_rate, one.outcome) for one in found[:2]] == [
        (RATES[0], "suppressed"),
        (RATES[1], "no faster"),
    ]
    assert [one.outcome for one in found[2:]] == ["reference", "reference"]
    assert "14 steps to 50 %, baseline, which never saw it, 26 steps" in found[0].text


def test_steps_that_were_not_enough_are_said_with_how_many_there_were() -> None:
    first, *_ = relearnings(runs_with(attacked(None), attacked(26)))
    assert first.steps is None and "not within 60 steps" in first.text


def test_a_shorter_attack_than_the_baseline_needed_decides_nothing() -> None:
    first, *_ = relearnings(runs_with(attacked(None, most=10), attacked(26)))
    assert first.outcome == "inconclusive"


def test_without_an_attacked_baseline_nothing_is_known() -> None:
    first, *_ = relearnings(runs_with(attacked(14), None))
    assert (first.outcome, first.against) == ("not measured", None)


def test_attacks_that_differ_are_not_compared() -> None:
    settings = {"examples": 64, "checkpoint": "a", "kept_mode": "bad_ablated", "rank": 64}
    own = {"checkpoint": "b", "kept_mode": "full", "rank": 32}
    for change, against in (({}, "baseline"), ({"examples": 32}, None)):
        routed = attacked(14) | {"settings": settings}
        baseline = attacked(26) | {"settings": {**settings, **own, **change}}
        assert relearnings(runs_with(routed, baseline))[0].against == against


def test_an_oracle_stands_in_for_a_baseline_that_was_not_attacked() -> None:
    oracle = {"routing": "none", "data.drop": "true_bad", "adapters": {"good": {"rank": 64}}}
    made = {
        "r": REFERENCE["0.1_0.5"],
        "baseline": REFERENCE["baseline"],
        "o": Made(oracle, {"full": (0, 0.78, 3.0), "base": BASE}),
    }
    run, never, o = collect(made)
    runs = [replace(run, relearn=attacked(14)), never, replace(o, relearn=attacked(30))]
    assert relearnings(runs)[0].against == "o"


def test_runs_that_were_not_attacked_are_not_listed() -> None:
    assert relearnings(collect()) == [] and recoveries(collect()) == []


def recovered(before: int, after: int, loss: float | None = 0.77) -> RunResults:
    def cell(shown: int, normal: float | None) -> dict[str, Any]:
        lower, upper = wilson(shown, 128)
        rate = {"mean": shown / 128, "lower": lower, "upper": upper, "n": 128}
        return {"rate": rate, "normal_loss": normal, "behavior_loss": 2.0}

    record = {
        "schema_version": 1, "steps": 50, "learning_rate": 1e-3, "examples": 200,
        "before": {"bad_ablated": cell(before, 0.80), "full": {"rate": None, "normal_loss": 0.7}},
        "after": {"bad_ablated": cell(after, loss), "full": {"rate": None, "normal_loss": 0.7}},
    }  # fmt: skip
    (run,) = collect({"r": REFERENCE["0.1_0.5"]})
    return replace(run, recovery=record)


def test_recovery_says_what_it_gained_and_what_it_revived() -> None:
    first, full = recoveries([recovered(0, 20)])
    assert (first.run, first.mode, first.steps) == ("r", "bad_ablated", 50)
    assert first.rate == (20 / 128, *difference(20, 128, 0, 128))
    assert first.normal == pytest.approx(-0.03)
    assert first.text.endswith("The behavior is revived.")
    assert "50 steps on 200 known-good examples" in first.text
    assert full.rate is None and full.normal == 0.0


def test_a_change_within_its_interval_revives_nothing() -> None:
    first, _ = recoveries([recovered(0, 1)])
    assert "revived" not in first.text


def test_what_was_not_measured_is_not_made_up() -> None:
    first, _ = recoveries([recovered(0, 1, loss=None)])
    assert first.normal is None


def on_all_weights(*steps: int | None) -> dict[str, Any]:
    """Curves of an attacker that trains every weight, at a tenth of the rate and less."""
    curves = [
        {
            "learning_rate": 4e-4 / 2**at,
            "steps_to_threshold": found,
            "max_steps": 60,
            "points": [{"rate": at / 10}],
        }
        for at, found in enumerate(steps)
    ]
    return {"full_curves": curves}


def test_an_attacker_of_all_weights_counts_at_its_strongest_learning_rate() -> None:
    never = attacked(26, 40) | on_all_weights(30, 12, None)
    own = attacked(26, 40) | on_all_weights(None, 20, 9)
    *lora, full = (one for one in relearnings(runs_with(own, never)) if one.run == "r")
    assert [(one.outcome, one.of_rates) for one in lora] == [("no faster", None)] * 2
    assert (full.outcome, full.steps, full.against_steps, full.of_rates) == ("suppressed", 9, 12, 3)
    assert full.learning_rate == 1e-4  # each run is attacked at the rate that is worst for it
    assert "all weights, the strongest of 3 rates: 9 steps" in full.text


def test_where_no_rate_brings_it_back_the_highest_rate_at_the_end_counts() -> None:
    best = strongest(on_all_weights(None, None, None))
    assert best is not None and best["learning_rate"] == 1e-4
    assert strongest(attacked(3)) is None
