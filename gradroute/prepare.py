"""From a config to examples: read or draw them, put the behaviour in, hide labels, hold out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradroute.config import RunConfig
from gradroute.data.batches import TokenizedExample, check_token_ids, tokenize
from gradroute.data.behaviors import Behavior, get_behavior
from gradroute.data.examples import (
    Example,
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
    train, held_out, labeled, identity, notes = _examples(config, policy)
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
    if config.data.drop_labeled_bad:
        train = drop_labeled_bad(train)
    if not train:
        raise DataError("data.drop_labeled_bad leaves no example to train on.")
    bad = sum(example.label == "bad" for example in train)
    if policy.routes_anything and "bad" in policy.labels and not bad:
        raise DataError(
            f"routing: the table '{policy.name}' routes, but none of the {len(train)} training "
            "examples is labelled bad. Label some, raise data.labeled_fraction, or set "
            "routing=none."
        )
    normal = [example for example in held_out if "bad" not in (example.label, example.true_label)]
    behaving = [example for example in held_out if "bad" in (example.label, example.true_label)]
    if not labeled:
        changed = [example for example in normal if behavior.make(example.text) != example.text]
        behaving = insert_behavior(changed, behavior, 1.0, config.seed)
    return Prepared(train, normal, behaving, behavior, policy, identity, notes)


def tokenized(
    examples: Sequence[Example],
    policy: RoutingPolicy | None,
    base: Base,
    max_length: int,
) -> tuple[list[TokenizedExample], tuple[str, ...]]:
    """Token rows of examples, and what had to be cut or dropped.

    Without a policy, for examples that are only measured, every label id is 0.

    Raises:
        DataError: no example is left, or a token has no embedding.
    """
    label_ids = [0] * len(examples)
    if policy is not None:
        label_ids = policy.label_ids(example.label for example in examples)
    rows, report = tokenize(examples, base.tokenizer, label_ids, max_length)
    check_token_ids(rows, base.vocabulary)
    return rows, report.notes


def prefixes(examples: Sequence[Example], behavior: Behavior, count: int, words: int) -> list[str]:
    """The prompts that invite the behaviour: `count` at most, from held-out examples.

    An example's own prompt, or the first words of its text where it has none.
    """
    return [
        behavior.prompt(example.prompt or " ".join(example.text.split()[:words]))
        for example in examples[:count]
    ]


def _examples(
    config: RunConfig, policy: RoutingPolicy
) -> tuple[list[Example], list[Example], bool, str, tuple[str, ...]]:
    data = config.data
    if data.path is None:
        train = _stories("tune", data.train_examples, config.seed)
        wanted = max(config.evaluate.held_out, config.evaluate.prompts)
        held_out = _stories("test", wanted, 0)
        return train, held_out, False, f"embedded stories, seed {config.seed}", ()
    file = read_examples(Path(data.path), labels=policy.labels)
    identity = f"{Path(data.path).name}, sha256 {file.sha256}"
    if data.eval_path is None:
        train, held_out = split_held_out(file.examples, data.eval_fraction)
        return train, held_out, file.labeled, identity, file.notes
    other = read_examples(Path(data.eval_path), labels=policy.labels)
    identity += f"; {Path(data.eval_path).name}, sha256 {other.sha256}"
    if other.labeled != file.labeled:
        raise DataError(
            f"of {data.path} and {data.eval_path} only one has labels. Give labels to both or none."
        )
    refuse_overlap(file.examples, other.examples)
    return file.examples, other.examples, file.labeled, identity, file.notes + other.notes


def _stories(split: str, count: int, seed: int) -> list[Example]:
    texts = stories(split, count, seed)
    return [Example(id=f"{split}-{seed}-{i}", text=text) for i, text in enumerate(texts)]
