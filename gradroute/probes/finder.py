"""Finding: which unlabeled examples an adapter explains, and how many of the finds are false.

find_rows     run -> found/: scores of its unlabeled examples, and the rows that were found

The examples that are known to be good and were trained as unlabeled ones (`data.null_fraction`) say
how often a good unlabeled example scores as high. Rows of another file can be scored in place of
the run's own; then held-out examples labeled good say it, which training did not see either.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from peft import PeftModel

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.examples import Example, labels_in
from gradroute.data.found import read_found
from gradroute.data.reading import ExampleFile
from gradroute.data.tokenization import TokenizedExample
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.evaluator import run_identity
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.models.base import Base
from gradroute.models.shared_states import share_states
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import Prepared, prepare, read_as_trained, tokenize_examples
from gradroute.probes.explained import explained
from gradroute.probes.found_files import (
    LIKELY,
    SCHEMA_VERSION,
    SUSPECT,
    Scored,
    found_place,
    judged,
    known_summary,
    write_found,
)
from gradroute.probes.head_scores import head_scores
from gradroute.probes.rival_scores import (
    HIDDEN_STRENGTH,
    WORDS_STRENGTH,
    classifier_scores,
    mean_states,
    word_features,
)
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.runs.provenance import provenance
from gradroute.runs.resume import check_identity
from gradroute.system.false_discovery import LEAST_NULL
from gradroute.system.terminal import say

_TRAINED_NULL = (
    "{} held-out rows are labeled good, too few to compare a file with. Rows labeled good that "
    "were trained as unlabeled stand in for them; a good row that training did not see can score "
    "higher, so more of the finds may be false."
)

FDR = 0.05
"""Share of false rows among the found, on average, unless another is asked for."""
BY = ("adapter", "words", "hidden", "head")
"""What rows may be scored by: the adapter, or a classifier that the labels alone train."""


def find_rows(
    folder: RunFolder, *, by: str, fdr: float, label: str | None = None, file: str | None = None
) -> Mapping[str, Any]:
    """Score a run's unlabeled examples and write those that a label would suit.

    Args:
        folder: A finished run; for a classifier of words only its data are used.
        by: One of `BY`.
        fdr: Share of false rows among the found, on average, at most.
        label: With several behaviors, which.
        file: Examples in the form of `data.path` that are scored in place of the run's own.

    Returns:
        The summary, as `<by>.json` in `found_files.found_place` holds it.

    Raises:
        ConfigError: The run has no adapter of its own for the behavior, or no such label.
        DataError: No example is unlabeled, or too few are known to be good and were trained as
            unlabeled ones; or the file cannot be used.
        MachineError: The run has no finished checkpoint, or another process writes to it.
    """
    config = load_config(folder.config)
    label = _label(list(config.behaviors), label)
    checkpoint = None if by == "words" else finished_checkpoint(folder, config.train.max_steps)
    with write_lock(folder.path, "finding"):
        prepared = prepare(config)
        others, identity = (None, None) if file is None else read_as_trained(config, file)
        question = {
            "schema_version": SCHEMA_VERSION,
            "run": folder.name,
            "by": by,
            "behavior": label,
            "fdr": fdr,
            "likely": LIKELY,
            "suspect": SUSPECT[by],
            "checkpoint": checkpoint and checkpoint.identity,
            "labels": _labels_hash(prepared),
            "file": file and {"name": Path(file).name, "identity": identity},
        }
        earlier = _earlier(config.data.found, config.policy.labels) if file is None else ()
        if (known := known_summary(found_place(folder, question), question, earlier)) is not None:
            return known
        told = _told(folder, prepared, label, others, file or "")
        say(f"{folder.name}: scoring {len(told.rows)} unlabeled rows by {by}")
        if checkpoint is None:
            scored, notes = _by_words(told, config.seed), ()
        else:
            base, model = restore(config, checkpoint)
            check_identity(folder, run_identity(prepared, base))
            scored, notes = _by_model(folder, config, told, by, base, model)
        found, lines = judged(scored, fdr, label, SUSPECT[by])
        notes = (*told.notes, *notes)
        summary = {**question, **found, "notes": notes, "provenance": provenance()}
        write_found(found_place(folder, question), summary, lines, earlier)
    return summary


def _earlier(found: str | None, labels: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """The rows that `data.found` gave a label before this run was trained."""
    return () if found is None else read_found(Path(found), labels).rows


def _labels_hash(prepared: Prepared) -> str:
    """What a finder is told: every training example and its label, and those held out."""
    told = [(e.prompt, e.text, e.label) for e in prepared.train]
    told += [(e.prompt, e.text, "null") for e in prepared.null]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _label(labels: Sequence[str], label: str | None) -> str:
    """The label of the behavior that is looked for."""
    if label is None and len(labels) > 1:
        raise ConfigError(
            f"this run has the behaviors {', '.join(labels)}; name one: --behavior {labels[0]}."
        )
    chosen = label or labels[0]
    if chosen not in labels:
        raise ConfigError(f"there is no behavior {chosen!r}; this run has {', '.join(labels)}.")
    return chosen


class _Told(NamedTuple):
    """What a finder is told of a run's examples.

    Attributes:
        run: The run's name.
        label: Of the behavior.
        labeled: Training examples that are labeled good or with the behavior.
        rows: Unlabeled examples, of training or of another file.
        null: Examples that are known to be good and that training treated as it treated the rows.
        notes: What was left out, a sentence each.
    """

    run: str
    label: str
    labeled: Sequence[Example]
    rows: Sequence[Example]
    null: Sequence[Example]
    notes: tuple[str, ...]

    @property
    def every(self) -> list[Example]:
        """All of them: labeled ones, rows, null."""
        return [*self.labeled, *self.rows, *self.null]


def _told(
    folder: RunFolder, prepared: Prepared, label: str, others: ExampleFile | None, file: str
) -> _Told:
    where = f"run {folder.name}: no training example is" if others is None else f"{file}: no row is"
    hidden = {e.id for e in prepared.null}
    examples = prepared.train if others is None else others.examples
    unlabeled = [e for e in examples if e.label == "unlabeled"]
    rows = [e for e in unlabeled if not e.spans and (others is not None or e.id not in hidden)]
    null = prepared.null
    notes: tuple[str, ...] = ()
    if others is not None:
        fresh = [e for e in prepared.normal if labels_in(e) == {"good"}]
        notes = _notes_on_file(others, rows, prepared)
        if len(fresh) < LEAST_NULL:
            notes += (_TRAINED_NULL.format(len(fresh)),)
        else:
            null = fresh
    if not rows:
        raise DataError(f"{where} unlabeled as a whole; nothing to find.")
    if len(null) < LEAST_NULL:
        raise DataError(
            f"run {folder.name}: {len(null)} examples are labeled good and were trained as "
            f"unlabeled; at least {LEAST_NULL} are needed to say how often a good one scores as "
            "high. Label more rows good, and train with data.null_fraction=0.2."
        )
    if parts := sum(bool(e.spans) for e in unlabeled):
        notes += (f"{parts} rows with labels of parts are not scored.",)
    labeled = [e for e in prepared.train if e.label in ("good", label) and not e.spans]
    return _Told(folder.name, label, labeled, rows, null, notes)


def _notes_on_file(
    others: ExampleFile, rows: Sequence[Example], prepared: Prepared
) -> tuple[str, ...]:
    """What was passed over in another file, and which of its rows the run knows."""
    notes = others.notes
    if labeled := sum(e.label != "unlabeled" for e in others.examples):
        notes += (f"{labeled} of {len(others.examples)} rows have a label and are not tested.",)
    trained = {(e.prompt, e.text) for e in prepared.train}
    if known := sum((e.prompt, e.text) in trained for e in rows):
        notes += (
            f"{known} of {len(rows)} rows were trained on; their scores are those of training "
            "rows.",
        )
    return notes


def _by_model(
    folder: RunFolder, config: RunConfig, told: _Told, by: str, base: Base, model: PeftModel
) -> tuple[Scored, tuple[str, ...]]:
    """Scores from the run's model or its base, and what tokenizing passed over."""
    # Rows of another file may have the ids of the run's own.
    every = [replace(example, id=str(at)) for at, example in enumerate(told.every)]
    rows, notes = tokenize_examples(every, None, base, config.data.max_length)
    settings = config.evaluate
    if by == "hidden":
        return _by_hidden(told, rows, base, model, settings.seed), notes
    if by == "head":
        return _by_head(told, rows, base, model, settings.seed), notes
    share_states(folder, config, base, model, rows)
    return _by_adapter(told, rows, base, model, settings.batch_rows), notes


