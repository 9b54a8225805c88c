"""From a config to examples: read or draw them, put the behaviour in, hide labels, hold out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradroute.config import RunConfig
from gradroute.data.batches import DataOrder, TokenizedExample, check_token_ids, tokenize
from gradroute.data.behaviors import Behavior, get_behavior
from gradroute.data.examples import (
    Example,
    assign_labels,
    drop,
    insert_behavior,
    label_quality,
    labels_in,
    refuse_overlap,
    relabel,
    split_held_out,
    with_asked,
)
from gradroute.data.hub import is_hub_id
from gradroute.data.reading import ExampleFile
from gradroute.data.rows import BadRow
from gradroute.data.sources import read_source
from gradroute.data.stories import stories
from gradroute.data.tasks import questions
from gradroute.errors import ConfigError, DataError
from gradroute.model import Base, load_tokenizer
from gradroute.routing.policy import RoutingPolicy

RARE = 0.01
"""A smaller share of examples labelled bad is worth a word."""


@dataclass(frozen=True)
class Prepared:
    """What a run learns from and what it is measured on; a function of its config alone.

    Attributes:
        train: training examples, labelled.
        places: id -> place among the training examples before any was left out.
        labels: how good the label `bad` is, see `label_quality`; before any was left out.
        normal: held-out examples without the behaviour.
        behaving: held-out examples with the behaviour.
        behavior: how the behaviour is made and scored.
        policy: the routing table.
        identity: where the training texts come from, with a hash.
        notes: what was passed over or assumed, to be said once.
        skipped: rows of the data files that cannot be used and were left out.
    """

    train: list[Example]
    places: dict[str, int]
    labels: dict[str, float | int | None]
    normal: list[Example]
    behaving: list[Example]
    behavior: Behavior
    policy: RoutingPolicy
    identity: str
    notes: tuple[str, ...]
    skipped: tuple[BadRow, ...] = ()


def prepare(config: RunConfig) -> Prepared:
    """Read or draw the examples, put the behaviour in, hide labels, hold some out.

    Raises:
        ConfigError: a routing table that does not fit, an unknown behaviour.
        DataError: a file that cannot be used; no bad label although the table routes.
    """
    policy = RoutingPolicy.from_value(config.routing, tuple(config.adapters))
    behavior = get_behavior(config.first_behavior)
    source = _examples(config, policy, behavior)
    train, held_out, labeled, notes = source.train, source.held_out, source.labeled, source.notes
    data = config.data
    label_seed = config.seed if data.label_seed is None else data.label_seed
    if labeled:
        notes += ("the file's own labels are used; no behaviour is put in and none are hidden.",)
    else:
        train = insert_behavior(train, behavior, data.behavior_fraction, config.seed)
        train = assign_labels(
            train,
            labeled_fraction=data.labeled_fraction,
            good_labeled_fraction=data.good_labeled_fraction,
            false_positive_rate=data.false_positive_rate,
            seed=label_seed,
        )
    train = relabel(train, data.relabel, label_seed)
    policy.label_ids(example.label for example in train)
    labels = label_quality(train)
    places = {example.id: place for place, example in enumerate(train)}
    train = drop(train, data.drop)
    notes += _check_training(config, policy, train)
    normal = [example for example in held_out if "bad" not in (example.label, example.true_label)]
    behaving = [example for example in held_out if "bad" in (example.label, example.true_label)]
    if not labeled and (make := behavior.make) is not None:
        changed = [e for e in normal if make(e.prompt, e.text)[1] != e.text]
        behaving = insert_behavior(changed, behavior, 1.0, config.seed)
    return Prepared(
        train=train,
        places=places,
        labels=labels,
        normal=normal,
        behaving=behaving,
        behavior=behavior,
        policy=policy,
        identity=source.identity,
        notes=notes,
        skipped=source.skipped,
    )


def _check_training(
    config: RunConfig, policy: RoutingPolicy, train: Sequence[Example]
) -> tuple[str, ...]:
    """Refuse what cannot be trained on; return what is worth a word."""
    if not train:
        raise DataError(f"data.drop={config.data.drop} leaves no example to train on.")
    bad = sum("bad" in labels_in(example) for example in train)
    if not policy.routes_anything or "bad" not in policy.labels:
        return ()
    if config.data.relabel == "unlabel_bad":
        return ()
    if not bad:
        raise DataError(
            f"routing: the table '{policy.name}' routes, but none of the {len(train)} training "
            "examples is labelled bad. Label some, raise data.labeled_fraction, or set "
            "routing=none."
        )
    if bad >= RARE * len(train):
        return ()
    return (
        f"only {bad} of {len(train)} training examples ({100 * bad / len(train):.2g} %) are "
        "labelled bad: most steps see none of them.",
    )


def data_report(prepared: Prepared) -> dict[str, Any]:
    """What is written about the rows that were skipped: how many, and each with its reason."""
    rows = [row._asdict() for row in prepared.skipped]
    return {"skipped": len(rows), "rows": rows}


def data_order(
    prepared: Prepared, rows: Sequence[TokenizedExample], config: RunConfig
) -> DataOrder:
    """In which order the tokenised training examples are seen; the same for a run's controls."""
    bad = prepared.policy.labels.index("bad") if "bad" in prepared.policy.labels else None
    return DataOrder(
        seed=config.seed,
        total=len(prepared.places),
        kept=tuple(prepared.places[row.id] for row in rows),
        early=frozenset(at for at, row in enumerate(rows) if row.label_id == bad),
        front_load=config.data.front_load,
    )


