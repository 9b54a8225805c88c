"""Rows as training sees them: the learned tokens and their labels.

A token is shown under the label of the position before it, the one that predicts it. What no loss
is taken on is dim: a prompt, context, the beginning token. Without colors the same is said with
brackets, as in `[no loss: Say it:][bad:  A FOX]`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.config.run_config import RunConfig
from gradroute.data.batches import IGNORED, TokenizedExample, tokenize
from gradroute.data.examples import Example, label_counts
from gradroute.errors import ConfigError
from gradroute.models.base import load_tokenizer
from gradroute.prepare import Prepared, prepare
from gradroute.routing.policy import RoutingPolicy
from gradroute.system.terminal import printable

NO_LOSS = "no loss"

_USUAL = {"bad": "31", "good": "32", "unlabeled": "36"}  # red, green, cyan
_OTHERS = ("35", "33", "34", "95", "93", "94")
_DIM, _REVERSE = "2", "7"


class _Piece(NamedTuple):
    """A run of tokens of one kind: the label it is learned under, None for no loss."""

    text: str
    label: str | None
    special: bool


def inspect_rows(
    config: RunConfig, *, count: int, ids: Sequence[str], label: str | None, color: bool
) -> Iterator[str]:
    """The lines that show rows of the training data, a legend, and counts over all of them.

    Only the data and the tokenizer are read; a model's weights are not.

    Args:
        config: The configuration of the run.
        count: How many rows of each label to show.
        ids: Show these rows, however many, and no others.
        label: Show rows with this label only, or with tokens that have it.
        color: Whether to color for a terminal, rather than to bracket.

    Raises:
        ConfigError: There is no row with such an id, or no such label.
        DataError: The data cannot be used.
        MachineError: The tokenizer is not to be had.
    """
    prepared = prepare(config)
    policy = prepared.policy
    tokenizer = load_tokenizer(config.model, config.gguf_file)
    rows, report = tokenize(
        prepared.train,
        tokenizer,
        policy.label_ids(example.label for example in prepared.train),
        config.data.max_length,
        policy.labels,
    )
    kept = {row.id: row for row in rows}
    paint = _painter(policy.labels, color)
    for example in _chosen(prepared, kept, count, ids, label):
        row = kept.get(example.id)
        yield from _shown(example, row, tokenizer, policy, paint, config.data.max_length)
    yield from _legend(policy, paint)
    yield from _counts(prepared.train, rows, policy)
    yield from (printable(note) for note in (*prepared.notes, *report.notes))


def wants_color(is_terminal: bool) -> bool:
    """Whether colors are welcome: on a terminal that knows them, unless NO_COLOR is set."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _chosen(
    prepared: Prepared,
    kept: Mapping[str, TokenizedExample],
    count: int,
    ids: Sequence[str],
    label: str | None,
) -> list[Example]:
    labels = prepared.policy.labels
    if label is not None and label not in labels:
        raise ConfigError(
            f"--label {printable(label)}: the routing table has no such row; its labels are "
            f"{', '.join(labels)}."
        )

    def carried(example: Example) -> set[str]:
        row = kept.get(example.id)
        return {example.label, *(labels[i] for i in (row.label_ids if row else ()))}

    found = [e for e in prepared.train if label is None or label in carried(e)]
    if ids:
        by_id = {example.id: example for example in found}
        missing = [name for name in ids if name not in by_id]
        if missing:
            of = "" if label is None else f" with the label {label}"
            raise ConfigError(
                f"--ids: there is no training row {printable(missing[0])!r}{of}. It may be held "
                f"out for the evaluation; of {len(prepared.train)} training rows the first is "
                f"{printable(prepared.train[0].id)!r}."
            )
        return [by_id[name] for name in ids]
    seen: Counter[str] = Counter()
    chosen = []
    for example in found:
        seen[example.label] += 1
        if seen[example.label] <= count:
            chosen.append(example)
    return chosen


