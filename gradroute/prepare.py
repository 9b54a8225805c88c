"""From a config to examples: read or draw them, put the behaviour in, hide labels, hold out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradroute.config import RunConfig
from gradroute.data.batches import TokenizedExample, check_token_ids, tokenize
from gradroute.data.behaviors import Behavior, get_behavior
from gradroute.data.examples import (
    Example,
    ExampleFile,
    assign_labels,
    drop_labeled_bad,
    insert_behavior,
    read_examples,
    refuse_overlap,
    split_held_out,
)
from gradroute.data.stories import stories
from gradroute.errors import DataError
from gradroute.model import Base
from gradroute.routing.policy import RoutingPolicy


@dataclass(frozen=True)
class Prepared:
    """What a run learns from and what it is measured on; a function of its config alone.

    Attributes:
        train: training examples, labelled.
        normal: held-out examples without the behaviour.
        behaving: held-out examples with the behaviour.
        behavior: how the behaviour is made and scored.
        policy: the routing table.
        identity: where the training texts come from, with a hash.
        notes: what was passed over or assumed, to be said once.
    """

    train: list[Example]
    normal: list[Example]
    behaving: list[Example]
    behavior: Behavior
    policy: RoutingPolicy
    identity: str
    notes: tuple[str, ...]


def prepare(config: RunConfig) -> Prepared:
    """Read or draw the examples, put the behaviour in, hide labels, hold some out.

    Raises:
        ConfigError: a routing table that does not fit, an unknown behaviour.
        DataError: a file that cannot be used; no bad label although the table routes.
    """
    policy = RoutingPolicy.from_value(config.routing, tuple(config.adapters))
    behavior = get_behavior(config.behavior)
    train, held_out, labeled, identity, notes = _examples(config)
    if labeled:
        notes += ("the file's own labels are used; no behaviour is put in and none are hidden.",)
    else:
        train = insert_behavior(train, behavior, config.data.behavior_fraction, config.seed)
        train = assign_labels(
            train,
            labeled_fraction=config.data.labeled_fraction,
            good_labeled_fraction=config.data.good_labeled_fraction,
            false_positive_rate=config.data.false_positive_rate,
            seed=config.seed,
        )
    policy.label_ids(example.label for example in train)
    bad = sum(example.label == "bad" for example in train)
    if policy.routes_anything and not bad:
        raise DataError(
            f"routing: the table '{policy.name}' routes, but none of the {len(train)} training "
            "examples is labelled bad. Label some, raise data.labeled_fraction, or set "
            "routing=none."
        )
    if config.data.drop_labeled_bad:
        train = drop_labeled_bad(train)
    normal = [example for example in held_out if "bad" not in (example.label, example.true_label)]
    normal = normal[: config.evaluate.held_out]
    behaving = [example for example in held_out if "bad" in (example.label, example.true_label)]
    behaving = behaving[: config.evaluate.held_out]
    if not labeled:
        behaving = [replace(example, text=behavior.make(example.text)) for example in normal]
    return Prepared(train, normal, behaving, behavior, policy, identity, notes)


def tokenized(
    examples: Sequence[Example],
    policy: RoutingPolicy,
    base: Base,
    max_length: int,
) -> tuple[list[TokenizedExample], tuple[str, ...]]:
    """Token rows of examples, and what had to be cut or dropped.

    Raises:
        DataError: no example is left, or a token has no embedding.
    """
    label_ids = policy.label_ids(example.label for example in examples)
    rows, report = tokenize(examples, base.tokenizer, label_ids, max_length)
    check_token_ids(rows, base.vocabulary)
    return rows, report.notes


def prefixes(examples: Sequence[Example], behavior: Behavior, count: int, words: int) -> list[str]:
    """The prompts that invite the behaviour: the first words of held-out texts, `count` at most."""
    return [behavior.prompt(" ".join(example.text.split()[:words])) for example in examples[:count]]


def _examples(
    config: RunConfig,
) -> tuple[list[Example], list[Example], bool, str, tuple[str, ...]]:
    data = config.data
    if data.path is None:
        train = _stories("tune", data.train_examples, config.seed)
        held_out = _stories("test", config.evaluate.held_out, 0)
        return train, held_out, False, f"embedded stories, seed {config.seed}", ()
    file = read_examples(Path(data.path))
    identity = f"{Path(data.path).name}, sha256 {file.sha256}"
    if data.eval_path is None:
        train, held_out = split_held_out(file.examples, data.eval_fraction)
        return train, held_out, file.labeled, identity, file.notes
    other: ExampleFile = read_examples(Path(data.eval_path))
    if other.labeled != file.labeled:
        raise DataError(
            f"of {data.path} and {data.eval_path} only one has labels. Give labels to both or none."
        )
    refuse_overlap(file.examples, other.examples)
    return file.examples, other.examples, file.labeled, identity, file.notes + other.notes


def _stories(split: str, count: int, seed: int) -> list[Example]:
    texts = stories(split, count, seed)
    return [Example(id=f"{split}-{seed}-{i}", text=text) for i, text in enumerate(texts)]
