"""Finding: which unlabeled examples an adapter explains, and how many of the finds are false.

find_rows     run -> found/: scores of its unlabeled examples, and the rows that were found

The examples that are known to be good and were held out of training (`data.null_fraction`) say how
often a good example scores as high. What is found is written in the form that `data.found` reads.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from peft import PeftModel

from gradroute.config.run_config import load_config
from gradroute.data.examples import Example
from gradroute.data.tokenization import TokenizedExample
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.evaluator import run_identity
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.models.base import Base
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import Prepared, prepare, tokenize_examples
from gradroute.probes.explained import explained
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
from gradroute.system.false_discovery import (
    LEAST_NULL,
    bad_rows,
    least_by_rank,
    q_values,
    tail_p_values,
)
from gradroute.system.files import read_json, read_lines, write_json, write_lines
from gradroute.system.statistics import wilson
from gradroute.system.terminal import say

SCHEMA_VERSION = 1
"""Of the summary."""
FDR = 0.05
"""Share of false rows among the found, on average, unless another is asked for."""
LIKELY = 0.05
"""p-value up to which `refine` labels a row in the next round; routing bears some wrong labels."""
SUSPECT = 0.3
"""p-value up to which a filter drops a row, and at most about this share of the good ones: fewer
good rows cost little, every bad one that stays is learned. Chosen on seed 100 of
`wrong_pronouns`."""
BY = ("adapter", "words", "hidden")
"""What rows may be scored by: the adapter, or a classifier that the labels alone train."""


@dataclass(frozen=True)
class Scored:
    """Scores of the rows in question and of the null rows, higher for worse.

    Attributes:
        rows: Unlabeled examples.
        scores: One per row.
        null: One per example that is known to be good and was not trained on.
        tokens: Text and share in the score of each target token, per row; empty where the score
            is not made of tokens.
    """

    rows: Sequence[Example]
    scores: Float[ndarray, " m"]
    null: Float[ndarray, " n"]
    tokens: Sequence[Sequence[tuple[str, float]]] = ()


def find_rows(
    folder: RunFolder, *, by: str, fdr: float, label: str | None = None
) -> Mapping[str, Any]:
    """Score a run's unlabeled examples and write those that a label would suit.

    Args:
        folder: A finished run; for a classifier of words only its data are used.
        by: One of `BY`.
        fdr: Share of false rows among the found, on average, at most.
        label: With several behaviors, which.

    Returns:
        The summary, as `found/<by>.json` holds it.

    Raises:
        ConfigError: The run has no adapter of its own for the behavior, or no such label.
        DataError: No example is unlabeled, or none is known to be good and held out of training.
        MachineError: The run has no finished checkpoint, or another process writes to it.
    """
    config = load_config(folder.config)
    label = _label(list(config.behaviors), label)
    checkpoint = None if by == "words" else finished_checkpoint(folder, config.train.max_steps)
    with write_lock(folder.path, "finding"):
        prepared = prepare(config)
        question = {
            "schema_version": SCHEMA_VERSION,
            "run": folder.name,
            "by": by,
            "behavior": label,
            "fdr": fdr,
            "likely": LIKELY,
            "suspect": SUSPECT,
            "checkpoint": checkpoint and checkpoint.identity,
            "labels": _labels_hash(prepared),
        }
        if (known := _known(folder.found / f"{by}.json", question)) is not None:
            return known
        told = _told(folder, prepared, label)
        say(f"{folder.name}: scoring {len(told.rows)} unlabeled rows by {by}")
        if checkpoint is None:
            scored = _by_words(told, config.seed)
        else:
            base, model = restore(config, checkpoint)
            check_identity(folder, run_identity(prepared, base))
            rows, notes = tokenize_examples(told.every, None, base, config.data.max_length)
            for note in notes:
                say(f"{folder.name}: {note}")
            if by == "adapter":
                scored = _by_adapter(told, rows, base, model, config.evaluate.batch_rows)
            else:
                scored = _by_hidden(told, rows, base, model, config.seed)
        judged, lines = _judged(scored, fdr, label)
        summary = {**question, **judged, "provenance": provenance()}
        _write(folder, by, summary, lines, config.data.found)
    return summary


def _write(
    folder: RunFolder,
    by: str,
    summary: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    earlier: str | None,
) -> None:
    """The scores, the labels of this and earlier rounds, and last the summary."""
    write_lines(folder.found / f"{by}_scores.jsonl", lines)
    before = [] if earlier is None else read_lines(Path(earlier))
    now = [_as_found(line) for line in lines if line["found"]]
    write_lines(folder.found / f"{by}.jsonl", [*before, *now])
    for name, most in (("likely", LIKELY), ("suspects", SUSPECT)):
        rows = [_as_found(line) for line in lines if line["p"] <= most]
        write_lines(folder.found / f"{by}_{name}.jsonl", [*before, *rows])
    write_json(folder.found / f"{by}.json", summary)


def _known(path: Path, question: Mapping[str, Any]) -> dict[str, Any] | None:
    """An earlier answer to the same question."""
    if not path.is_file():
        return None
    known = read_json(path)
    return known if all(known.get(key) == value for key, value in question.items()) else None


def _labels_hash(prepared: Prepared) -> str:
    """What a finder is told: every training example and its label, and those held out."""
    told = [(e.prompt, e.text, e.label) for e in (*prepared.train, *prepared.null)]
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
        rows: Unlabeled training examples.
        null: Examples that are known to be good and that training did not see.
    """

    run: str
    label: str
    labeled: Sequence[Example]
    rows: Sequence[Example]
    null: Sequence[Example]

    @property
    def every(self) -> list[Example]:
        """All of them: labeled ones, rows, null."""
        return [*self.labeled, *self.rows, *self.null]


