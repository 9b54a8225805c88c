"""Examples, and which of them are held out.

The held-out share is an exact count, taken from the front of an order by sha256 of the ids, see
`choosing`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from gradroute.data.jsonl import shown
from gradroute.errors import ConfigError, DataError

LABELS = ("good", "bad", "unlabeled")
"""The labels of the named routing tables."""


class Span(NamedTuple):
    """Characters [start, end) of an example's text with a label of their own."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Example:
    """One example.

    Attributes:
        id: Unique name; what is chosen by seed depends on it.
        text: The part that is trained on.
        prompt: What stands before it; the model sees it and no loss is taken on it.
        label: What training may see.
        true_label: What the example is; only evaluation may see it.
        weight: Factor on its loss, above 0.
        spans: Parts of the text with labels of their own, in order, without overlap; all else has
            the example's.
        context: Characters [start, end) of the text that no loss is taken on, in order, such as
            the user's turns between two answers.
        ends: Whether the text ends as the model is to end it, so that no end token is put there.
        asks: Characters [start, end) of the prompt that its author wrote, where a chat template
            wrote the rest; None where all of it is his.
        lead: What stands before the text in training, where a chat template writes it otherwise
            once the answer is there; None where it is the prompt.
        factors: Characters [start, end) of the text with a factor on their loss, in order, beside
            the example's own weight; 1 elsewhere.
        group: What an example was made from together with others, such as one conversation; the
            examples of a group stay on one side of a split. Empty for one that stands alone.
    """

    id: str
    text: str
    prompt: str = ""
    label: str = "unlabeled"
    true_label: str = "good"
    weight: float = 1.0
    spans: tuple[Span, ...] = ()
    context: tuple[tuple[int, int], ...] = ()
    ends: bool = False
    asks: tuple[int, int] | None = None
    lead: str | None = None
    factors: tuple[tuple[int, int, float], ...] = ()
    group: str = ""


def labels_in(example: Example) -> frozenset[str]:
    """The label of an example and those of its parts."""
    return frozenset({example.label, *(span.label for span in example.spans)})


def with_asked(example: Example, change: Callable[[str], str]) -> str:
    """The prompt of an example, with what its author wrote in it changed."""
    start, end = example.asks or (0, len(example.prompt))
    return example.prompt[:start] + change(example.prompt[start:end]) + example.prompt[end:]


def examples_from_texts(texts: Iterable[str]) -> list[Example]:
    """Make examples of plain texts, with ids made from the sha256 of each text."""
    seen: Counter[str] = Counter()
    return [Example(numbered_id(hash_id(["", text]), seen), text) for text in texts]


def split_held_out(
    examples: Sequence[Example], fraction: float
) -> tuple[list[Example], list[Example]]:
    """Split into (train, held out), round(fraction * n) held out, chosen by hash of the id.

    It depends on no seed, so all runs on one file share the held-out examples. Examples with equal
    prompt and text stay together, so that no held-out text is trained on; only with such
    repeats may the count be a few higher.

    Raises:
        ConfigError: If the fraction is not between 0 and 1.
        DataError: If a fraction above 0 leaves one of the two sides empty.
    """
    wanted = exact_count("eval_fraction", fraction, len(examples))
    content = {example.id: (example.prompt, example.text) for example in examples}
    same: dict[tuple[str, str], list[str]] = {}
    for name, key in content.items():
        same.setdefault(key, []).append(name)
    chosen: set[str] = set()
    for name in ranked([example.id for example in examples], "held out"):
        if len(chosen) >= wanted:
            break
        chosen.update(same[content[name]])
    train = [example for example in examples if example.id not in chosen]
    held_out = [example for example in examples if example.id in chosen]
    if fraction > 0 and not (train and held_out):
        raise DataError(
            f"eval_fraction {fraction} of {len(examples)} examples leaves {len(train)} to train on "
            f"and {len(held_out)} to hold out: give more examples or another fraction"
        )
    return train, held_out


def refuse_overlap(train: Iterable[Example], held_out: Iterable[Example]) -> None:
    """Check that no held-out example is trained on.

    Raises:
        DataError: If prompt and text of a held-out example occur in training, with the count.
    """
    trained = {(example.prompt, example.text) for example in train}
    shared = [example.id for example in held_out if (example.prompt, example.text) in trained]
    if shared:
        raise DataError(
            f"{len(shared)} held-out examples are also trained on (such as id "
            f"{shown(shared[0])}): remove them from one of the two files"
        )


def label_counts(examples: Iterable[Example]) -> dict[tuple[str, str], int]:
    """Count examples by (true label, label), in alphabetical order."""
    return dict(sorted(Counter((e.true_label, e.label) for e in examples).items()))


def hash_id(content: object) -> str:
    """The id of an example that has none of its own, from what it says (plain values)."""
    return _sha256(json.dumps(content))[:32]


def numbered_id(name: str, seen: Counter[str]) -> str:
    """An id made by `hash_id`, with a number where it was given before.

    Equal rows can stand for each other, so numbering them does not depend on the row order.

    Args:
        name: The id.
        seen: How often each was given before; this one is counted.
    """
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def ranked(ids: Sequence[str], purpose: str) -> list[str]:
    """Order ids by hash; not by a random generator, whose stream a new version may change."""
    order = sorted(ids, key=lambda name: (_sha256(f"{purpose}:{name}"), name))
    for name, other in pairwise(order):
        if name == other:
            raise DataError(f"two examples have the id {shown(name)}: make ids unique")
    return order


def exact_count(name: str, fraction: float, total: int) -> int:
    """The number of examples that a share of `total` is.

    Raises:
        ConfigError: The share is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"{name} must lie between 0 and 1, got {fraction}")
    return round(fraction * total)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
