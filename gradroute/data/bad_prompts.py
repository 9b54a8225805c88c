"""Prompts that draw a behavior in the data: those of held-out rows that show it.

A behavior that only some prompts draw (ordinary questions get ordinary answers, a few get the bad
one) does not show on ordinary prompts, however well it was learned. So what has no invitation of
its own is asked for with the prompts of rows that show it, or with the beginnings of their texts.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradroute.data.behaviors import UNNAMED, Behavior
from gradroute.data.examples import Example

LEAD_WORDS = 32
"""Words of a plain text that are taken before a labeled part of it, at most."""


class BadPrompts(NamedTuple):
    """Distinct prompts with the rows that they come from.

    Attributes:
        texts: The prompts.
        rows: The rows that have each of them; where only some prompts were asked for, those of the
            rows that were looked at.
        spent: How many rows were left out because nothing of the behavior is left to write behind
            even the first word of their text.
    """

    texts: list[str]
    rows: list[list[Example]]
    spent: int


class DetectionCount(NamedTuple):
    """In how many of `n` rows that show a behavior its detector sees it."""

    shown: int
    n: int


def bad_prompts(
    examples: Sequence[Example], behavior: Behavior, label: str, count: int | None, words: int
) -> BadPrompts:
    """The prompts of rows that show a behavior, each once, in the order of the rows.

    A row's own prompt; of a row without one the beginning of its text, see `_opening`. A row whose
    behavior is a labeled part of it (a message, a span) is asked with what stands before that part.

    Args:
        examples: The rows.
        behavior: What they show.
        label: Its label.
        count: How many prompts, at most; None for all.
        words: Words of the beginning of a text, at most.

    Raises:
        DataError: The detector fails.
    """
    found: dict[str, list[Example]] = {}
    spent = 0
    for example in examples:
        if count is not None and len(found) >= count:
            break
        text = _prompt(example, behavior, label, words)
        if text is None:
            spent += 1
        else:
            found.setdefault(text, []).append(example)
    return BadPrompts([*found], [*found.values()], spent)


def truly_bad(examples: Iterable[Example], label: str) -> list[Example]:
    """The rows that show a behavior: a true label says so, and not a wrong label alone."""
    return [example for example in examples if example.true_label == label]


def count_detected(examples: Sequence[Example], behavior: Behavior) -> DetectionCount:
    """How many of the rows' own texts the detector takes for the behavior.

    Conversations are left out: their text holds what a chat template writes, too.

    Raises:
        DataError: The detector fails.
    """
    plain = [example for example in examples if example.asks is None]
    return DetectionCount(sum(behavior.shows(e.text, e.prompt) is True for e in plain), len(plain))


def _prompt(example: Example, behavior: Behavior, label: str, words: int) -> str | None:
    """The prompt that a row is asked with; None where nothing of the behavior is left to write."""
    before = _before_part(example, label)
    if example.asks is not None:  # a chat template ends a prompt as it must
        return example.prompt + before
    if before.strip():
        return (example.prompt + before if example.prompt else _last_words(before)).rstrip()
    return example.prompt or _opening(example.text, behavior, words)


def _before_part(example: Example, label: str) -> str:
    """The text before the first part that shows the behavior, where not all of the row does."""
    starts = [span.start for span in example.spans if span.label == label]
    return example.text[: min(starts)] if starts and example.label != label else ""


def _opening(text: str, behavior: Behavior, words: int) -> str | None:
    """The beginning of a text behind which the behavior is still to be written.

    Completions alone are judged. Where the first words hold all that the detector sees of the
    behavior, even a model that writes the rest of the text word for word would not show it. So
    the opening is made shorter, a word at a time.
    """
    opening = behavior.opening(text, words)
    if behavior.invite is not None or behavior.name == UNNAMED:
        return opening
    if behavior.shows(text, "") is not True:
        return opening
    for fewer in range(words, 0, -1):
        opening = behavior.opening(text, fewer)
        rest = _after(text, opening)
        if rest is None or behavior.shows(rest, opening) is True:
            return opening
    return None


def _after(text: str, opening: str) -> str | None:
    """What follows an opening, whose spaces may be others; None where it is no beginning."""
    at = 0
    for word in opening.split():
        found = text.find(word, at)
        if found < 0 or text[at:found].strip():
            return None
        at = found + len(word)
    return text[at:]


def _last_words(text: str) -> str:
    """The end of what stands before a labeled part, from the beginning of a word."""
    starts = [at for at, letter in enumerate(text) if _begins(text, at) and not letter.isspace()]
    return text[starts[-LEAD_WORDS] :] if len(starts) > LEAD_WORDS else text


def _begins(text: str, at: int) -> bool:
    return at == 0 or text[at - 1].isspace()