def _by_adapter(
    told: _Told, rows: Sequence[TokenizedExample], base: Base, model: PeftModel, at_once: int
) -> Scored:
    """Scores from what the behavior's adapter explains, see `explained`."""
    adapters = tuple(model.peft_config)
    if told.label not in adapters or len(adapters) < 2:
        raise ConfigError(
            f"run {told.run} has the adapters {', '.join(adapters)}; an adapter {told.label} and "
            "another one are needed to see what it explains."
        )
    names = ("full", f"{told.label}_ablated", f"{told.label}_alone")
    modes = [AblationMode.parse(name, adapters) for name in names]
    rows = [row for row in rows if int(row.id) >= len(told.labeled)]
    losses = held_out_token_losses(model, rows, modes, pad_id=base.pad_id, rows_per_batch=at_once)
    parts = zip(*(losses[name] for name in names), strict=True)
    found = [
        explained(full.numpy(), without.numpy(), alone.numpy()) for full, without, alone in parts
    ]
    numbers = [int(row.id) - len(told.labeled) for row in rows]
    count = sum(number < len(told.rows) for number in numbers)  # the others are null
    scores = np.array([one.score for one in found])
    text_of = cache(lambda target: str(base.tokenizer.decode([target])))
    tokens = [
        list(zip(map(text_of, filter(_is_target, row.targets)), _rounded(one.tokens), strict=True))
        for row, one in zip(rows[:count], found[:count], strict=True)
    ]
    return Scored([told.rows[at] for at in numbers[:count]], scores[:count], scores[count:], tokens)