def _shown(
    example: Example,
    row: TokenizedExample | None,
    tokenizer: Tokenizer,
    policy: RoutingPolicy,
    paint: "_Paint",
    max_length: int,
) -> Iterator[str]:
    facts = [f"label {example.label}", f"true label {example.true_label}"]
    if example.weight != 1.0:
        facts.append(f"weight {example.weight:g}")
    if row is None:
        yield f"{printable(example.id)}: {', '.join(facts)}; left out: no token of its text is left"
        yield ""
        return
    counts = {policy.labels[own]: n for own, n in row.targets_by_label.items()}
    by_label = ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))
    facts.append(f"{len(row.input_ids)} tokens, {row.target_count} of them targets ({by_label})")
    if len(row.input_ids) == max_length:
        facts.append("as many as data.max_length allows")
    yield f"{printable(example.id)}: {', '.join(facts)}"
    yield "  " + "".join(paint(piece) for piece in _pieces(row, tokenizer, policy))
    yield ""


def _pieces(row: TokenizedExample, tokenizer: Tokenizer, policy: RoutingPolicy) -> Iterator[_Piece]:
    """Runs of tokens of one kind."""
    labels = row.label_ids or [row.label_id] * len(row.input_ids)
    # The first token is nobody's target; each other one is that of the position before it.
    learned = [None] + [
        None if target == IGNORED else policy.labels[own]
        for own, target in zip(labels[:-1], row.targets[:-1], strict=True)
    ]
    special = set(tokenizer.all_special_ids)
    kinds = [(label, token in special) for label, token in zip(learned, row.input_ids, strict=True)]
    start, since = 0, 0  # of the run, and after the last special token
    for (label, is_special), run in groupby(kinds):
        end = start + len(list(run))
        ids = list(row.input_ids[since:end])
        if is_special:
            text, since = "".join(tokenizer.convert_ids_to_tokens(ids[start - since :])), end
        else:  # what comes before decides whether a word begins with a space
            text = _text(tokenizer, ids)[len(_text(tokenizer, ids[: start - since])) :]
        yield _Piece(text, label, is_special)
        start = end


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


class _Paint:
    """Shows a piece, or a word under a label, in color or in brackets."""

    def __init__(self, colors: Mapping[str, str] | None):
        self._colors = colors

    def __call__(self, piece: _Piece) -> str:
        text = printable(piece.text)
        if self._colors is None:
            return f"[{piece.label or NO_LOSS}: {text}]"
        codes = [_DIM if piece.label is None else self._colors[piece.label]]
        codes += [_REVERSE] if piece.special else []
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"

    def name(self, label: str | None) -> str:
        """A label's own name in its color."""
        name = label or NO_LOSS
        return name if self._colors is None else self(_Piece(name, label, False))


def _painter(labels: Sequence[str], color: bool) -> _Paint:
    if not color:
        return _Paint(None)
    others = [label for label in labels if label not in _USUAL]
    return _Paint(_USUAL | {one: _OTHERS[at % len(_OTHERS)] for at, one in enumerate(others)})


def _legend(policy: RoutingPolicy, paint: _Paint) -> Iterator[str]:
    yield f"routes of the table '{policy.name}' at the position that predicts a token:"
    width = max(len(label) for label in (*policy.labels, NO_LOSS))
    for label, row in policy.table.items():
        routes = ", ".join(
            f"{name} {route.name}" + (f" x {route.update:g}" if route.weight != 1.0 else "")
            for name, route in row.items()
        )
        yield f"  {paint.name(label)}{' ' * (width - len(label))}  {routes}"
    pad = " " * (width - len(NO_LOSS))
    yield f"  {paint.name(None)}{pad}  context only; the label of the row applies there"


def _counts(
    train: Sequence[Example], rows: Sequence[TokenizedExample], policy: RoutingPolicy
) -> Iterator[str]:
    kinds = ", ".join(
        f"{n:,} {true} labeled {label}" for (true, label), n in label_counts(train).items()
    )
    yield f"{len(train):,} training rows: {kinds}"
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update({policy.labels[own]: n for own, n in row.targets_by_label.items()})
    tokens = sum(len(row.input_ids) for row in rows)
    shares = ", ".join(
        f"{n:,} {label} ({100 * n / totals.total():.2g} %)" for label, n in sorted(totals.items())
    )
    yield f"{tokens:,} tokens, {totals.total():,} of them targets: {shares}"
