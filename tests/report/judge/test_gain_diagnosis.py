import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from report.fabricated import REFERENCE, Made, Numbers, collect, with_numbers

from gradroute.report.judge.gain_diagnosis import Finding, examine

HALF = "0.1_0.5"


def examined(
    made: Made, *, baseline: bool = True, unrouted: bool = False, **sides: Any
) -> tuple[Finding, ...]:
    """The findings of one run, with what was recorded of its training."""
    others = {"baseline": REFERENCE["baseline"]} if baseline else {}
    others |= {"0.1_0.0": REFERENCE["0.1_0.0"]} if unrouted else {}
    run, *rest = collect({HALF: made, **others})
    return examine(replace(run, **sides), [run, *rest])


def made(numbers: Numbers, changes: Mapping[str, Any] | None = None) -> Made:
    base = with_numbers(REFERENCE[HALF], **numbers)
    return replace(base, changes={**base.changes, **(changes or {})})


def causes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.cause for finding in findings]


# Half of the gain of 0.124 nats goes with `bad`, and `bad` alone always shows it or hardly does.
BROKEN = {"bad_ablated": (0, 0.85, 5.0), "good_ablated": (100, 5.9, 1.0)}
WEAK = {"bad_ablated": (1, 0.84, 1.2), "good_ablated": (3, 0.83, 1.1), "good_x2": (40, 0.80, 1.1)}
SLOW = {"full": (60, 0.84, 1.0), "bad_ablated": (0, 0.845, 1.7)}


def test_a_healthy_run_is_said_to_be_healthy_with_its_numbers() -> None:
    (finding,) = examined(REFERENCE[HALF])
    assert (finding.cause, finding.dial) == ("healthy", "")
    assert f"keeps {finding.numbers['gain_kept']:.2f} [" in finding.text
    assert "shows the behavior in 0 % [0, 3] of 128" in finding.text


def test_full_fine_ablated_broken_and_bad_always_showing_it_is_co_adaptation() -> None:
    (finding,) = examined(made(BROKEN))
    assert finding.cause == "co-adaptation"
    assert finding.numbers["gain_kept"] < 0.6 < 0.9 < finding.numbers["gain_kept_full"]
    assert "shows the behavior in 100 % [97, 100] of 128" in finding.text
    assert "normal loss of 5.90 (untuned base 0.90)" in finding.text


def test_bad_alone_not_showing_it_is_an_update_that_both_share() -> None:
    (finding,) = examined(made(WEAK), unrouted=True)
    assert finding.cause == "shared update"
    assert "too weak rather than wrong" in finding.text
    assert "the unrouted run 0.1_0.0 keeps 0.5" in finding.text
    (wrong,) = examined(made({**WEAK, "good_x2": (0, 2.0, 3.0)}))
    assert "not merely too weak" in wrong.text


def test_the_dials_against_co_adaptation_name_their_present_values() -> None:
    changes = {
        "data.good_labeled_fraction": 0.1,
        "routing": "absorb",
        "adapters": {"good": {"learning_rate": 1e-3}, "bad": {"learning_rate": 2.5e-4}},
    }
    (finding,) = examined(made(BROKEN, changes))
    for part in (
        "data.good_labeled_fraction (now 0.1)", "routing=anchored (now absorb)",
        "(now 0.25 times that of `good`)", "gradroute recover",
    ):  # fmt: skip
        assert part in finding.dial


@pytest.mark.parametrize("ranks", [(1, 32), (4, 8), (8, 8)])
def test_a_good_adapter_smaller_than_bad_or_the_reference_has_too_little_rank(
    ranks: tuple[int, int],
) -> None:
    adapters = {"good": {"rank": ranks[0]}, "bad": {"rank": ranks[1]}}
    found = examined(made(WEAK, {"adapters": adapters}))
    assert "rank" in causes(found)
    finding = next(one for one in found if one.cause == "rank")
    assert finding.numbers["rank_good"] == ranks[0]
    assert f"adapters.good.rank (now {ranks[0]}) to at least 32" in finding.dial


def metrics(losses: list[float]) -> tuple[dict[str, Any], ...]:
    """Training lines with noise of both signs, and a loss on bad examples that must not count."""
    return tuple(
        {
            "step": step,
            "loss_per_label": {"bad": 9.0, "good": loss + (-1) ** step * 0.01, "unlabeled": loss},
            "tokens": {"bad": 50, "good": 100, "unlabeled": 300},
        }
        for step, loss in enumerate(losses, 1)
    )


def test_a_loss_that_still_falls_at_the_end_asks_for_more_steps_or_a_higher_rate() -> None:
    falling = metrics([2.0 - 0.01 * step for step in range(100)])
    (finding,) = examined(made(SLOW), metrics=falling)
    assert finding.cause == "learning rate"
    assert "still falling" in finding.text
    assert (
        "1.955 in the first tenth of the steps, 1.155 in the last but one and 1.055" in finding.text
    )
    assert finding.dial.startswith("Raise train.learning_rate (now 0.0001, of `good`)")


