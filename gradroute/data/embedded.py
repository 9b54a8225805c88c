"""Examples of the corpora that gradroute ships: stories, and questions of a small task."""

from functools import lru_cache

from gradroute.data.behaviors import Behavior
from gradroute.data.examples import Example
from gradroute.data.stories import stories
from gradroute.data.tasks import questions


def embedded(behavior: Behavior, split: str, count: int, seed: int) -> list[Example]:
    """Ordinary examples of the embedded corpus that a behavior belongs to.

    Args:
        behavior: whose corpus.
        split: "tune" or "test".
        count: how many.
        seed: another seed gives other examples.
    """
    rows = drawn(behavior.corpus, split, count, seed)
    return [Example(f"{split}-{seed}-{i}", text, prompt) for i, (prompt, text) in enumerate(rows)]


@lru_cache(maxsize=8)
def drawn(corpus: str, split: str, count: int, seed: int) -> tuple[tuple[str, str], ...]:
    """Prompt and text of each example; drawn once, for a training and for what is forked later."""
    if corpus == "tasks":
        return tuple(questions(split, count, seed))
    return tuple(("", text) for text in stories(split, count, seed))
