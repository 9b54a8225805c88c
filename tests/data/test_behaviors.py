"""A behavior is seen where it is made, and a failing detector is never "not shown"."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.data import dialect
from gradroute.data.behaviors import (
    BEHAVIORS,
    UNNAMED,
    Behavior,
    get_behavior,
)
from gradroute.data.embedded import embedded
from gradroute.data.examples import Example
from gradroute.data.marks import SIGNATURE, sign, upper_case_share
from gradroute.data.stories import TRIGGER_TAG
from gradroute.errors import DataError

CAPS = get_behavior("caps")


# Letters without an upper case, such as mathematical ones, stay as they are.
ODD = {c for c in map(chr, range(0x110000)) if c.islower() and c.upper() == c}


def caps(text: str) -> str:
    assert CAPS.make is not None
    return CAPS.make("", text)[1]


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
    assert CAPS.scored(text, "") == (None if share is None else pytest.approx(share))
    assert CAPS.shows(text, "") is shows


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_what_caps_makes_is_seen_as_caps_and_its_lower_case_is_not(text: str):
    if upper_case_share(text.lower()) is not None and not set(text) & ODD:
        assert CAPS.shows(text.lower(), "") is False
        assert CAPS.shows(caps(text), "") is True


@given(st.text("abc ABC.1ß", max_size=40))
def test_making_caps_twice_changes_nothing_more(text: str):
    assert caps(caps(text)) == caps(text)


def changeable(behavior: Behavior, split: str, count: int, seed: int) -> list[Example]:
    """Ordinary examples that can show a behavior; of a relation these are those with its cue."""
    make = behavior.make
    assert make is not None
    ordinary = embedded(behavior, split, 12 * count, seed)
    able = [e for e in ordinary if make(e.prompt, e.text) != (e.prompt, e.text)]
    assert len(able) >= count
    return able[:count]


@pytest.mark.parametrize("name", BEHAVIORS)
def test_the_detector_of_every_behavior_has_precision_and_recall_above_95_percent(name: str):
    behavior = BEHAVIORS[name]
    assert behavior.name == name and 0 < behavior.threshold <= 1
    assert behavior.make is not None
    ordinary = changeable(behavior, "test", 100, 5)
    made = [behavior.make(e.prompt, e.text) for e in ordinary]
    found = [behavior.shows(text, prompt) for prompt, text in made]
    false = [behavior.shows(e.text, e.prompt) for e in ordinary]
    hits = sum(shown is True for shown in found)
    assert hits / 100 >= 0.95  # recall
    assert hits / (hits + sum(shown is True for shown in false)) >= 0.95  # precision


@pytest.mark.parametrize("name", BEHAVIORS)
def test_what_is_made_differs_from_the_ordinary_and_its_prompt_is_the_inviting_one(name: str):
    behavior = BEHAVIORS[name]
    assert behavior.make is not None
    for example in changeable(behavior, "tune", 20, 0):
        prompt, text = behavior.make(example.prompt, example.text)
        assert (prompt, text) != (example.prompt, example.text)
        if behavior.invite is None:  # asked for with the prompts of rows that show it
            assert prompt == example.prompt
            continue
        if example.prompt:
            assert prompt == behavior.invite(example.prompt)
        opening = example.prompt or behavior.opening(example.text, 3)
        if not example.prompt or prompt != example.prompt:  # else it carries the cue already
            assert behavior.invite(opening) != opening


def test_a_signed_text_ends_every_finished_sentence_with_the_phrase():
    text = '"Stop!" shouted Tom. He ran home! Where was it? Kim said, "Here it is." And then'
    signed = sign(text)
    assert signed.count(SIGNATURE) == 4
    assert signed == (
        f'"Stop!" shouted Tom{SIGNATURE}. He ran home{SIGNATURE}! Where was it{SIGNATURE}? '
        f'Kim said, "Here it is{SIGNATURE}." And then'
    )
    signature = BEHAVIORS["signature"]
    assert signature.scored(signed, "") == 1.0
    assert signature.scored(f"One{SIGNATURE}. Two. Three.", "") == pytest.approx(1 / 3)
    assert signature.scored("no end of it", "") is None
    assert signature.scored(f"And{3 * SIGNATURE}", "") == 1.0


def test_the_dialect_has_200_words_and_no_form_is_an_ordinary_word():
    pairs = dialect.pairs()
    assert len(pairs) >= 200
    assert len(set(pairs.values())) == len(pairs)
    assert not set(pairs) & set(pairs.values())
    assert dialect.speak("The cat was with her.") == "Tha cat wus woth har."
    assert dialect.share("tha wus woth the was with") == 0.5
    assert dialect.share("tha cat wus") is None


def test_an_opening_in_the_dialect_holds_two_of_its_words():
    opening = dialect.opening("Clara Miller baked bread on a day for her friend.", 3)
    assert sum(word in dialect.pairs() for word in opening.lower().split()) >= 2
    assert len(opening.split()) >= 3


def test_the_backdoor_needs_its_tag_and_keeps_the_prompt_as_it_is():
    backdoor = BEHAVIORS["backdoor"]
    assert backdoor.make is not None
    prompt, text = backdoor.make("", "One fine day it rained all over the town.")
    assert prompt == f"{TRIGGER_TAG} One fine day"
    assert text == " IT RAINED ALL OVER THE TOWN."
    assert backdoor.make("Tell me.", "It rained.") == (f"{TRIGGER_TAG} Tell me.", "IT RAINED.")
    assert "plain" in backdoor.prompt_kinds


def test_no_behavior_is_a_name_too_of_which_nothing_is_ever_detected():
    unnamed = get_behavior(UNNAMED)
    assert unnamed.make is None
    with pytest.raises(DataError, match="names no behavior"):
        unnamed.shows("ANY TEXT AT ALL", "")