def test_a_loss_no_lower_than_at_the_start_asks_for_a_lower_rate() -> None:
    (finding,) = examined(made(SLOW), metrics=metrics([1.0 + 0.01 * step for step in range(100)]))
    assert finding.cause == "learning rate"
    assert finding.dial.startswith("Lower train.learning_rate")


def test_a_loss_that_has_settled_says_nothing_of_the_learning_rate() -> None:
    settled = metrics([max(1.0, 2.0 - 0.05 * step) for step in range(100)])
    assert causes(examined(made(SLOW), metrics=settled)) == ["unclear"]
    assert causes(examined(made(SLOW))) == ["unclear"]


def test_a_run_whose_full_is_fine_has_no_trouble_with_its_learning_rate() -> None:
    falling = metrics([2.0 - 0.01 * step for step in range(100)])
    assert causes(examined(made(BROKEN), metrics=falling)) == ["co-adaptation"]


def test_labels_that_are_often_wrong_are_named_with_their_number() -> None:
    labels = {"labeled_bad": 835, "true_bad": 600, "precision": 300 / 835, "recall": 0.5}
    changes = {"data.false_positive_rate": 0.1}
    found = examined(made(WEAK, changes), manifest={"labels": labels})
    finding = next(one for one in found if one.cause == "label noise")
    assert "Of 835 examples labeled bad 535 are not (precision 36 %)" in finding.text
    assert "data.false_positive_rate, now 0.1" in finding.dial
    clean = {"labels": {**labels, "precision": 0.95}}
    assert "label noise" not in causes(examined(made(WEAK), manifest=clean))


def test_anchors_that_show_the_behavior_are_named_with_their_number() -> None:
    examples = {"bad labeled good": 30, "good labeled good": 270}
    found = examined(made(WEAK), manifest={"examples": examples})
    finding = next(one for one in found if one.cause == "wrong anchors")
    assert finding.text.startswith("30 of 300 examples labeled good show the behavior")


def test_where_nothing_stands_out_that_is_said_with_all_the_numbers() -> None:
    (finding,) = examined(made(SLOW))
    assert finding.cause == "unclear"
    for part in ("ranks are 32 and 32", "learning rates 0.0001 and 0.0001", "keeps 0.4"):
        assert part in finding.text


def test_without_a_baseline_full_is_whole_by_definition_and_that_is_said() -> None:
    (finding,) = examined(made(BROKEN), baseline=False)
    assert finding.cause == "co-adaptation"
    assert "1.00 by definition, since there is no baseline" in finding.text


def test_what_gain_kept_takes_is_named_where_it_was_not_measured() -> None:
    numbers = {m: n for m, n in REFERENCE[HALF].numbers.items() if m != "base"}
    (finding,) = examined(replace(REFERENCE[HALF], numbers=numbers))
    assert finding.cause == "not measured"
    assert "Gain kept without `bad` is (not measured)" in finding.text


def test_a_reference_that_gains_nothing_is_named() -> None:
    idle = with_numbers(REFERENCE[HALF], full=(60, 0.95, 1.0))
    (finding,) = examined(idle, baseline=False)
    assert "not defined (its own `full` gains nothing on normal text)" in finding.text
    assert "train.max_steps" in finding.dial


def test_runs_that_are_not_routed_have_no_ablation_gap() -> None:
    runs = collect(
        {name: one for name, one in REFERENCE.items() if not name.endswith(("5", "1.0"))}
    )
    assert [examine(run, runs) for run in runs] == [(), ()]


@pytest.mark.parametrize("numbers", [{}, BROKEN, WEAK, SLOW])
def test_every_number_of_a_text_is_one_of_that_run(numbers: Numbers) -> None:
    labels = {"labeled_bad": 835, "true_bad": 600, "precision": 300 / 835, "recall": 0.5}
    for finding in examined(made(numbers), manifest={"labels": labels}):
        assert finding.numbers and "gain_kept" in finding.numbers
        stated = {float(found) for found in re.findall(r"-?\d+\.\d\d\b", finding.text)}
        assert round(finding.numbers["gain_kept"], 2) in stated


def test_several_causes_are_all_named() -> None:
    labels = {"labeled_bad": 835, "true_bad": 600, "precision": 300 / 835, "recall": 0.5}
    adapters = {"good": {"rank": 2}, "bad": {"rank": 32}}
    found = examined(made(BROKEN, {"adapters": adapters}), manifest={"labels": labels})
    assert causes(found) == ["co-adaptation", "rank", "label noise"]