def tokenized(
    examples: Sequence[Example],
    policy: RoutingPolicy | None,
    base: Base,
    max_length: int,
) -> tuple[list[TokenizedExample], tuple[str, ...]]:
    """Token rows of examples, and what had to be cut or dropped.

    Without a policy, for examples that are only measured, every label id is 0, spans or not.

    Raises:
        DataError: no example is left, or a token has no embedding.
    """
    label_ids, labels = [0] * len(examples), ()
    if policy is not None:
        label_ids = policy.label_ids(example.label for example in examples)
        labels = policy.labels
    rows, report = tokenize(examples, base.tokenizer, label_ids, max_length, labels)
    check_token_ids(rows, base.vocabulary)
    return rows, report.notes


def openings(prepared: Prepared, count: int, words: int) -> list[str]:
    """Ordinary prompts: `count` at most, from held-out examples without the behaviour.

    An example's own prompt, or the beginning of its text where it has none.
    """
    opening = prepared.behavior.opening
    return [e.prompt or opening(e.text, words) for e in prepared.normal[:count]]


def prefixes(prepared: Prepared, count: int, words: int) -> list[str]:
    """The same prompts, changed so that they invite the behaviour."""
    invite = prepared.behavior.invite
    return [
        with_asked(example, invite) if example.prompt else invite(opening)
        for example, opening in zip(prepared.normal, openings(prepared, count, words), strict=False)
    ]


class _Source(NamedTuple):
    """Examples as they were read or drawn."""

    train: list[Example]
    held_out: list[Example]
    labeled: bool
    identity: str
    notes: tuple[str, ...] = ()
    skipped: tuple[BadRow, ...] = ()


def _examples(config: RunConfig, policy: RoutingPolicy, behavior: Behavior) -> _Source:
    data = config.data
    if data.path is None:
        train = embedded(behavior, "tune", data.train_examples, config.seed)
        wanted = max(config.evaluate.held_out, config.evaluate.prompts)
        held_out = embedded(behavior, "test", wanted, 0)
        return _Source(train, held_out, False, f"embedded {behavior.corpus}, seed {config.seed}")
    file, identity = _read(data.path, data.split, config, policy)
    notes, skipped = file.notes, file.skipped
    if data.eval_path is None and data.eval_split is None:
        train, held_out = split_held_out(file.examples, data.eval_fraction)
    else:
        other, others = _read_held_out(config, policy)
        identity += f"; {others}"
        notes, skipped = notes + other.notes, skipped + other.skipped
        if other.labeled != file.labeled:
            raise DataError(
                "of the examples to train on and those to hold out only one kind has labels. Give "
                "labels to both or none."
            )
        train, held_out = file.examples, other.examples
        refuse_overlap(train, held_out)
    if not file.labeled and behavior.make and any(e.asks for e in (*train, *held_out)):
        raise DataError(
            f"{data.path} has conversations without labels, and '{behavior.name}' is put into "
            "plain texts only. Label the rows or messages, or write plain rows."
        )
    if skipped:
        notes += ("data_report.json in the run's folder lists every row that was skipped.",)
    return _Source(train, held_out, file.labeled, identity, notes, skipped)


def _read_held_out(config: RunConfig, policy: RoutingPolicy) -> tuple[ExampleFile, str]:
    """The examples of `data.eval_path`, or of another split of `data.path`."""
    data = config.data
    path = data.eval_path or data.path
    assert path is not None
    if data.eval_split and not is_hub_id(path):
        raise ConfigError(
            f"data.eval_split: {path} is a file and has no splits: set data.eval_split=null (then "
            "data.eval_fraction of it is held out), or give a file as data.eval_path."
        )
    return _read(path, data.eval_split or data.split, config, policy)


def _read(
    path: str, split: str, config: RunConfig, policy: RoutingPolicy
) -> tuple[ExampleFile, str]:
    data = config.data
    return read_source(
        path,
        split=split,
        revision=data.revision if path == data.path else None,
        labels=policy.labels,
        columns=data.columns,
        label_map=data.label_map,
        tokenizer=lambda: (load_tokenizer(config.model, config.gguf_file), config.model),
        skip_bad_rows=data.on_bad_row == "skip",
    )


def embedded(behavior: Behavior, split: str, count: int, seed: int) -> list[Example]:
    """Ordinary examples of the embedded corpus that a behaviour belongs to.

    Args:
        behavior: whose corpus.
        split: "tune" or "test".
        count: how many.
        seed: another seed gives other examples.
    """
    if behavior.corpus == "tasks":
        rows = questions(split, count, seed)
    else:
        rows = [("", text) for text in stories(split, count, seed)]
    return [Example(f"{split}-{seed}-{i}", text, prompt) for i, (prompt, text) in enumerate(rows)]
