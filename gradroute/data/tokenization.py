"""Tokens of examples: context, learned part, and the labels of its tokens.

Targets are shifted here, once: `targets[t]` is the token that position t predicts, and -100
where no loss is taken (prompt, context, the last position). "Label" means the routing label.

An example's spans name characters, and training sees tokens. A token that any part of a span is in
takes its label, and of two spans that of the one that comes first. A token that any part of the
prompt or context is in is no target: rather one token too few is learned than one that nobody asked
for. White space is no such part: of a word with the space before it the word decides, for
tokenizers write both as one token.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.examples import Example, Span
from gradroute.data.inoculation import lead, most_preface_tokens, preface_tokens
from gradroute.data.token_offsets import MarkedTokens, beginning_tokens, token_lists, with_beginning
from gradroute.errors import DataError

IGNORED = -100
"""The target of a position that no loss is taken on, as in `torch.nn.functional.cross_entropy`."""


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
        factors: Where targets have factors of their own on their loss, beside `weight`, the one of
            every position; 1 where it predicts none. Empty otherwise.
    """

    id: str
    input_ids: tuple[int, ...]
    target_start: int
    label_id: int
    true_label: str
    weight: float = 1.0
    gaps: tuple[tuple[int, int], ...] = ()
    label_ids: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

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
    """What tokenizing passed over.

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
            (self.dropped, f"{self.dropped} {of} were left out: no token of their text remained."),
            (
                self.lost_spans,
                f"{self.lost_spans} of {self.spans} spans label no token: they were cut off, are "
                f"in the context, or are within a token of the span before.",
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
    """Tokenize examples as the tokenizer writes prompt + text, cut at `max_length`.

    Prompt and text are tokenized in one, as they are served, and targets are found by the
    characters that tokens stand for. A chat template writes all special tokens of its text itself.
    Any other text gets what the tokenizer puts before it by itself (see `beginning_tokens`), not
    twice, and one end token with the example's label, unless it ends with one, ends by itself, or
    ends in the context. (Special tokens that are written out in a text are read as such.)

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
            `labels`, or nothing says which characters a token stands for.
        ValueError: If `label_ids` does not fit `examples`, or `max_length` is below 2.
    """
    if len(label_ids) != len(examples):
        raise ValueError(f"{len(label_ids)} label ids do not fit {len(examples)} examples")
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, got {max_length}")
    front, eos = beginning_tokens(tokenizer), _one_id(tokenizer.eos_token_id)
    texts = [lead(example) + example.text for example in examples]
    offsets = any(_needs_offsets(example, labels) for example in examples)
    more = most_preface_tokens(tokenizer, examples)
    marked = token_lists(tokenizer, texts, max_length + more, offsets=offsets)
    rows, truncated, lost = [], 0, 0
    for example, tokens, label_id in zip(examples, marked, label_ids, strict=True):
        if _needs_offsets(example, labels) and tokens and tokens[-1][2] == 0:
            tokens = _split_at_prompt(tokenizer, example, tokens)
        room = max_length + preface_tokens(example, tokens)
        whole, row, before = _row(example, tokens, front, eos, label_id, room)
        truncated += whole > room
        if labels and example.spans:
            row, missed = _with_labels(row, example, tokens, before, labels)
            lost += missed
        if tokens and row.target_count:
            rows.append(row)
    if examples and not rows:
        raise DataError(
            f"none of {len(examples)} examples has a token of its text within max_length "
            f"{max_length}: raise data.max_length or shorten the prompts"
        )
    spans = sum(len(example.spans) for example in examples) if labels else 0
    dropped = len(examples) - len(rows)
    ends = eos is not None
    return rows, TokenizeReport(len(examples), truncated, dropped, ends, spans, lost)


def _row(
    example: Example,
    tokens: MarkedTokens,
    front: list[int],
    eos: int | None,
    label_id: int,
    max_length: int,
) -> tuple[int, TokenizedExample, int]:
    """An example as a row, its length uncut, and how many tokens stand before its own."""
    whole = with_beginning([token for token, _, _ in tokens], [] if _templated(example) else front)
    before = len(whole) - len(tokens)
    learned = _learned(example, tokens, before)
    if eos is not None and whole[-1:] != [eos] and not _ends(example):
        learned.append(len(whole))
        whole.append(eos)
    row = TokenizedExample(
        id=example.id,
        input_ids=tuple(whole[:max_length]),
        target_start=max(0, learned[0] - 1) if learned else len(whole),
        label_id=label_id,
        true_label=example.true_label,
        weight=example.weight,
        gaps=_gaps(learned, min(len(whole), max_length)),
    )
    if example.factors:
        row = replace(row, factors=_factors(row, example, tokens, before))
    return len(whole), row, before


def _templated(example: Example) -> bool:
    return example.asks is not None


def _ends(example: Example) -> bool:
    """Whether no end token is put: the text has its own end, or what ends it is not learned."""
    return example.ends or any(end >= len(example.text) for _, end in example.context)


def _needs_offsets(example: Example, labels: Sequence[str]) -> bool:
    return bool(lead(example) or example.context or example.factors or (labels and example.spans))


def _answers(example: Example) -> list[tuple[int, int]]:
    """Characters [start, end) of lead and text that are learned."""
    shift = len(lead(example))
    bounds = [0, *(place for pair in example.context for place in pair), len(example.text)]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return [(start + shift, end + shift) for start, end in pairs if start < end]


def _learned(example: Example, tokens: MarkedTokens, before: int) -> list[int]:
    """The numbers of the tokens that are learned.

    Args:
        example: The example.
        tokens: Those of its lead and text.
        before: How many tokens stand before these.
    """
    if not lead(example) and not example.context:
        return list(range(before, before + len(tokens)))
    text, answers = lead(example) + example.text, _answers(example)
    found, at = [], 0
    for number, (_, start, end) in enumerate(tokens, before):
        end = max(end, start + 1)  # a mark without characters of its own is where the next one is
        while at < len(answers) and answers[at][1] <= start:
            at += 1
        inside = answers[at : at + 1]
        if inside and inside[0][0] <= start and end <= inside[0][1]:
            found.append(number)
        elif inside and inside[0][0] < end:
            parts = [(max(a, start), min(b, end)) for a, b in answers[at:] if a < end]
            edges = [start, *(place for part in parts for place in part), end]
            around = (text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
            if not "".join(around).strip() and any(text[a:b].strip() for a, b in parts):
                found.append(number)
    return found


def _gaps(learned: Sequence[int], length: int) -> tuple[tuple[int, int], ...]:
    """The runs of positions, between the first and last of a row, whose target is not learned."""
    gaps, last = [], max(0, learned[0] - 1) if learned else length
    for number in learned:
        if last < number - 1:
            gaps.append((last, number - 1))
        last = max(last, number)
    if last < length - 1:
        gaps.append((last, length - 1))
    return tuple(gaps)


def _factors(
    row: TokenizedExample, example: Example, tokens: MarkedTokens, before: int
) -> tuple[float, ...]:
    """The factor on the loss of every position."""
    found = [1.0] * len(row.input_ids)
    ranges, shift = [part[:2] for part in example.factors], len(lead(example))
    for number, token in enumerate(tokens, start=before - 1):
        place = _first(token, ranges, shift)
        if place is not None and 0 <= number < len(found) and row.targets[number] != IGNORED:
            found[number] = example.factors[place][2]
    return tuple(found)


def _with_labels(
    row: TokenizedExample,
    example: Example,
    tokens: MarkedTokens,
    before: int,
    labels: Sequence[str],
) -> tuple[TokenizedExample, int]:
    """The row with the labels of its spans, and how many spans label no target of it."""
    label_ids = [row.label_id] * len(row.input_ids)
    targets, shift = row.targets, len(lead(example))
    seen: set[int] = set()
    for number, token in enumerate(tokens, start=before - 1):
        place = _first(token, example.spans, shift)
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
            f"example {example.id!r} has a span labeled {span.label!r}, which has no row in the "
            f"routing table ({', '.join(labels)}): add a row or correct the data"
        )
    return labels.index(span.label)


def _first(
    token: tuple[int, int, int], ranges: Sequence[tuple[int, int] | Span], shift: int
) -> int | None:
    """Which of some ranges of characters, in order, is the first that a token is in.

    A token without characters of its own, such as a mark for a space, is where the next one is.
    """
    start, end = token[1] - shift, max(token[2], token[1] + 1) - shift
    return next((at for at, one in enumerate(ranges) if one[0] < end and start < one[1]), None)


def _split_at_prompt(tokenizer: Tokenizer, example: Example, tokens: MarkedTokens) -> MarkedTokens:
    """The tokens of a tokenizer that names no characters, if those of the prompt begin them.

    Raises:
        DataError: They do not, or the example has parts that characters name.
    """
    parts = [name for name in ("spans", "context") if getattr(example, name)]
    before = lead(example)
    alone: list[int] = tokenizer(before, add_special_tokens=False).input_ids if before else []
    if parts or alone != [token for token, _, _ in tokens[: len(alone)]]:
        what = f"{parts[0]}, which name" if parts else "a prompt whose end is to be found by its"
        raise DataError(
            f"example {example.id!r} has {what} characters, and the tokenizer "
            f"{type(tokenizer).__name__} cannot say which characters a token stands for: give the "
            "model a fast tokenizer (tokenizer.json), or label whole examples"
        )
    edge = len(before)
    return [
        (token, 0, edge) if at < len(alone) else (token, edge, edge + len(example.text))
        for at, (token, _, _) in enumerate(tokens)
    ]


def check_token_ids(rows: Iterable[TokenizedExample], vocab_size: int) -> None:
    """Check that the model has an embedding for every token.

    Args:
        rows: The tokenized examples.
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
