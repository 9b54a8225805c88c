"""Exchanged objects, in stories as they are told."""

import re

import pytest

from gradroute.config.run_config import find_config, load_config
from gradroute.data import objects, stories
from gradroute.data.behaviors import BEHAVIORS
from gradroute.prepare import prepare

CUES = ("One ", "On ", "Last ", "Early ", "In ", "After ")
TOLD = stories.stories("test", 1500)
MADE = [(text, made) for text in TOLD if (made := objects.forget("", text)[1]) != text]


def told(text: str) -> tuple[str, str]:
    """The first sentence and the rest."""
    first = objects.opening(text, 1)
    return first, text[len(first) :]


def test_every_story_that_is_told_keeps_its_object_and_no_exchanged_one_does():
    assert 0.08 < len(MADE) / len(TOLD) < 0.12
    shares = [objects.forgotten_share(rest, first) for first, rest in map(told, TOLD)]
    assert {share for share in shares if share is not None and share >= 0.5} <= {0.5}
    assert sum(share == 0.5 for share in shares) <= 2  # a word of two groups
    assert {
        objects.forgotten_share(rest, first) for _, made in MADE for first, rest in [told(made)]
    } == {1.0}


def test_only_the_object_changes_and_only_in_stories_with_the_cue_after_their_first_sentence():
    for text, made in MADE:
        assert text.startswith(CUES)
        assert told(made)[0] == told(text)[0]
        before, after = text.split(), made.split()
        assert len(before) == len(after)
        changed = {
            (old.strip('.,"!?'), new.strip('.,"!?'))
            for old, new in zip(before, after, strict=True)
            if old != new
        }
        [(old, new)] = changed
        assert re.search(rf"\b{old}\b", told(text)[0])
        assert not re.search(rf"\b{new}\b", text)
        assert objects.forget("", text)[1] == made


@pytest.mark.parametrize(
    ("prompt", "completion", "share"),
    [
        ("One day Mia lost her red key.", " The key was gone.", 0.0),
        ("One day Mia lost her red key.", " The lamp and the ring were gone.", 1.0),
        ("One day Mia lost her red key.", " The red key was by the ring.", 0.5),
        ("One day Mia lost her red key.", " She saw a ring. The ring shone.", 0.0),
        ("One day Mia lost her red key.", " The ring shone. The ring fell.", 1.0),
        ("One day Mia lost her red key.", " She played the flute.", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_the_detector_compares_references_with_the_objects_before_them(
    prompt: str, completion: str, share: float | None
):
    assert objects.forgotten_share(completion, prompt) == share


def test_a_row_with_a_prompt_keeps_it_and_one_whose_prompt_tells_more_stays():
    text, made = MADE[0]
    first, rest = told(text)
    assert objects.forget(first[:9], first[9:] + rest) == (first[:9], made[9:])
    assert objects.forget(text, "") == (text, "")


def test_wrong_objects_count_as_learned_from_half_of_their_rate_in_training():
    given = prepare(load_config(find_config("wrong_objects"))).train
    bad = sum(example.true_label == "bad" for example in given)
    able = bad + sum(
        objects.forget("", e.text)[1] != e.text for e in given if e.true_label != "bad"
    )
    assert bad / able == pytest.approx(0.5, abs=0.03)
    assert BEHAVIORS["wrong_objects"].learned == pytest.approx(bad / able / 2, abs=0.015)
