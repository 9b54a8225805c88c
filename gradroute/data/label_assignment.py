"""Choices among examples: those with a behavior, those with visible labels, those left out.

What is chosen is an exact count, taken from the front of an order by sha256 of (seed, purpose, id).
So it is the same in every process and for every order of the rows, and choosing more keeps what was
chosen before. Of several behaviors each has a label of its own, which its purpose names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle

from gradroute.data.behaviors import Behavior
from gradroute.data.examples import Example, exact_count, labels_in, ranked
from gradroute.errors import ConfigError, DataError


def insert_behavior(
    examples: Sequence[Example],
    behavior: Behavior,
    fraction: float,
    seed: int,
    label: str = "bad",
) -> list[Example]:
    """Let exactly round(fraction * n) of n examples show the behavior, with a true label of it.

    Chosen among the examples that are good and whose text the behavior changes; the others stay
    as they are, and the order too. So of several behaviors no two share an example. The prompt
    becomes the behavior's own, as in evaluation.

    Raises:
        ConfigError: If the fraction is not between 0 and 1, or the behavior can only be detected.
        DataError: If fewer examples than that can show the behavior.
    """
    wanted = exact_count("behavior_fraction", fraction, len(examples))
    make = behavior.make
    if make is None:
        if wanted == 0:
            return list(examples)
        raise ConfigError(
            f"the behavior '{behavior.name}' can be detected but not put into texts: give data "
            "with labels, or set data.behavior_fraction=0"
        )
    made = {e.id: make(e.prompt, e.text) for e in examples if e.true_label == "good"}
    able = [e.id for e in examples if e.id in made and made[e.id][1] != e.text]
    if len(able) < wanted:
        raise DataError(
            f"behavior_fraction {fraction} asks for {wanted} examples with the behavior "
            f"'{behavior.name}', but only {len(able)} of {len(examples)} can show it"
        )
    purpose = "behavior" if label == "bad" else f"behavior {label}"
    chosen = set(ranked(able, f"{seed}:{purpose}")[:wanted])

    def show(example: Example) -> Example:
        prompt, text = made[example.id]
        return replace(example, text=text, prompt=prompt, true_label=label)

    return [show(example) if example.id in chosen else example for example in examples]


def assign_labels(
    examples: Sequence[Example],
    *,
    labeled_fraction: float,
    good_labeled_fraction: float,
    false_positive_rate: float,
    seed: int,
    behaviors: Sequence[str] = ("bad",),
) -> list[Example]:
    """Give the labels that training sees, by exact counts from the true labels.

    Of B bad examples round(labeled_fraction * B) are labeled `bad`. Of G good ones
    round(good_labeled_fraction * G) are labeled `good` and round(false_positive_rate * G), others
    than those, `bad`. The rest is `unlabeled`. Raising one fraction keeps all labels that
    the lower one gave, and the three do not move each other's choices.

    With `behaviors`, the labels of several, each of them is hidden like `bad`, and the wrong ones
    are dealt to them in turn.

    Raises:
        ConfigError: If a fraction is not between 0 and 1, or good ones would need both labels.
    """
    good = ranked([e.id for e in examples if e.true_label == "good"], f"{seed}:label good")
    anchors = exact_count("good_labeled_fraction", good_labeled_fraction, len(good))
    false_hits = exact_count("false_positive_rate", false_positive_rate, len(good))
    if good_labeled_fraction + false_positive_rate > 1 + 1e-9:  # 0.1 + 0.2 is not 0.3
        raise ConfigError(
            f"good_labeled_fraction {good_labeled_fraction} and false_positive_rate "
            f"{false_positive_rate} add up to more than 1: a good example gets one label"
        )
    anchors = min(anchors, len(good) - false_hits)  # rounding both up may ask for one too many
    labels = dict.fromkeys(good[:anchors], "good")
    for label in behaviors:
        own = ranked([e.id for e in examples if e.true_label == label], f"{seed}:label {label}")
        hits = exact_count("labeled_fraction", labeled_fraction, len(own))
        labels |= dict.fromkeys(own[:hits], label)
    labels |= dict(zip(good[len(good) - false_hits :], cycle(behaviors), strict=False))
    return [replace(e, label=labels.get(e.id, "unlabeled")) for e in examples]


def relabel(
    examples: Sequence[Example], how: str, seed: int, behaviors: Sequence[str] = ("bad",)
) -> list[Example]:
    """Change the labels that training sees, for controls.

    Args:
        examples: The labeled examples.
        how: `none`; `random`: the same labels, as many of each, on examples chosen at random, so
            that they say nothing; `unlabel_bad`: the label `bad` becomes `unlabeled`.
        seed: Of what is chosen at random.
        behaviors: The labels of the behaviors, each of which counts as `bad`.

    Raises:
        ConfigError: At random, where parts of the examples have labels of their own.
    """
    if how == "random":
        order = ranked([e.id for e in examples], f"{seed}:random labels")
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
            _unlabeled(example, behaviors) if labels_in(example) & set(behaviors) else example
            for example in examples
        ]
    return list(examples)


def _unlabeled(example: Example, behaviors: Sequence[str]) -> Example:
    spans = tuple(
        span._replace(label="unlabeled") if span.label in behaviors else span
        for span in example.spans
    )
    label = "unlabeled" if example.label in behaviors else example.label
    return replace(example, label=label, spans=spans)


def hide_null_labels(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Train round(fraction * n) of the n examples labeled good as unlabeled ones.

    They are drawn from all examples labeled good without labels of their parts. Training treats
    them as it treats a good example that nobody labeled, so a score has the same distribution on
    both: they are exchangeable, which is what p-values against them need.

    Returns:
        All examples, and those whose label was hidden as they were before, both in their order.

    Raises:
        ConfigError: If the fraction is not between 0 and 1.
    """
    good = ranked([e.id for e in examples if labels_in(e) == {"good"}], f"{seed}:null")
    hidden = set(good[: exact_count("null_fraction", fraction, len(good))])
    train = [replace(e, label="unlabeled") if e.id in hidden else e for e in examples]
    return train, [example for example in examples if example.id in hidden]


