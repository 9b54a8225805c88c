import math
from dataclasses import replace

import pytest
from report.fabricated import REFERENCE, collect, with_numbers

from gradroute.report.judge.equal_gain import (
    AS_IS,
    REACHED,
    SHORT,
    EqualGain,
    at_equal_gain,
    find_spot,
)
from gradroute.report.results.contrasts import GainKept, gain_kept
from gradroute.report.results.run_results import Loss, Rate, RunResults
from gradroute.report.results.scales import Point
from gradroute.system.statistics import wilson

HALF, FILTER = "0.1_0.5", "filter_0.5"


def point(scale: float, gain: float, shown: int) -> Point:
    rate = Rate(shown / 100, *wilson(shown, 100), 100)
    loss = Loss(1 - gain, 0.0, 1.0, 0.1, 100)
    kept = GainKept(gain, gain - 0.01, gain + 0.01, "some", "baseline")
    return Point(scale, f"all={scale}", rate, loss, None, kept)


CURVE = [point(0.0, 0.0, 0), point(0.6, 0.7, 2), point(0.8, 0.9, 20), point(1.0, 1.0, 50)]


def test_between_measured_scales_gain_and_rate_are_straight_lines() -> None:
    spot = find_spot(CURVE, 0.95)
    assert spot is not None and spot.how == REACHED
    assert (spot.scale, spot.rate.mean, spot.gain) == pytest.approx((0.9, 0.35, 0.95))
    assert spot.rate[1:] == (*wilson(35, 100), 100)


def test_at_a_measured_scale_it_is_what_was_measured_there() -> None:
    spot = find_spot(CURVE, 0.9)
    assert spot is not None
    assert (spot.scale, spot.rate.mean) == pytest.approx((0.8, 0.2))


@pytest.mark.parametrize("wanted", [0.985, 1.0, 1.015])
def test_a_control_that_keeps_about_as_much_is_taken_as_it_is(wanted: float) -> None:
    spot = find_spot(CURVE, wanted)
    assert spot is not None
    assert (spot.how, spot.scale, spot.rate.mean) == (AS_IS, 1.0, 0.5)


def test_a_control_that_cannot_keep_as_much_is_taken_where_it_keeps_most() -> None:
    curve = [point(0.0, 0.0, 0), point(1.0, 0.6, 1), point(2.0, 0.8, 47)]
    spot = find_spot(curve, 0.95)
    assert spot is not None
    assert (spot.how, spot.scale, spot.gain, spot.rate.mean) == (SHORT, 2.0, 0.8, 0.47)


def test_scales_too_far_apart_are_not_bridged() -> None:
    assert find_spot([point(0.0, 0.0, 0), point(1.0, 1.0, 50)], 0.9) is None
    assert find_spot(CURVE, 0.5) is None  # from 0 to 0.6


def test_of_several_crossings_the_one_nearest_to_what_was_trained_counts() -> None:
    curve = [point(0.6, 0.95, 1), point(0.8, 0.8, 2), point(1.0, 1.0, 50), point(1.2, 0.8, 60)]
    spot = find_spot(curve, 0.9)
    assert spot is not None and spot.scale == pytest.approx(0.9)


def test_a_curve_without_the_control_itself_tells_nothing() -> None:
    assert find_spot(CURVE[:-1], 0.85) is None


def compared(
    routed: tuple[float, float, float], control: dict[str, tuple[float, float, float]]
) -> EqualGain:
    """A routed run (bad_ablated) beside a filter with these scales, against the baseline."""
    made = {
        HALF: with_numbers(REFERENCE[HALF], bad_ablated=routed),
        FILTER: with_numbers(REFERENCE[FILTER], **control),
        "baseline": REFERENCE["baseline"],
    }
    run, other, baseline = collect(made)
    return at_equal_gain([(run, other)], "full", [baseline], [rate(run)], [gain(run, baseline)])


def rate(run: RunResults) -> Rate:
    found = run.rate("bad_ablated")
    assert found is not None
    return found


def gain(run: RunResults, baseline: RunResults) -> GainKept | None:
    return gain_kept(run, baseline)


def test_a_control_is_made_weaker_until_it_keeps_no_more_than_the_routed_run() -> None:
    # The routed run keeps 0.77 of the gain of 0.124 nats; the filter 0.98, and 0.7 at 0.8.
    found = compared((0, 0.81, 1.7), {"good=0.8": (10, 0.818, 1.2)})
    assert found.rate is not None and found.difference is not None
    assert 0.8 < found.scales[0] < 0.9
    assert 0.10 < found.rate.mean < 0.3 and found.outcome == "lower"
    assert found.difference.mean == pytest.approx(-found.rate.mean)
    assert "the control's update is scaled by 0.8" in found.how and "straight lines" in found.how


def test_a_control_whose_behavior_goes_with_its_scale_is_not_beaten() -> None:
    found = compared((0, 0.81, 1.7), {"good=0.9": (0, 0.80, 1.2), "good=0.8": (0, 0.818, 1.2)})
    assert found.outcome == "no different"


def test_what_was_not_measured_is_named_with_the_command() -> None:
    found = compared((0, 0.81, 1.7), {})
    assert (found.outcome, found.rate, found.difference) == ("not measured", None, None)
    assert "`gradroute eval filter_0.5 --scale all=0.1,0.2,...,1`" in found.how


def test_for_a_control_with_an_adapter_off_the_command_keeps_it_off() -> None:
    run, other, baseline = collect({n: REFERENCE[n] for n in (HALF, "0.1_0.0", "baseline")})
    strong = replace(other, cells={**other.cells, "good_x2": replace(other.cells["full"])})
    found = at_equal_gain(
        [(run, strong)], "bad_ablated", [baseline], [rate(run)], [GainKept(0.8, 0, 1, "", "")]
    )
    assert found.outcome == "not measured"
    assert "--mode good=0.8,bad=0" in found.how


def test_without_gain_kept_nothing_is_equal() -> None:
    run, other, baseline = collect({n: REFERENCE[n] for n in (HALF, FILTER, "baseline")})
    for kept in (None, GainKept(math.nan, math.nan, math.nan, "", "")):
        found = at_equal_gain([(run, other)], "full", [baseline], [rate(run)], [kept])
        assert found.outcome == "not measured"
        assert "gain kept of 0.1_0.5 is not known" in found.how


def test_one_seed_has_the_interval_of_its_own_completions() -> None:
    found = compared((0, 0.785, 1.7), {})
    assert found.how.startswith("the control keeps as much as it is (")
    assert found.difference is not None and found.difference.basis == "one seed"
    assert found.difference.lower < found.difference.mean < found.difference.upper < -0.4
