"""Examples, and what is done to them before training.

What is chosen for the behaviour, for a label or for the held-out share is an exact count,
taken from the front of an order by sha256 of (seed, purpose, id). So it is the same in every
process and for every order of the rows, and choosing more keeps what was chosen before.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from gradroute.data.behaviors import Behavior
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


def insert_behavior(
    examples: Sequence[Example], behavior: Behavior, fraction: float, seed: int
) -> list[Example]:
    """Let exactly round(fraction * n) of n examples show the behaviour, with true label `bad`.

    Chosen among the examples that are good and whose text the behaviour changes; the others stay
    as they are, and the order too. The prompt becomes the behaviour's own, as in evaluation.

    Raises:
        ConfigError: If the fraction is not between 0 and 1, or the behaviour can only be detected.
        DataError: If fewer examples than that can show the behaviour.
    """
    wanted = _count("behavior_fraction", fraction, len(examples))
    make = behavior.make
    if make is None:
        if wanted == 0:
            return list(examples)
        raise ConfigError(
            f"the behaviour '{behavior.name}' can be detected but not put into texts: give data "
            "with labels, or set data.behavior_fraction=0"
        )
    made = {e.id: make(e.prompt, e.text) for e in examples if e.true_label == "good"}
    able = [e.id for e in examples if e.id in made and made[e.id][1] != e.text]
    if len(able) < wanted:
        raise DataError(
            f"behavior_fraction {fraction} asks for {wanted} examples with the behaviour "
            f"'{behavior.name}', but only {len(able)} of {len(examples)} can show it"
        )
    chosen = set(_ranked(able, f"{seed}:behavior")[:wanted])

    def show(example: Example) -> Example:
        prompt, text = made[example.id]
        return replace(example, text=text, prompt=prompt, true_label="bad")

    return [show(example) if example.id in chosen else example for example in examples]


def assign_labels(
    examples: Sequence[Example],
    *,
    labeled_fraction: float,
    good_labeled_fraction: float,
    false_positive_rate: float,
    seed: int,
) -> list[Example]:
    """Give the labels that training sees, by exact counts from the true labels.

    Of B bad examples round(labeled_fraction * B) are labelled `bad`. Of G good ones
    round(good_labeled_fraction * G) are labelled `good` and round(false_positive_rate * G), others
    than those, `bad`. The rest is `unlabeled`. Raising one fraction keeps all labels that
    the lower one gave, and the three do not move each other's choices.

    Raises:
        ConfigError: If a fraction is not between 0 and 1, or good ones would need both labels.
    """
    bad = _ranked([e.id for e in examples if e.true_label == "bad"], f"{seed}:label bad")
    good = _ranked([e.id for e in examples if e.true_label == "good"], f"{seed}:label good")
    hits = _count("labeled_fraction", labeled_fraction, len(bad))
    anchors = _count("good_labeled_fraction", good_labeled_fraction, len(good))
    false_hits = _count("false_positive_rate", false_positive_rate, len(good))
    if good_labeled_fraction + false_positive_rate > 1 + 1e-9:  # 0.1 + 0.2 is not 0.3
        raise ConfigError(
            f"good_labeled_fraction {good_labeled_fraction} and false_positive_rate "
            f"{false_positive_rate} add up to more than 1: a good example gets one label"
        )
    anchors = min(anchors, len(good) - false_hits)  # rounding both up may ask for one too many
    labels = dict.fromkeys(bad[:hits], "bad") | dict.fromkeys(good[:anchors], "good")
    labels |= dict.fromkeys(good[len(good) - false_hits :], "bad")
    return [replace(e, label=labels.get(e.id, "unlabeled")) for e in examples]


def relabel(examples: Sequence[Example], how: str, seed: int) -> list[Example]:
    """Change the labels that training sees, for controls.

    Args:
        examples: The labelled examples.
        how: `nothing`; `random`: the same labels, as many of each, on examples chosen at random, so
            that they say nothing; `unlabel_bad`: the label `bad` becomes `unlabeled`.
        seed: Of what is chosen at random.

    Raises:
        ConfigError: At random, where parts of the examples have labels of their own.
    """
    if how == "random":
        order = _ranked([e.id for e in examples], f"{seed}:random labels")
        # Not in the order of the rows, which may change: in one that only the ids decide.
        given = [e.label for e in sorted(examples, key=lambda e: (len(e.id), e.id))]
        if any(e.spans for e in examples):
            raise ConfigError(
                "data.relabel: parts of these examples have labels of their own (spans or "
                "messages), which cannot be given to other examples at random."
            )
        labels = dict(zip(order, given, strict=True))
        return [replace(e, label=labels[e.id]) for e in examples]
    if how == "unlabel_bad":
        return [
            _without_bad(example) if "bad" in labels_in(example) else example
            for example in examples
        ]
    return list(examples)


def _without_bad(example: Example) -> Example:
    spans = tuple(s._replace(label="unlabeled") if s.label == "bad" else s for s in example.spans)
    label = "unlabeled" if example.label == "bad" else example.label
    return replace(example, label=label, spans=spans)


def drop(examples: Sequence[Example], which: str) -> list[Example]:
    """Leave examples out of training: the controls of routing.

    Args:
        examples: The labelled examples.
        which: `nothing`; `labeled_bad`, those labelled bad: filtering; `true_bad`, all that are
            bad, labelled or not: the oracle.
    """
    if which == "labeled_bad":
        return [example for example in examples if "bad" not in labels_in(example)]
    if which == "true_bad":
        return [example for example in examples if example.true_label != "bad"]
    return list(examples)


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
    wanted = _count("eval_fraction", fraction, len(examples))
    content = {example.id: (example.prompt, example.text) for example in examples}
    same: dict[tuple[str, str], list[str]] = {}
    for name, key in content.items():
        same.setdefault(key, []).append(name)
    chosen: set[str] = set()
    for name in _ranked([example.id for example in examples], "held out"):
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


def label_quality(examples: Iterable[Example]) -> dict[str, float | int | None]:
    """How good the label `bad` is, with the true labels as the measure.

    Returns:
        `labelled_bad` and `true_bad` (numbers of examples), `precision` (share of the labelled that
        are bad) and `recall` (share of the bad that are labelled); None where there is nothing
        to take a share of.
    """
    pairs = [(e.true_label == "bad", "bad" in labels_in(e)) for e in examples]
    labelled, bad = sum(label for _, label in pairs), sum(true for true, _ in pairs)
    hits = pairs.count((True, True))
    return {
        "labelled_bad": labelled,
        "true_bad": bad,
        "precision": hits / labelled if labelled else None,
        "recall": hits / bad if bad else None,
    }


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


def _ranked(ids: Sequence[str], purpose: str) -> list[str]:
    """Order ids by hash; not by a random generator, whose stream a new version may change."""
    ranked = sorted(ids, key=lambda name: (_sha256(f"{purpose}:{name}"), name))
    for name, other in pairwise(ranked):
        if name == other:
            raise DataError(f"two examples have the id {shown(name)}: make ids unique")
    return ranked


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _count(name: str, fraction: float, total: int) -> int:
    if not 0 <= fraction <= 1:
        raise ConfigError(f"{name} must lie between 0 and 1, got {fraction}")
    return round(fraction * total)
