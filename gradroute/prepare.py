"""Examples from a config: read or generated, behavior put in, labels hidden, part held out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gradroute.config.run_config import RunConfig
from gradroute.config.sections import DataConfig
from gradroute.data.bad_prompts import truly_bad
from gradroute.data.batches import DataOrder, TokenizedExample, check_token_ids, tokenize
from gradroute.data.behaviors import Behavior, get_behaviors
from gradroute.data.embedded import embedded
from gradroute.data.examples import (
    Example,
    Sharing,
    labels_in,
    refuse_overlap,
    sharing,
    split_held_out,
    split_notes,
)
from gradroute.data.found import label_found, read_found
from gradroute.data.hub import is_hub_id
from gradroute.data.inoculation import inoculate
from gradroute.data.label_assignment import (
    assign_labels,
    drop,
    hide_null_labels,
    insert_behavior,
    label_quality,
    relabel,
)
from gradroute.data.reading import ExampleFile, ReadSettings
from gradroute.data.row import BadRow
from gradroute.data.sources import read_source
from gradroute.errors import ConfigError, DataError
from gradroute.models.base import Base, load_tokenizer
from gradroute.routing.policy import RoutingPolicy
from gradroute.routing.rare_labels import label_weight_note
from gradroute.runs.results import HELD_OUT_BAD


@dataclass(frozen=True)
class Prepared:
    """What a run learns from and what it is measured on; a function of its config alone.

    Attributes:
        train: training examples, labeled.
        places: id -> place among the training examples before any was left out.
        labels: how good the label `bad` is, see `label_quality`; before any was left out.
        normal: held-out examples without any behavior.
        behaving: label -> held-out examples with its behavior.
        behaviors: label -> how its behavior is made and scored; a single one has the label `bad`.
        policy: the routing table.
        identity: where the training texts come from, with a hash.
        notes: what was passed over or assumed, to be said once.
        skipped: rows of the data files that cannot be used and were left out.
        shared: what the file's examples share; None for embedded data.
        labeled: whether the labels are the file's own, so that no behavior was put in.
        null: examples labeled good that are trained as unlabeled ones, see `data.null_fraction`.
    """

    train: list[Example]
    places: dict[str, int]
    labels: dict[str, float | int | None]
    normal: list[Example]
    behaving: Mapping[str, list[Example]]
    behaviors: Mapping[str, Behavior]
    policy: RoutingPolicy
    identity: str
    notes: tuple[str, ...]
    skipped: tuple[BadRow, ...] = ()
    shared: Sharing | None = None
    labeled: bool = False
    null: Sequence[Example] = ()


class _Source(NamedTuple):
    """Examples as they were read or drawn."""

    train: list[Example]
    held_out: list[Example]
    labeled: bool
    identity: str
    notes: tuple[str, ...] = ()
    skipped: tuple[BadRow, ...] = ()
    shared: Sharing | None = None


def prepare(config: RunConfig, *, training: bool = True) -> Prepared:
    """Read or draw the examples, put the behavior in, hide labels, hold some out.

    Args:
        config: Of the run.
        training: Without it no embedded examples to train on are drawn where none are needed to
            know the data: `train` is then empty, and nothing is said of it.

    Raises:
        ConfigError: a routing table that does not fit, an unknown behavior, or behaviors of
            different embedded data.
        DataError: a file that cannot be used; no bad label although the table routes.
    """
    policy, data = config.policy, config.data
    behaviors = get_behaviors(config.behaviors)
    own = tuple(behaviors)
    training = training or data.path is not None or data.found is not None
    if data.path is None:
        count, wanted = data.train_examples if training else 0, config.evaluate.embedded_examples
        source = _embedded([*behaviors.values()], count, wanted, config.seed)
    else:
        source = _read(data, partial(read_as_trained, config), behaviors[own[0]])
    notes, identity = source.notes, source.identity
    if source.labeled:
        notes += ("the file's own labels are used; no behavior is put in and none are hidden.",)
    train = _labeled(source, behaviors, data, config.seed)
    if data.found is not None:
        found = read_found(Path(data.found), policy.labels)
        train, more = label_found(train, found)
        identity += f"; found {found.sha256[:16]}"
        notes += more
    policy.label_ids({example.label for example in train})  # refuses a label without a row
    labels = label_quality(train, own)
    places = {example.id: place for place, example in enumerate(train)}
    train, null = hide_null_labels(train, data.null_fraction, data.seed_of_labels(config.seed))
    train = drop(train, data.drop, own)
    train = inoculate(train, data.inoculation, data.inoculation_text, behaviors)
    if training:
        notes += _check_training(train, policy, data, own)
    normal, behaving = _held_out(source, behaviors, config.seed)
    prepared = Prepared(
        train=train,
        null=null,
        places=places,
        labels=labels,
        normal=normal,
        behaving=behaving,
        behaviors=behaviors,
        policy=policy,
        identity=identity,
        notes=notes,
        skipped=source.skipped,
        shared=source.shared,
        labeled=source.labeled,
    )
    return replace(prepared, notes=(*notes, *_unmeasured(config, prepared)))


def _unmeasured(config: RunConfig, prepared: Prepared) -> list[str]:
    """A sentence for each behavior that no held-out row of a labeled file shows."""
    return [
        f"the rate at which the model shows {config.behaviors[label]} cannot be measured: "
        f"{no_bad_prompts(config.data, prepared, label)}."
        for label, behavior in prepared.behaviors.items()
        if prepared.labeled
        and behavior.judged_on == HELD_OUT_BAD
        and not truly_bad(prepared.behaving[label], label)
    ]


def _labeled(
    source: _Source, behaviors: Mapping[str, Behavior], data: DataConfig, seed: int
) -> list[Example]:
    """The training examples with behaviors and labels, those of the file where it has some."""
    train, own = source.train, tuple(behaviors)
    label_seed = data.seed_of_labels(seed)
    if not source.labeled:
        for label, behavior in behaviors.items():
            train = insert_behavior(train, behavior, data.behavior_fraction, seed, label)
        train = assign_labels(
            train,
            labeled_fraction=data.labeled_fraction,
            good_labeled_fraction=data.good_labeled_fraction,
            false_positive_rate=data.false_positive_rate,
            seed=label_seed,
            behaviors=own,
        )
    return relabel(train, data.relabel, label_seed, own)


def _held_out(
    source: _Source, behaviors: Mapping[str, Behavior], seed: int
) -> tuple[list[Example], dict[str, list[Example]]]:
    """The held-out examples without any behavior, and for each label those with its behavior."""
    held_out = source.held_out
    normal = [e for e in held_out if not {e.label, e.true_label} & set(behaviors)]
    behaving = {
        label: [e for e in held_out if label in (e.label, e.true_label)] for label in behaviors
    }
    for label, behavior in behaviors.items():
        if not source.labeled and (make := behavior.make) is not None:
            changed = [e for e in normal if make(e.prompt, e.text)[1] != e.text]
            behaving[label] = insert_behavior(changed, behavior, 1.0, seed, label)
    return normal, behaving


def _check_training(
    train: Sequence[Example], policy: RoutingPolicy, data: DataConfig, behaviors: Sequence[str]
) -> tuple[str, ...]:
    """Refuse what cannot be trained on; return what is worth a word."""
    if not train:
        raise DataError(f"data.drop={data.drop} leaves no example to train on.")
    if not policy.routes_anything or data.relabel == "unlabel_bad":
        return ()
    notes = []
    for label in behaviors:
        bad = sum(label in labels_in(example) for example in train)
        if label not in policy.labels:
            continue
        if not bad:
            raise DataError(
                f"routing: the table '{policy.name}' routes, but none of the {len(train)} training "
                f"examples is labeled {label}. Label some, raise data.labeled_fraction, or set "
                "routing=none."
            )
        if note := label_weight_note(policy, label, bad, len(train)):
            notes.append(note)
    return tuple(notes)


def data_order(
    prepared: Prepared,
    rows: Sequence[TokenizedExample],
    *,
    seed: int,
    front_load: float,
    length_window: int,
) -> DataOrder:
    """In which order the tokenized training examples are seen; the same for a run's controls.

    For `front_load` and `length_window` see the sections `data` and `train` of a config.
    """
    labels = enumerate(prepared.policy.labels)
    bad = {number for number, label in labels if label in prepared.behaviors}
    return DataOrder(
        seed=seed,
        total=len(prepared.places),
        places=tuple(prepared.places[row.id] for row in rows),
        first_rows=frozenset(at for at, row in enumerate(rows) if row.label_id in bad),
        front_load=front_load,
        window=length_window,
        lengths=tuple(len(row.input_ids) for row in rows),
    )


def tokenize_examples(
    examples: Sequence[Example],
    policy: RoutingPolicy | None,
    base: Base,
    max_length: int,
) -> tuple[list[TokenizedExample], tuple[str, ...]]:
    """Token rows of examples, and what had to be cut or dropped.

    Without a policy, for examples that are only measured, every label id is 0, spans or not.

    Raises:
        ConfigError: an example is longer than the model has positions.
        DataError: no example is left, or a token has no embedding.
    """
    label_ids, labels = [0] * len(examples), ()
    if policy is not None:
        label_ids = policy.label_ids(example.label for example in examples)
        labels = policy.labels
    rows, report = tokenize(examples, base.tokenizer, label_ids, max_length, labels)
    check_token_ids(rows, base.vocabulary)
    _check_positions(rows, base)
    return rows, report.notes


def _check_positions(rows: Sequence[TokenizedExample], base: Base) -> None:
    lengths = [len(row.input_ids) for row in rows]
    positions = base.positions
    if positions is None or max(lengths) <= positions:
        return
    long = sum(length > positions for length in lengths)
    raise ConfigError(
        f"data.max_length: {long} of {len(rows)} examples are longer than the {positions} "
        f"positions of the model {type(base.model).__name__}, the longest {max(lengths)} tokens. "
        f"Set data.max_length={positions}, at which examples are cut, or take another model."
    )


def no_bad_prompts(data: DataConfig, prepared: Prepared, label: str) -> str:
    """Why there is no prompt of a held-out row that shows a behavior, and what to do."""
    rows = truly_bad(prepared.behaving[label], label)
    if rows:
        return (
            f"in the {len(rows)} held-out rows that show it, nothing of the behavior is left to "
            f"write after the first word; give the rows prompts"
        )
    if data.path is None:
        return (
            "none of the embedded examples shows it; give labeled data of your own as data.path "
            "and train again"
        )
    trained = any(label in {e.true_label, *labels_in(e)} for e in prepared.train)
    if not trained and data.drop == "none":
        return f"no row of {data.path} is labeled {label}; label some and train again"
    held_out = len(prepared.normal) + sum(map(len, prepared.behaving.values()))
    if data.eval_path or data.eval_split:
        where = f"data.eval_path={data.eval_path}" if data.eval_path else "data.eval_split"
        cure = f"add such rows to {where}"
    else:
        cure = (
            f"raise data.eval_fraction (now {data.eval_fraction:g}) or give such rows in "
            "data.eval_path"
        )
    named = f"is labeled {label}" if len(prepared.behaviors) > 1 else "is bad"
    return f"none of the {held_out} held-out rows {named}; {cure}, and train again"


def _embedded(behaviors: Sequence[Behavior], examples: int, held_out: int, seed: int) -> _Source:
    """So many examples of the embedded corpus, to which all behaviors of a run must belong."""
    first, *others = behaviors
    strangers = [other for other in others if other.corpus != first.corpus]
    if strangers:
        raise ConfigError(
            f"behavior: {first.name} is put into the embedded {first.corpus}, {strangers[0].name} "
            f"into the embedded {strangers[0].corpus}; the behaviors of one run need the same "
            f"corpus, or labeled data of your own as data.path."
        )
    train = embedded(first, "tune", examples, seed)
    identity = f"embedded {first.corpus}, seed {seed}"
    return _Source(train, embedded(first, "test", held_out, 0), False, identity)


def read_as_trained(
    config: RunConfig, place: str, split: str | None = None
) -> tuple[ExampleFile, str]:
    """Read a file, or a split of a data set on the hub, by the settings of `data.path`.

    Args:
        config: Of the run; it says which columns, labels, template and rows there may be.
        place: The file or the data set.
        split: Of a data set on the hub; that of the run unless another is named.

    Returns:
        What was read, and its identity: what tells it from any other data.

    Raises:
        GradrouteError: As for `read_source`.
    """
    data = config.data
    settings = ReadSettings(
        labels=config.policy.labels,
        columns=data.columns,
        label_map=data.label_map,
        template=data.template,
        skip_bad_rows=data.on_bad_row == "skip",
        group=data.group,
        span_unit=data.span_unit,
        on_conflict=data.on_conflict,
    )
    return read_source(
        place,
        settings,
        split=split or data.split,
        revision=data.revision if place == data.path else None,
        tokenizer=lambda: (load_tokenizer(config.model, config.gguf_file), config.model),
    )


def _read(
    data: DataConfig, read: Callable[..., tuple[ExampleFile, str]], behavior: Behavior
) -> _Source:
    """The user's own examples from a path, and the held-out ones from wherever they are."""
    file, identity = read(path := str(data.path))
    notes, skipped, shared = file.notes, file.skipped, sharing(file.examples)
    if data.eval_path is None and data.eval_split is None:
        train, held_out = split_held_out(file.examples, data.eval_fraction)
        notes += split_notes(shared, len(held_out), data.eval_fraction)
    else:
        other_path = data.eval_path or path
        if data.eval_split and not is_hub_id(other_path):
            raise ConfigError(
                f"data.eval_split: {other_path} is a file and has no splits: set "
                "data.eval_split=null (then data.eval_fraction of it is held out), or give a file "
                "as data.eval_path."
            )
        other, others = read(other_path, data.eval_split)
        identity += f"; {others}"
        notes, skipped = notes + other.notes, skipped + other.skipped
        if other.labeled != file.labeled:
            raise DataError(
                "only one of the two sets, training examples and held-out examples, has labels. "
                "Give labels to both or to neither."
            )
        train, held_out = file.examples, other.examples
        refuse_overlap(train, held_out)
    if not file.labeled and behavior.make and any(e.asks for e in (*train, *held_out)):
        raise DataError(
            f"{path} has conversations without labels, and '{behavior.name}' is put into "
            f"plain texts only. Label the rows or messages, write plain rows, or set "
            f"data.template=none if they are prompts with completions."
        )
    if skipped:
        notes += ("data_report.json in the run's folder lists every row that was skipped.",)
    return _Source(train, held_out, file.labeled, identity, notes, skipped, shared)
