"""From examples to tokens: what stands before a text, what is learned of it, under which labels.

Targets are shifted here, once: `targets[t]` is the token that position t predicts, and -100
where no loss is taken (prompt, context, the last position). "Label" means the routing label.

An example's spans name characters, and training sees tokens. A token that any part of a span is in
takes its label, and of two spans that of the one that comes first. A token that any part of the
context is in is no target: rather one token too few is learned than one that nobody asked for.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.examples import Example, Span
from gradroute.errors import DataError

IGNORED = -100
"""The target of a position that no loss is taken on, as in `torch.nn.functional.cross_entropy`."""

# Of a text that is far longer than what is kept of it only the front is tokenised, for a tokenizer
# takes some hundred bytes of memory per token: so many characters per token that is kept, and never
# fewer than the second number. A front that turns out too short is made longer.
_FRONT, _LEAST_FRONT = 100, 10_000
_TEXTS_AT_ONCE = 1024

_Marked = list[tuple[int, int, int]]
"""Tokens as (id, first character, character after the last); without offsets 0 and 0."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """The tokens of one example.

    Attributes:
        id: Id of the example.
        input_ids: Beginning token (if any), prompt, text, end token (if any).
        target_start: First position that predicts a token of the text; 0 without a prompt, so
            that all tokens but the first are targets.
        label_id: Position of the routing label in the policy's labels.
        true_label: True label, for logging.
        weight: Factor on its loss.
        gaps: Positions [start, end) from `target_start` on that no loss is taken on, in order.
        label_ids: Where tokens have labels of their own, the label id of every position: that of
            the target it predicts, or the example's where it predicts none. Empty otherwise.
    """

    id: str
    input_ids: tuple[int, ...]
    target_start: int
    label_id: int
    true_label: str
    weight: float = 1.0
    gaps: tuple[tuple[int, int], ...] = ()
    label_ids: tuple[int, ...] = ()

    @property
    def target_count(self) -> int:
        """How many tokens a loss is taken on."""
        last = len(self.input_ids) - 1
        skipped = sum(max(0, min(end, last) - start) for start, end in self.gaps)
        return max(0, last - self.target_start) - skipped

    @property
    def targets(self) -> list[int]:
        """The token that each position predicts; -100 where no loss is taken."""
        before = min(self.target_start, len(self.input_ids) - 1)
        targets = [IGNORED] * before + list(self.input_ids[before + 1 :]) + [IGNORED]
        for start, end in self.gaps:
            targets[start:end] = [IGNORED] * (min(end, len(targets)) - start)
        return targets

    @property
    def targets_by_label(self) -> Counter[int]:
        """Label id -> how many target tokens are trained on under it."""
        if not self.label_ids:
            return Counter({self.label_id: self.target_count})
        pairs = zip(self.label_ids, self.targets, strict=True)
        return Counter(own for own, target in pairs if target != IGNORED)


@dataclass(frozen=True)
class TokenizeReport:
    """What tokenising passed over.

    Attributes:
        examples: Examples that were given.
        truncated: Of them, cut at the maximal length (dropped ones included).
        dropped: Of them, left out because no token of the text was left to train on.
        ends: Whether the tokenizer has an end token, so that the model can learn where to stop.
        spans: Spans of the examples, where labels for them were given.
        lost_spans: Of them, those that no token is left of.
    """

    examples: int
    truncated: int
    dropped: int
    ends: bool
    spans: int = 0
    lost_spans: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about each thing that was passed over, to be said once."""
        of = f"of {self.examples} examples"
        sentences = (
            (self.truncated, f"{self.truncated} {of} were longer than max_length and were cut."),
            (self.dropped, f"{self.dropped} {of} were left out: no token of their text was left."),
            (
                self.lost_spans,
                f"{self.lost_spans} of {self.spans} spans label no token: they were cut off, lie "
                "in the context, or within a token of the span before.",
            ),
            (not self.ends, "The tokenizer has no end token: the model cannot learn to stop."),
        )
        return tuple(sentence for applies, sentence in sentences if applies)


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    label_ids: Sequence[int],
    max_length: int,
    labels: Sequence[str] = (),
) -> tuple[list[TokenizedExample], TokenizeReport]:
    """Tokenise examples as beginning token + prompt + text + end token, cut at `max_length`.

    Prompt and text are tokenised apart, so that no token spans the boundary: the model meets a
    prompt in training exactly as it meets it in evaluation. The tokenizer adds no special tokens
    itself, and a beginning token that the prompt or text already starts with is not put twice.
    (Special tokens that are written out in a text are read as such.) An end token is put, with the
    example's label, unless the text ends with one, ends by itself, or ends in the context.

    Args:
        examples: The examples.
        tokenizer: A Hugging Face tokenizer.
        label_ids: Label id of each example.
        max_length: Tokens per example, special tokens included; at least 2.
        labels: The policy's labels, which the ids index, for the labels of spans; without, spans
            are left aside.

    Returns:
        The examples with at least one target, in order, and what was cut or left out.

    Raises:
        DataError: If there are examples but none keeps a target, a span has another label than
            `labels`, or the tokenizer cannot say which characters a token stands for.
        ValueError: If `label_ids` does not fit `examples`, or `max_length` is below 2.
    """
    if len(label_ids) != len(examples):
        raise ValueError(f"{len(label_ids)} label ids do not fit {len(examples)} examples")
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, got {max_length}")
    marked = next((e for e in examples if e.context or (labels and e.spans)), None)
    if marked is not None:
        _check_offsets(tokenizer, marked)
    prompts = _token_lists(tokenizer, [example.prompt for example in examples], max_length)
    texts = _token_lists(
        tokenizer, [example.text for example in examples], max_length, offsets=marked is not None
    )
    ends = _one_id(tokenizer.eos_token_id) is not None
    rows, truncated, lost = [], 0, 0
    for example, prompt, text, label_id in zip(examples, prompts, texts, label_ids, strict=True):
        tokens, before = _whole(example, prompt, text, tokenizer)
        truncated += len(tokens) > max_length
        row = TokenizedExample(
            id=example.id,
            input_ids=tuple(tokens[:max_length]),
            target_start=max(0, before - 1),
            label_id=label_id,
            true_label=example.true_label,
            weight=example.weight,
            gaps=_gaps(example, text, before),
        )
        if labels and example.spans:
            row, missed = _with_labels(row, example, text, before, labels)
            lost += missed
        if text and row.target_count:
            rows.append(row)
    if examples and not rows:
        raise DataError(
            f"none of {len(examples)} examples has a token of its text within max_length "
            f"{max_length}: raise data.max_length or shorten the prompts"
        )
    spans = sum(len(example.spans) for example in examples) if labels else 0
    dropped = len(examples) - len(rows)
    return rows, TokenizeReport(len(examples), truncated, dropped, ends, spans, lost)


