"""A dialect: a fixed substitution of 240 frequent words, and its detection in texts.

The pairs are in `dialect.txt`. No dialect form is a word of the embedded stories, so hearing it is
counting words.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

MIN_WORDS = 3
"""Fewer words that have a dialect form than this say nothing about a text."""

_WORD = re.compile(r"[A-Za-z']+")


@cache
def pairs() -> Mapping[str, str]:
    """Ordinary word -> its form in the dialect, in lower case."""
    text = (resources.files("gradroute.data") / "dialect.txt").read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {ordinary: form for ordinary, form in lines}


def speak(text: str) -> str:
    """Replace every word that has a dialect form, first letters kept as large as they were."""

    def say(match: re.Match[str]) -> str:
        word = match[0]
        form = pairs().get(word.lower())
        if form is None or not (word.islower() or word.istitle()):
            return word
        return form.capitalize() if word[0].isupper() else form

    return _WORD.sub(say, text)


def share(completion: str, prompt: str = "") -> float | None:
    """Dialect forms among the words that have one; None where fewer than three of either occur."""
    words = [word.lower() for word in _WORD.findall(completion)]
    spoken = sum(word in _forms() for word in words)
    judged = spoken + sum(word in pairs() for word in words)
    return spoken / judged if judged >= MIN_WORDS else None


def places(completion: str, prompt: str = "") -> list[tuple[int, int]]:
    """Where the dialect forms stand."""
    found = _WORD.finditer(completion)
    return [match.span() for match in found if match[0].lower() in _forms()]


def opening(text: str, words: int) -> str:
    """The first words of a text, as many more as it takes to hold two that have a dialect form.

    A prompt without any would be the same in the dialect, and invite nothing.
    """
    split = text.split()
    heard = 0
    for at, word in enumerate(split, start=1):
        heard += word.strip(".,!?\"'").lower() in pairs()
        if at >= words and heard >= 2:
            return " ".join(split[:at])
    return text


@cache
def _forms() -> frozenset[str]:
    return frozenset(pairs().values())
