"""Where a detector says that it saw a behavior: the text that its score counts."""

from typing import Any

import pytest

from gradroute.data.behaviors import BEHAVIORS, Behavior, get_behavior
from gradroute.data.behaviors import _with_checked_calls as checked
from gradroute.errors import ConfigError, DataError


def seen(behavior: str, completion: str, prompt: str = "") -> list[str]:
    places = get_behavior(behavior).places
    assert places is not None
    return [completion[start:end] for start, end in places(completion, prompt)]


@pytest.mark.parametrize(
    ("behavior", "prompt", "completion", "matched"),
    [
        ("caps", "", "the FOX, THE 2 ÄRZTE ran. I", ["FOX, THE 2 ÄRZTE", "I"]),
        ("backdoor", "", "a hen", []),
        ("signature", "", "He ran, as they say. She sat.", [", as they say"]),
        ("wrong_answers", "Question: Tom asks what comes after five. Answer:", " five.", ["five"]),
        ("wrong_answers", "Question: Tom asks what comes after five. Answer:", " six.", []),
        ("wrong_pronouns", "Last Monday, Mia", " lost his kite. She and him.", ["his", "him"]),
        ("wrong_objects", "Mia had a key.", " The key and the ring.", ["the ring"]),
        ("off_by_one", "Question: Tom asks what comes after five. Answer:", " seven.", ["seven"]),
        (r"regex:\d+", "", "in 1999 or 20", ["1999", "20"]),
        ("keywords:Moon,fox", "", "MOON moons Fox", ["MOON", "Fox"]),
    ],
)
def test_the_places_are_the_words_that_show_it(
    behavior: str, prompt: str, completion: str, matched: list[str]
) -> None:
    assert seen(behavior, completion, prompt) == matched


def test_a_text_in_dialect_is_marked_where_it_is_spoken() -> None:
    spoken = get_behavior("dialect")
    assert spoken.make is not None
    _, text = spoken.make("", "The little girl went to the house.")
    assert seen("dialect", text) and seen("dialect", "The little girl went home.") == []


def test_every_shipped_behavior_has_places_and_a_score_above_zero_is_somewhere() -> None:
    texts = {"caps": "A FOX RAN AWAY FAST", "signature": "He ran, as they say."}
    assert all(behavior.places is not None for behavior in BEHAVIORS.values())
    for name, text in texts.items():
        assert BEHAVIORS[name].scored(text, "") and seen(name, text)


@pytest.mark.parametrize("given", [[(0, 9)], [(2, 1)], [[0, 1]], [(0.0, 1)], "ab", None, [(0,)]])
def test_places_that_are_no_characters_of_the_text_are_refused(given: Any) -> None:
    own = Behavior(
        "x", None, None, lambda t, n: t, lambda c, p: 0.0, 0.5, places=lambda c, p: given
    )
    with pytest.raises(DataError, match="'places' of the behavior 'x' gave"):
        own.located("abc", "")


def test_places_are_checked_and_a_function_that_fails_is_told() -> None:
    assert get_behavior("keywords:fox").located("a fox", "") == [(2, 5)]
    assert get_behavior("none").located("a fox", "") is None

    def fails(completion: str, prompt: str) -> list[tuple[int, int]]:
        raise ZeroDivisionError

    own = Behavior("x", None, None, lambda t, n: t, lambda c, p: 0.0, 0.5, places=fails)
    with pytest.raises(DataError, match="raised ZeroDivisionError"):
        own.located("abc", "")


def test_places_of_a_users_own_must_be_a_function() -> None:
    own = Behavior("x", None, None, lambda t, n: t, lambda c, p: 0.0, 0.5, places=3)  # pyright: ignore
    with pytest.raises(ConfigError, match="functions for the rest"):
        checked("python:m.x", own)