def _told(folder: RunFolder, prepared: Prepared, label: str) -> _Told:
    whole = [e for e in prepared.train if not e.spans]
    rows = [e for e in whole if e.label == "unlabeled"]
    null = [*prepared.null, *(e for e in prepared.normal if e.label == "good")]
    if not rows:
        raise DataError(f"run {folder.name}: no training example is unlabeled; nothing to find.")
    if len(null) < LEAST_NULL:
        raise DataError(
            f"run {folder.name}: {len(null)} examples are labeled good and were not trained on; at "
            f"least {LEAST_NULL} are needed to say how often a good one scores as high. Label more "
            "rows good, and train with data.null_fraction=0.2."
        )
    return _Told(folder.name, label, [e for e in whole if e.label in ("good", label)], rows, null)


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
    wanted = {e.id for e in (*told.rows, *told.null)}
    rows = [row for row in rows if row.id in wanted]
    losses = held_out_token_losses(model, rows, modes, pad_id=base.pad_id, rows_per_batch=at_once)
    parts = zip(*(losses[name] for name in names), strict=True)
    found = {
        row.id: explained(full.numpy(), without.numpy(), alone.numpy())
        for row, (full, without, alone) in zip(rows, parts, strict=True)
    }
    texts = {row.id: _token_texts(base, row.targets) for row in rows}
    there = [row for row in told.rows if row.id in found]
    shares = [[round(float(share), 3) for share in found[row.id].tokens] for row in there]
    return Scored(
        there,
        np.array([found[row.id].score for row in there]),
        np.array([found[row.id].score for row in told.null if row.id in found]),
        [list(zip(texts[r.id], own, strict=True)) for r, own in zip(there, shares, strict=True)],
    )


def _by_words(told: _Told, seed: int) -> Scored:
    """Scores of a classifier of words, see `rival_scores`."""
    texts = [f"{e.prompt} {e.text}" for e in told.every]
    return _classified(told, word_features(texts), WORDS_STRENGTH, seed)


def _by_hidden(
    told: _Told, rows: Sequence[TokenizedExample], base: Base, model: PeftModel, seed: int
) -> Scored:
    """Scores of a classifier of the base's hidden states, see `rival_scores`."""
    states = dict(zip((r.id for r in rows), mean_states(model, rows, base.pad_id), strict=True))
    parts = ([e for e in part if e.id in states] for part in (told.labeled, told.rows, told.null))
    told = told._replace(**dict(zip(("labeled", "rows", "null"), parts, strict=True)))
    features = np.stack([states[e.id] for e in told.every])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return _classified(told, features, HIDDEN_STRENGTH, seed)


def _classified(told: _Told, features: Any, strength: float, seed: int) -> Scored:
    """Scores of a classifier that is trained on the labeled examples; features as in `every`."""
    labeled = len(told.labeled)
    bad = np.array([e.label == told.label for e in told.every])
    trained = np.arange(len(bad)) < labeled
    scores = classifier_scores(features, bad, trained, strength=strength, seed=seed)
    null = labeled + len(told.rows)
    return Scored(told.rows, scores[labeled:null], scores[null:])


def _token_texts(base: Base, targets: Sequence[int]) -> list[str]:
    """The text of every target token."""
    return [str(base.tokenizer.decode([target])) for target in targets if target >= 0]


def _judged(scored: Scored, fdr: float, label: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and a line per row, worst first."""
    p = tail_p_values(scored.scores, scored.null)
    q = q_values(p)
    found = q <= fdr
    order = np.argsort(-scored.scores, kind="stable")
    lines = [_line(scored, at, float(p[at]), float(q[at]), bool(found[at]), label) for at in order]
    estimate = bad_rows(scored.scores, scored.null)
    bad = [row.true_label == label for row in scored.rows]
    left = max(0.0, estimate.value - float(found.sum()) * (1.0 - fdr))
    return {
        "unlabeled": len(scored.rows),
        "null": len(scored.null),
        "found": int(found.sum()),
        "likely_rows": int((p <= LIKELY).sum()),
        "suspects": int((p <= SUSPECT).sum()),
        "bad": {"estimate": estimate.value, "low": estimate.lower, "high": estimate.upper},
        "remaining": left,
        "least_by_rank": least_by_rank(len(scored.rows), len(scored.null), fdr),
        "truth": _truth(bad, found),
        "truth_of_likely": _truth(bad, p <= LIKELY),
        "truth_of_suspects": _truth(bad, p <= SUSPECT),
    }, lines


def _line(scored: Scored, at: int, p: float, q: float, found: bool, label: str) -> dict[str, Any]:
    row = scored.rows[at]
    line = {
        "id": row.id,
        "prompt": row.prompt,
        "text": row.text,
        "score": float(scored.scores[at]),
        "p": p,
        "q": q,
        "found": found,
        "label": label,
        "true_label": row.true_label,
    }
    if found and scored.tokens:
        line["tokens"] = [list(pair) for pair in scored.tokens[at]]
    return line


def _as_found(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line in the form that `data.found` reads."""
    kept = ("id", "prompt", "text", "label", "score", "p", "q")
    return {key: line[key] for key in kept}


def _truth(bad: Sequence[bool], found: Bool[ndarray, " m"]) -> dict[str, Any]:
    """How good the finds are, with the true labels as the measure."""
    hits, count, total = int(np.sum(found & np.array(bad))), int(found.sum()), sum(bad)
    return {
        "bad": total,
        "hits": hits,
        "precision": {"value": hits / count, **wilson(hits, count)._asdict()} if count else None,
        "recall": {"value": hits / total, **wilson(hits, total)._asdict()} if total else None,
    }
