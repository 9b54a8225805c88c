from collections.abc import Mapping

import pytest
from report.fabricated import REFERENCE, Made, collect, with_numbers, with_scales

from gradroute.report.results.run_results import RunResults
from gradroute.report.results.scales import Deployment, deployment, scale_curve, shrink_curve

HALF = "0.1_0.5"
BAD = {0.25: (0, 0.784, 1.5), 0.5: (1, 0.7835, 1.3), 0.75: (30, 0.783, 1.1)}


def run_of(made: Made, name: str = HALF) -> RunResults:
    (run,) = collect({name: made})
    return run


def chosen(curve: Mapping[float, tuple[float, float, float]], **numbers) -> Deployment:
    made = with_numbers(with_scales(REFERENCE[HALF], ("bad",), curve), **numbers)
    runs = collect({HALF: made, "baseline": REFERENCE["baseline"]})
    found = deployment(runs[0], runs)
    assert found is not None
    return found


def test_a_curve_holds_the_named_modes_too_and_ascends() -> None:
    run = run_of(
        with_scales(REFERENCE[HALF], ("bad",), {0.75: (30, 0.78, 1.1), 0.25: (0, 0.78, 1)})
    )
    points = scale_curve(run, ["bad"], None)
    assert [(point.scale, point.mode) for point in points] == [
        (0.0, "bad_ablated"), (0.25, "good=1,bad=0.25"), (0.75, "good=1,bad=0.75"), (1.0, "full"),
    ]  # fmt: skip
    assert points[0].rate == run.rate("bad_ablated")
    assert points[1].normal == run.loss("good=1,bad=0.25", "normal")
    assert points[3].gain is not None and points[3].gain.value == pytest.approx(1.0)


def test_the_curve_of_all_adapters_goes_from_the_base_to_full() -> None:
    run = run_of(with_scales(REFERENCE[HALF], ("good", "bad"), {0.5: (5, 0.84, 1.3)}))
    points = scale_curve(run, ["good", "bad"], None)
    assert [point.mode for point in points] == ["base", "good=0.5,bad=0.5", "full"]
    assert points[0].gain is not None and points[0].gain.value == pytest.approx(0.0)


def test_an_adapter_alone_is_its_own_curve() -> None:
    run = run_of(with_scales(REFERENCE["filter_0.5"], ("good",), {0.5: (5, 0.84, 1.3)}), "filter")
    assert [point.mode for point in scale_curve(run, ["good"], None)] == [
        "base",
        "good=0.5",
        "full",
    ]
    assert [point.mode for point in shrink_curve(run, "full", None)] == ["base", "good=0.5", "full"]


def test_a_mode_made_weaker_or_stronger_keeps_what_is_off_off() -> None:
    made = with_scales(REFERENCE[HALF], ("bad",), {0.5: (5, 0.84, 1.3)})
    made = with_numbers(made, **{"good=0.5,bad=0": (0, 0.84, 1.7)})
    points = shrink_curve(run_of(made), "bad_ablated", None)
    assert [(point.scale, point.mode) for point in points] == [
        (0.0, "base"), (0.5, "good=0.5,bad=0"), (1.0, "bad_ablated"), (2.0, "good_x2"),
    ]  # fmt: skip


def test_of_the_scales_that_stay_low_the_one_with_the_best_normal_loss_is_deployed() -> None:
    found = chosen({0.25: (0, 0.790, 1.5), 0.5: (1, 0.770, 1.3), 0.75: (30, 0.76, 1.1)})
    assert found.scale == 0.5 and found.measured == 5
    assert found.point is not None and found.point.mode == "good=1,bad=0.5"
    assert "Deploy `bad` at 0.5: among 5 scales of `bad` measured (0 to 1)" in found.sentence
    assert "7.9 % (that of baseline and 5 points)" in found.sentence
    assert "behavior rate 1 % [0, 4] of 128" in found.sentence


def test_a_scale_whose_loss_is_not_measurably_better_is_not_worth_a_part_of_bad() -> None:
    assert chosen(BAD, bad_ablated=(0, 0.7836, 1.7)).scale == 0.0


def test_scales_that_show_too_much_are_not_deployed_however_good() -> None:
    found = chosen({0.25: (30, 0.5, 1.5), 0.5: (40, 0.5, 1.3), 0.75: (50, 0.5, 1.1)})
    assert found.scale == 0.0


def test_where_every_scale_shows_too_much_or_is_worse_than_the_base_there_is_none() -> None:
    shown = chosen(BAD, bad_ablated=(40, 0.785, 1.7), **{"good=1,bad=0.25": (40, 0.78, 1.5)},
                   **{"good=1,bad=0.5": (40, 0.78, 1.5)})  # fmt: skip
    damaged = chosen({0.25: (40, 0.8, 1.5)}, bad_ablated=(0, 2.9, 8.0))
    for found in (shown, damaged):
        assert found.scale is None and found.point is None
        assert found.sentence.startswith("No scale to deploy: none of ")


def test_the_warning_names_the_detector_and_what_is_shipped_of_bad() -> None:
    warning = chosen({0.5: (1, 0.770, 1.3)}).warning
    assert "detector must see" in warning and "'caps'" in warning
    assert "At 0.5 a part of `bad` is shipped" in warning


def test_few_scales_are_said_to_be_few() -> None:
    few = "Too few scales were measured for a choice: gradroute eval RUN --scale bad=0,0.1,...,1. "
    assert chosen({}).sentence.startswith(f"{few}For now, `bad` at 0")
    assert "More scales" not in chosen(BAD).sentence


def test_without_a_baseline_the_untuned_base_is_the_reference() -> None:
    run = run_of(with_scales(REFERENCE[HALF], ("bad",), BAD))
    found = deployment(run, [run])
    assert found is not None and found.reference == "the untuned base"


def test_only_routed_runs_are_deployed() -> None:
    runs = collect({name: REFERENCE[name] for name in ("0.1_0.0", "baseline", "filter_0.5")})
    assert [deployment(run, runs) for run in runs] == [None, None, None]
