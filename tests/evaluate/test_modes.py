"""Modes by name and by curve: every point once, under the one name that it has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.errors import ConfigError
from gradroute.evaluate.modes import MOST_SCALES, read_modes

BOTH = ("good", "bad")


def names(*curves: str, modes: tuple[str, ...] = (), adapters: tuple[str, ...] = BOTH) -> list[str]:
    return [mode.name for mode in read_modes(modes, curves, adapters)]


@pytest.mark.parametrize("dots", ["...", "…"])
def test_dots_go_on_with_the_step_to_the_end_and_the_ends_are_standard_modes(dots: str) -> None:
    assert names(f"bad=0,0.1,{dots},1") == [
        "bad_ablated",
        *(f"good=1,bad=0.{tenth}" for tenth in range(1, 10)),
        "full",
    ]


def test_the_scales_are_the_decimal_numbers_that_are_written() -> None:
    scales = [mode.scales["bad"] for mode in read_modes((), ["bad=0,0.1,...,1"], BOTH)]
    assert scales == [float(f"{tenth / 10:.1f}") for tenth in range(11)]


def test_a_curve_of_all_adapters_shrinks_the_whole_update() -> None:
    assert names("all=0,0.5,1") == ["base", "good=0.5,bad=0.5", "full"]
    assert names("all=0,0.5,1", adapters=("good",)) == ["base", "good=0.5", "full"]
    assert names("good=0.2,0.4", adapters=("good",)) == ["good=0.2", "good=0.4"]


def test_a_curve_may_fall_hold_several_dots_and_leave_zero_and_one() -> None:
    assert names("good=2,1.5,...,0.5,0.25,...,0") == [
        "good=2,bad=1",
        "good=1.5,bad=1",
        "full",
        "good=0.5,bad=1",
        "good=0.25,bad=1",
        "good_ablated",
    ]
    assert names("bad=-0.5,-0") == ["good=1,bad=-0.5", "bad_ablated"]


def test_one_and_the_same_mode_is_there_once_however_it_is_written() -> None:
    same = ("bad=0.5,good=1", "good=1,bad=0.5", "good=1.0,bad=5e-1")
    assert names("bad=0.5", "bad=0.5,0.5", modes=same) == ["good=1,bad=0.5"]
    assert names("bad=1", modes=("full", "good=1,bad=1")) == ["full"]
    assert names(modes=("good=2,bad=0",)) == ["good_x2"]


def test_a_mode_asked_for_by_name_keeps_it() -> None:
    assert names(modes=("good_ablated", "base"), adapters=("good",)) == ["good_ablated", "base"]


@given(st.integers(1, MOST_SCALES - 2), st.integers(-50, 50), st.sampled_from([1, 2, 5, -1, -4]))
def test_dots_give_every_multiple_of_the_step(count: int, start: int, step: int) -> None:
    first, second, end = (f"{(start + step * i) / 100:.2f}" for i in (0, 1, count + 1))
    found = read_modes((), [f"bad={first},{second},...,{end}"], BOTH)
    wanted = {float(f"{(start + step * i) / 100:.2f}") for i in range(count + 2)}
    assert {mode.scales["bad"] for mode in found} == wanted
    assert all(mode.scales["good"] == 1 for mode in found)


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ("ugly=0,1", "'ugly', which does not exist; the adapters are good, bad, and all stands"),
        ("bda=0,1", "did you mean 'bad'"),
        ("bad", "write an adapter .or all. and its scales"),
        ("bad=", "write an adapter"),
        ("bad=0,much", "contains 'much'"),
        ("bad=0,nan", "contains 'nan'"),
        ("bad=0,,1", "contains ''"),
        ("bad=0,1,inf", "contains 'inf'"),
        ("bad=0,1e999", "must be a finite number"),
        ("bad=0,...,1", "two numbers before them"),
        ("bad=0,0.1,...", "ends with dots"),
        ("bad=0,0.3,...,1", "do not reach 1"),
        ("bad=0,0.1,...,-1", "do not reach -1"),
        ("bad=0,0,...,1", "do not reach 1"),
        ("bad=0,0.001,...,1", "more than 101 scales"),
        ("bad=0,1,...,1e999999", "more than 101 scales"),
        ("bad=0,1e-999999,...,1", "more than 101 scales"),
    ],
)
def test_a_curve_that_cannot_be_read_says_why(curve: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_modes((), [curve], BOTH)
    assert "\n" not in str(caught.value)


def test_a_mode_of_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match="names the adapter 'ugly'"):
        read_modes(["good=1,ugly=0"], [], BOTH)
