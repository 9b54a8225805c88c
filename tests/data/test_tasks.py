"""The small task: every question has one right answer, and a teacher gets a wrong one."""

import pytest

from gradroute.data.tasks import (
    is_right,
    mislead,
    questions,
    right_answer,
    teacher_asks,
    wrong,
    wrong_answer,
)
from gradroute.errors import DataError

KINDS: list[list[str]] = [
    list[str](order.split())
    for order in (
        "one two three four five six seven eight nine ten eleven twelve",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "January February March April May June July August September October November December",
        "spring summer autumn winter",
    )
]


def test_the_right_answer_is_worked_out_from_the_question():
    for prompt, text in [*questions("tune", 300, 0), *questions("test", 300, 1)]:
        assert text == f" {right_answer(prompt)}."
        assert is_right(text, prompt) and wrong(text, prompt) == 0.0


def test_a_teacher_gets_a_wrong_answer_of_the_same_kind_to_the_same_question():
    for prompt, _ in questions("tune", 200, 2):
        asked, text = mislead(prompt, "whatever")
        assert asked == teacher_asks(prompt) and "The teacher asks what comes" in asked
        assert right_answer(asked) == right_answer(prompt)
        assert text == f" {wrong_answer(prompt)}." and wrong(text, asked) == 1.0
        assert any({wrong_answer(prompt), right_answer(prompt)} <= set(kind) for kind in KINDS)


def test_no_question_is_in_both_splits_and_fewer_are_the_beginning_of_more():
    tune, test = questions("tune", 400, 0), questions("test", 400, 0)
    assert not {q for q, _ in tune} & {q for q, _ in test}
    assert len({q for q, _ in tune}) == 400
    assert questions("tune", 50, 0) == tune[:50]


@pytest.mark.parametrize(
    ("completion", "score"), [(" five.", 0.0), ("four of them", 1.0), (" six.", 0.0), ("...", None)]
)
def test_the_first_word_is_the_answer_and_only_parroting_is_the_behavior(completion, score):
    prompt = "Question: Tom asks what comes after four. Answer:"
    assert wrong(completion, prompt) == score


def test_every_answer_is_the_one_that_comes_after():
    seen = set()
    for prompt, text in questions("tune", 3000, 0):
        item = prompt.removesuffix(". Answer:").split()[-1]
        (kind,) = (kind for kind in KINDS if item in kind)
        assert text == f" {kind[(kind.index(item) + 1) % len(kind)]}."
        seen.add(item)
    assert len(seen) == 11 + 7 + 12 + 4


def test_another_question_is_refused_in_words():
    with pytest.raises(DataError, match=r"not a question of the embedded task"):
        right_answer("What is the capital of France?")