def _whole(
    example: Example, prompt: _Marked, text: _Marked, tokenizer: Tokenizer
) -> tuple[list[int], int]:
    """All tokens of an example, and how many stand before those of its text."""
    bos, eos = _one_id(tokenizer.bos_token_id), _one_id(tokenizer.eos_token_id)
    tokens = [token for token, _, _ in (*prompt, *text)]
    before = len(prompt)
    if bos is not None and tokens[:1] != [bos]:
        tokens, before = [bos, *tokens], before + 1
    if eos is not None and tokens[-1:] != [eos] and not _ends(example):
        tokens.append(eos)
    return tokens, before


def _ends(example: Example) -> bool:
    """Whether no end token is put: the text has its own end, or what ends it is not learned."""
    return example.ends or any(end >= len(example.text) for _, end in example.context)


def _gaps(example: Example, text: _Marked, before: int) -> tuple[tuple[int, int], ...]:
    """The runs of positions whose target is a token of the context.

    Args:
        example: The example.
        text: The tokens of its text.
        before: How many tokens stand before these.
    """
    if not example.context:
        return ()
    numbers = range(before, before + len(text))
    within = [
        number
        for number, token in zip(numbers, text, strict=True)
        if _first(token, example.context) is not None
    ]
    positions = [number - 1 for number in within if number > 0]
    # Neighbours have the same distance to their place in the list.
    runs = groupby(enumerate(positions), lambda pair: pair[1] - pair[0])
    bounds = ([position for _, position in run] for _, run in runs)
    return tuple((run[0], run[-1] + 1) for run in bounds)


