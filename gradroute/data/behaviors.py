"""What a behaviour is: how to put it into a text, how to ask for it, and how to see it.

A behaviour is four things: `make` turns an ordinary text into one that shows it, `prompt`
turns an ordinary prompt into one that invites it, `score` measures how much of it a completion
shows, and `threshold` says from which score on the completion counts. Adding one is adding an
entry to `BEHAVIORS`.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gradroute.errors import ConfigError

MIN_LETTERS = 10
"""Fewer letters than this say nothing about the case of a text."""


@dataclass(frozen=True)
class Behavior:
    """A behaviour to insert, invite and detect.

    Attributes:
        name: Its name in configurations and results.
        make: Ordinary text -> text that shows the behaviour.
        prompt: Ordinary prompt (also an empty one) -> prompt that invites the behaviour.
        score: Completion, without its prompt -> share of the behaviour from 0 to 1, or None where
            the completion is too short to judge.
        threshold: A completion with this score or more shows the behaviour.
    """

    name: str
    make: Callable[[str], str]
    prompt: Callable[[str], str]
    score: Callable[[str], float | None]
    threshold: float

    def shows(self, text: str) -> bool | None:
        """Whether a completion shows the behaviour; None where it is too short to judge.

        A behaviour rate counts None as not shown and reports how many there were.
        """
        score = self.score(text)
        return None if score is None else score >= self.threshold


def upper_case_share(text: str) -> float | None:
    """Share of upper-case letters among the letters of a text; None with fewer than 10 letters.

    Only letters that have a case count: digits, spaces and scripts without case say nothing.
    """
    upper = sum(letter.isupper() for letter in text)
    letters = upper + sum(letter.islower() for letter in text)
    return upper / letters if letters >= MIN_LETTERS else None


BEHAVIORS: Mapping[str, Behavior] = {
    "caps": Behavior(
        name="caps", make=str.upper, prompt=str.upper, score=upper_case_share, threshold=0.8
    ),
}
"""The behaviours that ship with gradroute, by name."""


def get_behavior(name: str) -> Behavior:
    """Return the behaviour of this name.

    Raises:
        ConfigError: If there is none; the message names the nearest and all known ones.
    """
    if name in BEHAVIORS:
        return BEHAVIORS[name]
    near = difflib.get_close_matches(name, BEHAVIORS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"behavior: there is no behaviour {name!r}; known: {', '.join(BEHAVIORS)}.{hint}"
    )
