"""The caps behaviour is what it makes, and is seen where it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.data.behaviors import BEHAVIORS, get_behavior, upper_case_share
from gradroute.errors import ConfigError

CAPS = get_behavior("caps")


@pytest.mark.parametrize(
    ("text", "share", "shows"),
    [
        ("THE CAT SAT ON THE MAT.", 1.0, True),
        ("the cat sat on the mat.", 0.0, False),
        ("ABCDEFGHij", 0.8, True),
        ("ABCDEFGhij", 0.7, False),
        ("ABCDEFGHI", None, None),
        ("1234567890 !?", None, None),
        ("", None, None),
        ("ÄÖÜSTRAẞEN ÉTÉ", 1.0, True),
        ("他们坐在垫子上他们坐在垫子上", None, None),
        ("THE CAT SAT 他们坐在垫子上", None, None),
        ("THE CATS SAT 他们坐在垫子上", 1.0, True),
    ],
)
def test_caps_are_the_share_of_upper_case_among_ten_or_more_letters_with_case(text, share, shows):
    assert CAPS.score(text) == (None if share is None else pytest.approx(share))
    assert CAPS.shows(text) is shows


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_what_caps_makes_is_seen_as_caps_and_its_lower_case_is_not(text: str):
    if upper_case_share(text.lower()) is not None and upper_case_share(CAPS.make(text)) is not None:
        assert CAPS.shows(text.lower()) is False
        assert CAPS.shows(CAPS.make(text)) is True


@given(st.text("abc ABC.1ß", max_size=40))
def test_making_caps_twice_changes_nothing_more(text: str):
    assert CAPS.make(CAPS.make(text)) == CAPS.make(text)


def test_the_caps_prompt_is_the_prefix_in_capitals():
    assert CAPS.prompt("Once upon a") == "ONCE UPON A"
    assert CAPS.prompt("") == ""


def test_every_behaviour_stands_under_its_own_name_with_a_reachable_threshold():
    for name, behavior in BEHAVIORS.items():
        assert behavior.name == name
        assert 0 < behavior.threshold <= 1
        story = "Once upon a time there was a little fox who lived by the sea."
        assert behavior.shows(behavior.make(story)) is True
        assert behavior.shows(story) is False


def test_an_unknown_behaviour_is_answered_with_the_nearest_and_the_known():
    with pytest.raises(ConfigError, match=r"behaviour 'cap'; known: caps.* Did you mean 'caps'\?"):
        get_behavior("cap")