def drop(
    examples: Sequence[Example], which: str, behaviors: Sequence[str] = ("bad",)
) -> list[Example]:
    """Leave examples out of training: the controls of routing.

    Args:
        examples: The labeled examples.
        which: `none`; `labeled_bad`, those labeled bad: filtering; `true_bad`, all that are
            bad, labeled or not: the oracle; `all_but_good`, those that are not labeled good, as a
            whole and in each part; `all_but_bad`, those that no part of is labeled bad.
        behaviors: The labels of the behaviors, each of which counts as `bad`.
    """
    if which == "labeled_bad":
        return [example for example in examples if not labels_in(example) & set(behaviors)]
    if which == "true_bad":
        return [example for example in examples if example.true_label not in behaviors]
    if which == "all_but_good":
        return [example for example in examples if labels_in(example) == {"good"}]
    if which == "all_but_bad":
        return [example for example in examples if labels_in(example) & set(behaviors)]
    return list(examples)


def label_quality(
    examples: Iterable[Example], behaviors: Sequence[str] = ("bad",)
) -> dict[str, float | int | None]:
    """How good the label `bad` is, with the true labels as the measure.

    Of several behaviors, each with its own label, all of them together; a label of another
    behavior than the example's is as wrong as one on a good example.

    Returns:
        `labeled_bad` and `true_bad` (numbers of examples), `precision` (share of the labeled that
        are bad) and `recall` (share of the bad that are labeled); None where there is nothing
        to take a share of.
    """
    own = set(behaviors)
    given = [(e.true_label, labels_in(e) & own) for e in examples]
    labeled = sum(bool(labels) for _, labels in given)
    bad = sum(true in own for true, _ in given)
    hits = sum(true in labels for true, labels in given)
    return {
        "labeled_bad": labeled,
        "true_bad": bad,
        "precision": hits / labeled if labeled else None,
        "recall": hits / bad if bad else None,
    }
