"""Examples, and the held-out part of them.

The held-out share is an exact count, taken from the front of an order by sha256 of the ids, see
`choosing`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from gradroute.data.jsonl import show
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
        group: What it shares with examples that stay on its side of the held-out split; empty
            where that is nothing but prompt and text.
        preface: An instruction that precedes what its author asks, in training only; no loss is
            taken on it, and it does not count towards the maximal length.
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
    preface: str = ""


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


class Sharing(NamedTuple):
    """What examples share, see `groups_of`.

    Attributes:
        examples: How many there are.
        groups: How many groups they make.
        biggest: How many examples the biggest group has.
        instruction: The prompt that is taken for an instruction; None where none is.
        instructed: How many examples have it.
    """

    examples: int
    groups: int
    biggest: int
    instruction: str | None
    instructed: int


def groups_of(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples that stay on one side of a split, in order of their first one.

    These are examples with the same `group`, the same question, or the same prompt and text, also
    by way of others. A question is a prompt, but for spaces around it. A prompt of at least half
    of all examples, where no other has as many, is an instruction such as "Write a story": it asks
    nothing of its own and keeps no examples together.
    """
    instruction = _instruction(examples)
    above = list(range(len(examples)))

    def root(at: int) -> int:
        while above[at] != at:
            above[at] = above[above[at]]
            at = above[at]
        return at

    first: dict[tuple[str, ...], int] = {}
    for at, example in enumerate(examples):
        for key in _shared_keys(example, instruction):
            one, other = root(first.setdefault(key, at)), root(at)
            above[max(one, other)] = min(one, other)
    groups: dict[int, list[Example]] = {}
    for at, example in enumerate(examples):
        groups.setdefault(root(at), []).append(example)
    return list(groups.values())


def sharing(examples: Sequence[Example]) -> Sharing:
    """How many groups examples make, and which prompt makes none."""
    sizes = [len(group) for group in groups_of(examples)]
    instruction = _instruction(examples)
    instructed = sum(instruction is not None and question(e) == instruction for e in examples)
    return Sharing(len(examples), len(sizes), max(sizes, default=0), instruction, instructed)


def question(example: Example) -> str:
    """What an example answers, as far as it is compared with others; empty where it has none."""
    start, end = example.asks or (0, len(example.prompt))
    asked = example.prompt[start:end].strip()
    if not asked or example.asks is None:
        return asked
    # A template may leave the spaces around what was asked.
    return f"{example.prompt[:start].rstrip()} {asked} {example.prompt[end:].strip()}"


def _instruction(examples: Sequence[Example]) -> str | None:
    """The prompt that is so common that it tells no examples apart; None where none is."""
    counts = Counter(asked for example in examples if (asked := question(example)))
    common = [asked for asked, count in counts.items() if 2 * count >= len(examples)]
    return common[0] if len(common) == 1 else None


def _shared_keys(example: Example, instruction: str | None) -> Iterator[tuple[str, ...]]:
    """What keeps an example together with any other that has one of the same."""
    yield "text", example.prompt, example.text
    if example.group:
        yield "group", example.group
    asked = question(example)
    if asked and asked != instruction:
        yield "question", asked


def split_held_out(
    examples: Sequence[Example], fraction: float
) -> tuple[list[Example], list[Example]]:
    """Split into (train, held out), round(fraction * n) held out, chosen by hash of the id.

    It depends on no seed, so all runs on one file share the held-out examples. A group (see
    `groups_of`) is on one side, so that no held-out text is trained on and no held-out question
    is answered in training. With groups the count is as near as they allow: one is passed over
    where the count would be farther from what is wanted with it than without it, but for repeats
    of one text.

    Raises:
        ConfigError: If the fraction is not between 0 and 1.
        DataError: If a fraction above 0 leaves one of the two sides empty.
    """
    wanted = exact_count("eval_fraction", fraction, len(examples))
    order = ranked([example.id for example in examples], "held out")
    groups = groups_of(examples)
    group_of = {example.id: group for group in groups for example in group}
    chosen: set[str] = set()
    for name in order:
        if len(chosen) >= wanted:
            break
        group = group_of[name]
        repeats = len({(example.prompt, example.text) for example in group}) == 1
        missing = wanted - len(chosen)
        if name not in chosen and (repeats or len(group) <= 2 * missing):
            chosen.update(example.id for example in group)
    if wanted and not chosen:  # every group is larger: the smallest is nearest
        place = {name: at for at, name in enumerate(order)}
        smallest = min(groups, key=lambda group: (len(group), min(place[e.id] for e in group)))
        chosen.update(example.id for example in smallest)
    train = [example for example in examples if example.id not in chosen]
    held_out = [example for example in examples if example.id in chosen]
    if fraction > 0 and len(groups) == 1 and len(examples) > 1:
        raise DataError(
            f"all {len(examples)} examples are of one group, whose prompt, text or data.group they "
            "share, so none can be held out by itself: give held-out examples as data.eval_path"
        )
    if fraction > 0 and not (train and held_out):
        raise DataError(
            f"eval_fraction {fraction} of {len(examples)} examples leaves {len(train)} to train on "
            f"and {len(held_out)} to hold out: give more examples or another fraction"
        )
    return train, held_out


def split_notes(shared: Sharing, held_out: int, fraction: float) -> tuple[str, ...]:
    """What is worth a word about a split by groups.

    Args:
        shared: What the examples share that were split.
        held_out: How many are held out.
        fraction: The share that was asked for.
    """
    notes = []
    wanted = exact_count("eval_fraction", fraction, shared.examples)
    if shared.groups < shared.examples:
        notes.append(
            f"{shared.examples} examples are of {shared.groups} groups that share a prompt, a text "
            f"or data.group (the biggest has {shared.biggest}); each is on one side of the "
            "held-out split."
        )
    if abs(held_out - wanted) > max(1, wanted // 10):
        notes.append(
            f"{held_out} examples are held out instead of the {wanted} of data.eval_fraction: "
            f"groups are not divided."
        )
    if shared.instruction is not None and fraction > 0 and shared.instructed > 1:
        notes.append(
            f"the prompt {show(shared.instruction)} precedes {shared.instructed} of "
            f"{shared.examples} examples, so it is treated as an instruction and not as a "
            f"question: they are held out by their texts. data.group can name a column that keeps "
            "rows together."
        )
    return tuple(notes)


def refuse_overlap(train: Sequence[Example], held_out: Iterable[Example]) -> None:
    """Check that no held-out example is trained on, and no held-out question answered in training.

    Raises:
        DataError: If a held-out example shares a question, a group, or prompt and text with
            training (see `groups_of`), with the count.
    """
    instruction = _instruction(train)
    trained = {key for example in train for key in _shared_keys(example, instruction)}
    shared: list[tuple[Example, str]] = []
    for example in held_out:
        kinds = [key[0] for key in _shared_keys(example, instruction) if key in trained]
        if kinds:
            shared.append((example, kinds[0]))
    if not shared:
        return
    example, kind = shared[0]
    if all(one == "text" for _, one in shared):
        what = "are also trained on"
    else:
        what = "share a prompt, a text or a data.group with training"
    this = {"text": "", "group": f", group {show(example.group)}", "question": ", by its prompt"}
    raise DataError(
        f"{len(shared)} held-out examples {what} (such as id {show(example.id)}{this[kind]}): "
        "remove them from one of the two files"
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
            raise DataError(f"two examples have the id {show(name)}: make ids unique")
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
