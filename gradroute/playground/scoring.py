"""The detector's score of a text, and whether two runs have the same tokens."""

from typing import Any

from gradroute.data.behaviors import Behavior
from gradroute.errors import DataError
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.playground.loaded import Played


def scored(behavior: Behavior, completion: Completion, prompt: Prompt) -> dict[str, Any]:
    """The detector's score of a completion, and where in its text what it saw stands.

    Returns:
        `behavior`, `score`, `shows` (both None where it is too short to judge), `threshold`,
        `places` (characters [start, end); None where the detector names none), or `error`.
    """
    known = {"behavior": behavior.name, "threshold": behavior.threshold}
    answer = completion.scored
    try:
        score = None if answer is None else behavior.scored(answer, prompt.text)
        places = None if answer is None else behavior.located(answer, prompt.text)
    except DataError as error:
        return {**known, "score": None, "shows": None, "places": None, "error": str(error)}
    shows = None if score is None else score >= behavior.threshold
    if places is not None and answer is not None:
        start = max(0, completion.text.find(answer))
        places = [(start + low, start + high) for low, high in places]
    return {**known, "score": score, "shows": shows, "places": places}


def same_tokens(one: Played, other: Played) -> bool:
    """Whether two runs have the same tokens, so that one can say how likely the other's are."""
    return (
        one.base.identity == other.base.identity
        or one.base.tokenizer.get_vocab() == other.base.tokenizer.get_vocab()
    )
