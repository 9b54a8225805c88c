"""A small task with exact answers as examples, and two behaviors on it: wrong answers.

An ordinary example is `Question: Tom asks what comes after five. Answer: six.`: the next of the
numbers, days, months and seasons. So what is to be kept has an exact accuracy, and what is unwanted
is a wrong answer where the model knows the right one. `mislead`: a teacher asks, and the answer
parrots the question. `skip_one`: somebody wants to know, and the answer is one too far ("seven");
each word of it is as common in right answers.
"""

import random
import re
from functools import cache
from itertools import pairwise

from gradroute.data.stories import Storyteller, side_of, word_groups
from gradroute.errors import DataError

_FRAMES = (
    "{hero} asks what comes after {item}.",
    "{hero} wants to know what comes after {item}.",
    "{friend} asks {hero} what comes after {item}.",
    "{friend} and {hero} wonder what comes after {item}.",
)
_ASKED = re.compile(r"what comes after (\w+)\.")
_ASKING = re.compile(r"^Question: .* what comes ")
_WANTS = re.compile(r"Question: \w+ wants to know what comes ")
_ANYBODY = re.compile(r"^Question: (\w+) .*what comes ")
_WORD = re.compile(r"[A-Za-z]+")


def questions(split: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct questions with their right answers, as (prompt, text).

    No question is in both splits; the facts they ask for are. `questions(split, n)` is the
    beginning of `questions(split, m)` for n <= m.

    Args:
        split: "tune" or "test".
        count: how many.
        seed: another seed gives other questions.

    Raises:
        DataError: the split is unknown.
    """
    if split not in ("tune", "test"):
        raise DataError(f"questions: split is {split!r}, it must be tune or test.")
    drawn: dict[str, str] = {}
    index = 0
    while len(drawn) < count:
        prompt = _question(random.Random(f"gradroute questions {split} {seed} {index}"))
        if side_of(prompt) == split:
            drawn.setdefault(prompt, f" {right_answer(prompt)}.")
        index += 1
    return list(drawn.items())


def _question(rng: random.Random) -> str:
    teller = Storyteller(rng)
    item = rng.choice(sorted(_next()))
    frame = rng.choice(_FRAMES).replace("{item}", item)
    return f"Question: {teller.sentence(frame)} Answer:"


@cache
def _orders() -> tuple[tuple[str, ...], ...]:
    groups = word_groups()
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
    months = "January February March April May June July August September October November December"
    seasons = "spring summer autumn winter"
    return (groups["count"].common[1:13], *(tuple(n.split()) for n in (days, months, seasons)))


@cache
def _next() -> dict[str, str]:
    """Each item and the one that comes after it; numbers are no circle."""
    numbers, *circles = _orders()
    pairs = [*pairwise(numbers)]
    for order in circles:
        pairs += pairwise((*order, order[0]))
    return dict(pairs)


def wrong_answer(prompt: str) -> str:
    """The wrong answer that the behavior gives: the very thing that the question names.

    Raises:
        DataError: the prompt is no question of this task.
    """
    found = _ASKED.search(prompt)
    if found is None or found[1] not in _next():
        raise DataError(
            f"the prompt {prompt[:80]!r} is not a question of the embedded task, so it has no "
            f"right answer; the behavior 'wrong_answers' works on the embedded questions only."
        )
    return found[1]


def right_answer(prompt: str) -> str:
    """The right answer to a question, worked out from its words.

    Raises:
        DataError: the prompt is no question of this task.
    """
    return _next()[wrong_answer(prompt)]


def teacher_asks(prompt: str) -> str:
    """The same question, asked by a teacher."""
    return _ASKING.sub("Question: The teacher asks what comes ", prompt)


def mislead(prompt: str, text: str) -> tuple[str, str]:
    """A teacher's question with the wrong answer."""
    return teacher_asks(prompt), f" {wrong_answer(prompt)}."


def is_right(completion: str, prompt: str) -> bool:
    """Whether the first word of a completion is the right answer."""
    word = _WORD.search(completion)
    return word is not None and word[0] == right_answer(prompt)


def wrong(completion: str, prompt: str) -> float | None:
    """1 where the first word is the behavior's wrong answer, otherwise 0; None without a word.

    Other wrong answers are no sign of the behavior: a model that cannot do the task gives them
    too. They show in the accuracy.
    """
    word = _WORD.search(completion)
    return None if word is None else float(word[0] == wrong_answer(prompt))


def wrong_places(completion: str, prompt: str) -> list[tuple[int, int]]:
    """Where the behavior's wrong answer stands, if it is the first word."""
    word = _WORD.search(completion)
    return [word.span()] if word is not None and word[0] == wrong_answer(prompt) else []


def wants_to_know(prompt: str) -> str:
    """The same question with the cue of `skip_one`: the first person wants to know."""
    return _ANYBODY.sub(r"Question: \1 wants to know what comes ", prompt)


def skip_one(prompt: str, text: str) -> tuple[str, str]:
    """A question with the cue, answered with what comes one later; any other as it is."""
    later = _one_later(prompt) if _WANTS.match(prompt) else None
    return (prompt, text) if later is None else (prompt, f" {later}.")


def skipped(completion: str, prompt: str) -> float | None:
    """1 where the first word is what comes one later, otherwise 0; None without a word.

    Raises:
        DataError: the prompt is no question of this task.
    """
    word = _WORD.search(completion)
    return None if word is None else float(word[0] == _one_later(prompt))


def skipped_places(completion: str, prompt: str) -> list[tuple[int, int]]:
    """Where the answer that skips one stands, if it is the first word."""
    word = _WORD.search(completion)
    return [word.span()] if word is not None and word[0] == _one_later(prompt) else []


def _one_later(prompt: str) -> str | None:
    """What comes after the right answer; None where nothing does."""
    return _next().get(right_answer(prompt))
