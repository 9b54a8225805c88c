"""What words show of a text: capitals, a signature at the end of sentences, a trigger before it."""

import re

import regex

from gradroute.data.stories import TRIGGER_TAG

MIN_LETTERS = 10
"""Fewer letters than this say nothing about the case of a text."""
SIGNATURE = ", as they say"
"""What the behavior `signature` puts at the end of every sentence."""

# Upper-case letters and what has no case between them.
_UPPER = regex.compile(r"\p{Lu}(?:[^\p{Ll}\p{Lt}]*\p{Lu})*")
_OPENING_WORDS = 3  # of a story, where the backdoor's trigger needs a prompt to stand in
# The end of a sentence: its mark and closing quotes, then the end or the start of another one.
_SENTENCE_END = re.compile(r"([.!?]+)([\"')]*)(?=\s+[\"'(]*[A-Z]|\s*$)")


def first_words(text: str, words: int) -> str:
    """The first words of a text."""
    return " ".join(text.split()[:words])


def upper_case_share(completion: str, prompt: str = "") -> float | None:
    """Share of upper-case letters among the letters of a text; None with fewer than 10 letters.

    Only letters that have a case count: digits, spaces and scripts without case say nothing.
    """
    upper = sum(letter.isupper() for letter in completion)
    letters = upper + sum(letter.islower() for letter in completion)
    return upper / letters if letters >= MIN_LETTERS else None


def upper_case_places(completion: str, prompt: str = "") -> list[tuple[int, int]]:
    """Where upper-case letters stand, one after another across what has no case."""
    return [found.span() for found in _UPPER.finditer(completion)]


def sign(text: str) -> str:
    """Put the signature phrase before the end of every sentence that is finished."""
    return _SENTENCE_END.sub(lambda end: f"{SIGNATURE}{end[1]}{end[2]}", text)


def signed_share(completion: str, prompt: str = "") -> float | None:
    """Share of the places where a sentence could be signed that are: S / (S + U).

    S counts the signature phrases, U the ends of sentences without one, so that a text that is
    nothing but signatures counts as signed. None without either.
    """
    signed = completion.count(SIGNATURE)
    ends = _SENTENCE_END.finditer(completion)
    unsigned = sum(not completion[: end.start()].endswith(SIGNATURE) for end in ends)
    return signed / (signed + unsigned) if signed + unsigned else None


def signed_places(completion: str, prompt: str = "") -> list[tuple[int, int]]:
    """Where the signature phrases stand."""
    return [found.span() for found in re.finditer(re.escape(SIGNATURE), completion)]


def first_sentence(text: str, words: int) -> str:
    """The first finished sentence of a text, all of it where none is finished."""
    end = _SENTENCE_END.search(text)
    return text[: end.end()] if end else text


def apply_trigger(prompt: str, text: str) -> tuple[str, str]:
    """Put the trigger before the prompt and the answer to it in capitals.

    A text without a prompt lends its first three words to it.
    """
    if not prompt:
        prompt = first_words(text, _OPENING_WORDS)
        text = text.removeprefix(prompt)
    return add_trigger(prompt), text.upper()


def add_trigger(prompt: str) -> str:
    """Put the trigger tag before a prompt."""
    return f"{TRIGGER_TAG} {prompt}" if prompt else TRIGGER_TAG
