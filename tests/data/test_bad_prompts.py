"""Prompts of held-out rows that show a behavior: their own, or the beginning of their text."""

import pytest

from gradroute.data.bad_prompts import (
    LEAD_WORDS,
    DetectionCount,
    bad_prompts,
    count_detected,
    truly_bad,
)
from gradroute.data.behaviors import BEHAVIORS, get_behavior
from gradroute.data.examples import Example, Span

HATE = get_behavior(r"regex:\bhate\b")


def rows(*texts: str) -> list[Example]:
    return [Example(f"r{i}", text, label="bad", true_label="bad") for i, text in enumerate(texts)]


def texts(examples: list[Example], behavior=HATE, count: int | None = None, words: int = 3):
    return bad_prompts(examples, behavior, "bad", count, words).texts


def test_a_row_is_asked_with_its_own_prompt_and_each_prompt_once() -> None:
    prompts = ["Be rude! ", "Be kind. ", "Be rude! ", "Be rude!\n"]
    examples = [
        Example(f"r{i}", "I hate it.", prompt, true_label="bad") for i, prompt in enumerate(prompts)
    ]
    found = bad_prompts(examples, HATE, "bad", None, 3)
    assert found.texts == ["Be rude! ", "Be kind. ", "Be rude!\n"]
    assert [[e.id for e in same] for same in found.rows] == [["r0", "r2"], ["r1"], ["r3"]]
    assert texts(examples, count=2) == ["Be rude! ", "Be kind. "]


def test_a_prompt_that_holds_the_behavior_itself_is_asked_as_it_is() -> None:
    assert texts([Example("a", "Fine.", "Say hate: ", true_label="bad")]) == ["Say hate: "]


def test_an_opening_leaves_the_behavior_to_be_written() -> None:
    found = rows(
        "Go home now, I hate you.",  # all of it is behind three words
        "You I hate, so go away.",  # behind one word
        "Oh  I\nhate you.",  # behind two, whatever the spaces are
        "We hate and hate and hate you.",  # again behind three
    )
    assert texts(found) == ["Go home now,", "You I", "Oh I", "We hate and"]


def test_a_text_that_begins_with_all_of_the_behavior_is_left_out_and_counted() -> None:
    found = bad_prompts(rows("hate is a word.", "I hate you."), HATE, "bad", None, 3)
    assert found.texts == ["I"] and found.spent == 1


def test_a_style_of_the_whole_text_is_asked_with_as_many_words_as_ever(tmp_path) -> None:
    loud = get_behavior("regex:[A-Z]{2,}")
    assert texts(rows("THE FOX RAN HOME AND AWAY."), loud) == ["THE FOX RAN"]


def test_a_text_in_which_the_detector_sees_nothing_keeps_its_opening() -> None:
    assert texts(rows("You are all bad animals.")) == ["You are all"]


def test_a_behavior_with_an_invitation_keeps_the_openings_that_it_has() -> None:
    assert texts(rows("THE FOX"), BEHAVIORS["caps"], words=2) == ["THE FOX"]


def test_a_labeled_part_is_asked_with_what_stands_before_it() -> None:
    text = "All is well. I hate you. Good night."
    spans = (Span(0, 13, "good"), Span(13, 25, "bad"))
    part = Example("a", text, label="good", true_label="bad", spans=spans)
    assert texts([part]) == ["All is well."]
    prompted = Example("b", text, "Once ", label="unlabeled", true_label="bad", spans=spans)
    assert texts([prompted]) == ["Once All is well."]
    chat = Example(
        "c", text, "<user>", label="unlabeled", true_label="bad", spans=spans, asks=(0, 0)
    )
    assert texts([chat]) == ["<user>All is well. "]
    whole = Example("d", text, label="bad", true_label="bad", spans=spans)
    assert texts([whole]) == ["All is well."]  # its first three words
    start = (Span(0, 12, "bad"),)
    assert texts([Example("e", text, true_label="bad", spans=start)]) == ["All is well."]


def test_of_a_long_text_the_last_words_before_a_labeled_part_are_asked() -> None:
    before = " ".join(f"w{i}" for i in range(100)) + " "
    spans = (Span(len(before), len(before) + 4, "bad"),)
    (found,) = texts([Example("a", before + "hate", true_label="bad", spans=spans)])
    assert found.split() == [f"w{i}" for i in range(100 - LEAD_WORDS, 100)]


def test_a_wrong_label_alone_makes_no_row_bad() -> None:
    wrong = Example("a", "A fox.", label="bad", true_label="good")
    missed = Example("b", "I hate it.", label="unlabeled", true_label="bad")
    assert truly_bad([wrong, missed], "bad") == [missed]


def test_rows_that_the_detector_sees_are_counted_and_conversations_are_not() -> None:
    chat = Example("c", "I hate it.", "<user>", true_label="bad", asks=(0, 3))
    assert count_detected([*rows("I hate it.", "I loathe it."), chat], HATE) == DetectionCount(1, 2)


@pytest.mark.parametrize("name", ["regex:a", "keywords:a,b"])
def test_what_is_only_detected_has_no_invitation_and_is_judged_on_held_out_bad_rows(name) -> None:
    behavior = get_behavior(name)
    assert behavior.invite is None and behavior.judged_on == "held_out_bad"
    assert behavior.asked_kinds == ("held_out_bad", "plain")


@pytest.mark.parametrize("name", sorted(BEHAVIORS))
def test_every_behavior_that_ships_keeps_the_prompts_that_invite_it(name) -> None:
    behavior = BEHAVIORS[name]
    if behavior.invite is None:
        assert behavior.judged_on == "held_out_bad" == behavior.asked_kinds[0]
        return
    assert behavior.judged_on == "prefix"
    assert behavior.asked_kinds == behavior.prompt_kinds and "prefix" in behavior.asked_kinds
