"""A behaviour is seen where it is made, and a failing detector is never "not shown"."""

import sys
import types
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.data import dialect
from gradroute.data.behaviors import (
    BEHAVIORS,
    SIGNATURE,
    get_behavior,
    sign,
    upper_case_share,
)
from gradroute.data.stories import TRIGGER_TAG
from gradroute.errors import ConfigError, DataError
from gradroute.prepare import embedded

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


@pytest.mark.parametrize("name", BEHAVIORS)
def test_the_detector_of_every_behaviour_has_precision_and_recall_above_95_percent(name: str):
    behavior = BEHAVIORS[name]
    assert behavior.name == name and 0 < behavior.threshold <= 1
    assert behavior.make is not None
    ordinary = embedded(behavior, "test", 100, 5)
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
    for example in embedded(behavior, "tune", 20, 0):
        prompt, text = behavior.make(example.prompt, example.text)
        assert (prompt, text) != (example.prompt, example.text)
        if example.prompt:
            assert prompt == behavior.invite(example.prompt)
        opening = example.prompt or behavior.opening(example.text, 3)
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


@pytest.mark.parametrize(
    ("completion", "score"),
    [("the moon Fell", 4 / 13), ("moonlight", 0.0), ("moon moon", 1.0 - 1 / 9), (" ", None)],
)
def test_a_regex_is_shown_by_one_match_and_scored_by_what_it_covers(completion, score):
    behavior = get_behavior(r"regex:\b(moon|Fox)\b")
    assert behavior.scored(completion, "") == (None if score is None else pytest.approx(score))
    assert behavior.shows(completion, "") is (None if score is None else score > 0)


def test_keywords_are_whole_words_in_any_case():
    behavior = get_behavior("keywords: Moon, fox-cub")
    assert behavior.shows("The MOON rose.", "") is True
    assert behavior.scored("a fox-cub and the moon", "") == pytest.approx(2 / 5)
    assert behavior.shows("moons and foxes", "") is False
    assert behavior.scored("...", "") is None


@pytest.fixture
def detectors(monkeypatch):
    module = types.ModuleType("my_detectors")
    module.__dict__.update(
        half=lambda text: 0.5 if "moon" in text else 0.2,
        broken=lambda text: 1 / 0,
        two=lambda text: 2.0,
        word=lambda text: "yes",
        number=3,
        whole=replace(CAPS, name="mine"),
    )
    monkeypatch.setitem(sys.modules, "my_detectors", module)


def test_a_function_or_a_behaviour_of_ones_own_is_imported(detectors):
    behavior = get_behavior("python:my_detectors.half")
    assert behavior.shows("moon", "") is True and behavior.shows("sun", "") is False
    assert behavior.make is None
    assert get_behavior("python:my_detectors.whole").make is not None


@pytest.mark.parametrize("name", ["broken", "two", "word"])
def test_a_detector_that_fails_is_an_error_and_never_a_default(detectors, name: str):
    behavior = get_behavior(f"python:my_detectors.{name}")
    with pytest.raises(DataError, match=rf"behaviour 'python:my_detectors.{name}'.*'some text'"):
        behavior.shows("some text", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cap", r"no behaviour 'cap'; known: caps.* Did you mean 'caps'\?"),
        ("regex:(", "no regular expression"),
        ("regex:a*", "matches an empty text"),
        ("regex:", "known: caps"),
        ("keywords:a,,b", "single words"),
        ("keywords:two words", "single words"),
        ("python:no_such_module.function", "cannot be imported"),
        ("python:function", "cannot be imported"),
        ("python:my_detectors.none", "cannot be imported"),
        ("python:my_detectors.number", "is int; a function"),
    ],
)
def test_a_behaviour_that_is_none_is_refused_in_words(detectors, name: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        get_behavior(name)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_detectors.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported \(RuntimeError: no licence\)"):
        get_behavior("python:failing_detectors.score")
