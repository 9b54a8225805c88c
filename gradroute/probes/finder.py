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
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from peft import PeftModel

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.examples import Example
from gradroute.data.tokenization import TokenizedExample
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.evaluator import ground
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.models.base import Base
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import Prepared, prepare, tokenized
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
from gradroute.runs.lock import writing
from gradroute.runs.provenance import provenance
from gradroute.runs.resume import same_ground
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
    label = _label(config, label)
    checkpoint = None if by == "words" else finished_checkpoint(folder, config)
    with writing(folder.path, "finding"):
        prepared = prepare(config)
        question = {
            "schema_version": SCHEMA_VERSION,
            "run": folder.name,
            "by": by,
            "behavior": label,
            "fdr": fdr,
            "checkpoint": checkpoint and checkpoint.identity,
            "labels": _labels_hash(prepared),
        }
        if (known := _known(folder.found / f"{by}.json", question)) is not None:
            return known
        null = _null(folder, prepared)
        rows = [e for e in prepared.train if e.label == "unlabeled" and not e.spans]
        if not rows:
            raise DataError(f"run {folder.name}: no training example is unlabeled.")
        say(f"{folder.name}: scoring {len(rows)} unlabeled rows by {by}")
        if checkpoint is None:
            scored = _by_words(prepared, rows, null, label, config.seed)
        else:
            base, model = restore(config, checkpoint)
            same_ground(folder, ground(prepared, base))
            score = _by_adapter if by == "adapter" else _by_hidden
            scored = score(config, prepared, rows, null, label, base, model)
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


def _label(config: RunConfig, label: str | None) -> str:
    """The label of the behavior that is looked for."""
    labels = list(config.behaviors)
    if label is None and len(labels) > 1:
        raise ConfigError(
            f"this run has the behaviors {', '.join(labels)}; name one: --behavior {labels[0]}."
        )
    chosen = label or labels[0]
    if chosen not in labels:
        raise ConfigError(f"there is no behavior {chosen!r}; this run has {', '.join(labels)}.")
    return chosen


def _null(folder: RunFolder, prepared: Prepared) -> list[Example]:
    """Examples that are known to be good and that training did not see."""
    held_out = [e for e in prepared.normal if e.label == "good"]
    null = [*prepared.null, *held_out]
    if len(null) < LEAST_NULL:
        raise DataError(
            f"run {folder.name}: {len(null)} examples are labeled good and were not trained on; at "
            f"least {LEAST_NULL} are needed to say how often a good one scores as high. Label more "
            "rows good, and train with data.null_fraction=0.2."
        )
    return null


def _by_adapter(
    config: RunConfig,
    prepared: Prepared,
    rows: Sequence[Example],
    null: Sequence[Example],
    label: str,
    base: Base,
    model: PeftModel,
) -> Scored:
    """Scores from what the behavior's adapter explains, see `explained`."""
    if label not in config.adapters or len(config.adapters) < 2:
        raise ConfigError(
            f"run {config.run_name} has the adapters {', '.join(config.adapters)}; an adapter "
            f"{label} and another one are needed to see what it explains."
        )
    names = ("full", f"{label}_ablated", f"{label}_alone")
    modes = [AblationMode.parse(name, tuple(config.adapters)) for name in names]
    tokens = _tokens([*rows, *null], base, config)
    losses = held_out_token_losses(
        model, tokens, modes, pad_id=base.pad_id, rows_per_batch=config.evaluate.batch_rows
    )
    parts = zip(*(losses[name] for name in names), strict=True)
    found = {
        token.id: explained(full.numpy(), without.numpy(), alone.numpy())
        for token, (full, without, alone) in zip(tokens, parts, strict=True)
    }
    texts = {token.id: _token_texts(base, token.targets) for token in tokens}
    there = [row for row in rows if row.id in found]
    shares = [[round(float(share), 3) for share in found[row.id].tokens] for row in there]
    return Scored(
        there,
        np.array([found[row.id].score for row in there]),
        np.array([found[row.id].score for row in null if row.id in found]),
        [list(zip(texts[r.id], own, strict=True)) for r, own in zip(there, shares, strict=True)],
    )


def _by_words(
    prepared: Prepared, rows: Sequence[Example], null: Sequence[Example], label: str, seed: int
) -> Scored:
    """Scores of a classifier of words, see `rival_scores`."""
    told, bad = _told(prepared, label)
    texts = [f"{e.prompt} {e.text}" for e in (*told, *rows, *null)]
    return _classified(word_features(texts), bad, rows, null, WORDS_STRENGTH, seed)


def _by_hidden(
    config: RunConfig,
    prepared: Prepared,
    rows: Sequence[Example],
    null: Sequence[Example],
    label: str,
    base: Base,
    model: PeftModel,
) -> Scored:
    """Scores of a classifier of the base's hidden states, see `rival_scores`."""
    told, bad = _told(prepared, label)
    tokens = _tokens([*told, *rows, *null], base, config)
    states = dict(zip((t.id for t in tokens), mean_states(model, tokens, base.pad_id), strict=True))
    bad = [own for own, e in zip(bad, told, strict=True) if e.id in states]
    told, rows, null = ([e for e in part if e.id in states] for part in (told, rows, null))
    features = np.stack([states[e.id] for e in (*told, *rows, *null)])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return _classified(features, bad, rows, null, HIDDEN_STRENGTH, config.seed)


def _told(prepared: Prepared, label: str) -> tuple[list[Example], list[bool]]:
    """The examples that a classifier is trained on, and which of them are labeled bad."""
    told = [e for e in prepared.train if e.label in ("good", label) and not e.spans]
    return told, [e.label == label for e in told]


def _classified(
    features: Any,
    bad: Sequence[bool],
    rows: Sequence[Example],
    null: Sequence[Example],
    strength: float,
    seed: int,
) -> Scored:
    others = len(rows) + len(null)
    trained = np.array([True] * len(bad) + [False] * others)
    labels = np.array([*bad, *[False] * others])
    scores = classifier_scores(features, labels, trained, strength=strength, seed=seed)
    return Scored(rows, scores[len(bad) : len(bad) + len(rows)], scores[len(bad) + len(rows) :])


def _tokens(examples: Sequence[Example], base: Base, config: RunConfig) -> list[TokenizedExample]:
    tokens, notes = tokenized(examples, None, base, config.data.max_length)
    for note in notes:
        say(f"{config.run_name}: {note}")
    return tokens


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
    left = max(0.0, estimate.value - float(found.sum()) * (1.0 - fdr))
    return {
        "unlabeled": len(scored.rows),
        "null": len(scored.null),
        "found": int(found.sum()),
        "bad": {"estimate": estimate.value, "low": estimate.lower, "high": estimate.upper},
        "remaining": left,
        "least_by_rank": least_by_rank(len(scored.rows), len(scored.null), fdr),
        "truth": _truth([row.true_label == label for row in scored.rows], found),
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