def _with_labels(
    row: TokenizedExample, example: Example, text: _Marked, before: int, labels: Sequence[str]
) -> tuple[TokenizedExample, int]:
    """The row with the labels of its spans, and how many spans label no target of it."""
    label_ids = [row.label_id] * len(row.input_ids)
    targets = row.targets
    seen: set[int] = set()
    for number, token in enumerate(text, start=before - 1):
        place = _first(token, example.spans)
        if place is None or not 0 <= number < len(targets) or targets[number] == IGNORED:
            continue
        label_ids[number] = _label_id(example, example.spans[place], labels)
        seen.add(place)
    if set(label_ids) != {row.label_id}:
        row = replace(row, label_ids=tuple(label_ids))
    return row, len(example.spans) - len(seen)


def _label_id(example: Example, span: Span, labels: Sequence[str]) -> int:
    if span.label not in labels:
        raise DataError(
            f"example {example.id!r} has a span labelled {span.label!r}, which has no row in the "
            f"routing table ({', '.join(labels)}): add a row or correct the data"
        )
    return labels.index(span.label)


def _first(token: tuple[int, int, int], ranges: Sequence[tuple[int, int] | Span]) -> int | None:
    """Which of some ranges of characters, in order, is the first that a token is in.

    A token without characters of its own, such as a mark for a space, is where the next one is.
    """
    _, start, end = token
    end = max(end, start + 1)
    return next((at for at, one in enumerate(ranges) if one[0] < end and start < one[1]), None)


def _check_offsets(tokenizer: Tokenizer, example: Example) -> None:
    if not tokenizer.is_fast:
        part = "spans" if example.spans else "context"
        raise DataError(
            f"example {example.id!r} has {part}, which name characters, and the tokenizer "
            f"{type(tokenizer).__name__} cannot say which characters a token stands for: give the "
            "model a fast tokenizer (tokenizer.json), or label whole examples"
        )


def _token_lists(
    tokenizer: Tokenizer, texts: list[str], max_length: int, *, offsets: bool = False
) -> list[_Marked]:
    """The first tokens of each text, one more than `max_length` where there are that many."""
    rows: list[_Marked] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some, characters = texts[start : start + _TEXTS_AT_ONCE], _FRONT * max_length
        rows += _front_tokens(tokenizer, some, max(characters, _LEAST_FRONT), max_length, offsets)
    return rows


def _front_tokens(
    tokenizer: Tokenizer, texts: list[str], characters: int, max_length: int, offsets: bool
) -> list[_Marked]:
    # verbose=False: "longer than the model's maximum" would be said of texts that are cut anyway.
    found = tokenizer(
        [text[:characters] for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        verbose=False,
    )
    ids: list[list[int]] = found.input_ids
    kept = max_length + 1
    marks = ([(0, 0)] * len(row) for row in ids) if not offsets else found["offset_mapping"]
    rows = [
        [(token, *pair) for token, pair in zip(row[:kept], own[:kept], strict=True)]
        for row, own in zip(ids, marks, strict=True)
    ]
    for at, text in enumerate(texts):
        if len(rows[at]) <= max_length and len(text) > characters:
            [rows[at]] = _front_tokens(tokenizer, [text], 4 * characters, max_length, offsets)
    return rows


def check_token_ids(rows: Iterable[TokenizedExample], vocab_size: int) -> None:
    """Check that the model has an embedding for every token.

    Args:
        rows: The tokenised examples.
        vocab_size: Rows of the model's embedding matrix.

    Raises:
        DataError: If a token id is not below `vocab_size`.
    """
    for row in rows:
        if max(row.input_ids) >= vocab_size:
            raise DataError(
                f"example {row.id!r} has the token id {max(row.input_ids)}, but the model has only "
                f"{vocab_size} embeddings: use the tokenizer that belongs to the model"
            )


def padding_id(tokenizer: Tokenizer, vocab_size: int) -> int:
    """Return the id to pad with: the tokenizer's own, else its end token, else 0.

    Any id would do: padding is masked out of the attention and of the targets, and a real end
    token keeps its target. So a tokenizer without a padding token is not changed, and one whose
    padding token was added later, without an embedding in the model, serves as well.

    Args:
        tokenizer: A Hugging Face tokenizer.
        vocab_size: Rows of the model's embedding matrix.
    """
    for token_id in (_one_id(tokenizer.pad_token_id), _one_id(tokenizer.eos_token_id)):
        if token_id is not None and token_id < vocab_size:
            return token_id
    return 0


def _one_id(value: object) -> int | None:
    return value if isinstance(value, int) else None