def _by_words(told: _Told, seed: int) -> Scored:
    """Scores of a classifier of words, see `rival_scores`."""
    texts = [f"{e.prompt} {e.text}" for e in told.every]
    return _classified(told, word_features(texts), WORDS_STRENGTH, seed)


def _by_hidden(
    told: _Told, rows: Sequence[TokenizedExample], base: Base, model: PeftModel, seed: int
) -> Scored:
    """Scores of a classifier of the base's hidden states, see `rival_scores`."""
    told = _only(told, rows)
    features = np.stack(mean_states(model, rows, base.pad_id))
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return _classified(told, features, HIDDEN_STRENGTH, seed)


def _by_head(
    told: _Told, rows: Sequence[TokenizedExample], base: Base, model: PeftModel, seed: int
) -> Scored:
    """Scores of a fine-tuned classifier, see `head_scores`."""
    told = _only(told, rows)
    bad = np.array([e.label == told.label for e in told.labeled], dtype=bool)
    labeled, others = rows[: len(bad)], rows[len(bad) :]
    scores = head_scores(model, labeled, bad, others, base.pad_id, seed=seed)
    return Scored(told.rows, scores[: len(told.rows)], scores[len(told.rows) :])


def _only(told: _Told, rows: Sequence[TokenizedExample]) -> _Told:
    """What is told without the examples that have no row of tokens."""
    every = told.every
    kept = {id(every[int(row.id)]) for row in rows}
    parts = ([e for e in part if id(e) in kept] for part in (told.labeled, told.rows, told.null))
    return told._replace(**dict(zip(("labeled", "rows", "null"), parts, strict=True)))


def _classified(told: _Told, features: Any, strength: float, seed: int) -> Scored:
    """Scores of a classifier that is trained on the labeled examples; features as in `every`."""
    labeled = len(told.labeled)
    bad = np.array([e.label == told.label for e in told.every])
    trained = np.arange(len(bad)) < labeled
    scores = classifier_scores(features, bad, trained, strength=strength, seed=seed)
    null = labeled + len(told.rows)
    return Scored(told.rows, scores[labeled:null], scores[null:])


def _is_target(target: int) -> bool:
    return target >= 0


def _rounded(shares: Float[ndarray, " t"]) -> list[float]:
    return [round(float(share), 3) for share in shares]
