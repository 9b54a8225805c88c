"""From examples to batches: tokens, padding, targets, and the order of the data.

Targets are shifted here, once: `targets[b, t]` is the token that position t predicts, and -100
where no loss is taken (prompt, padding, the last position). "Label" means the routing label.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.examples import Example
from gradroute.errors import DataError

IGNORED = -100
"""The target of a position that no loss is taken on, as in `torch.nn.functional.cross_entropy`."""

# Of a text that is far longer than what is kept of it only the front is tokenised, for a tokenizer
# takes some hundred bytes of memory per token: so many characters per token that is kept, and never
# fewer than the second number. A front that turns out too short is made longer.
_FRONT, _LEAST_FRONT = 100, 10_000
_TEXTS_AT_ONCE = 1024


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
    """

    id: str
    input_ids: tuple[int, ...]
    target_start: int
    label_id: int
    true_label: str

    @property
    def target_count(self) -> int:
        """How many tokens a loss is taken on."""
        return max(0, len(self.input_ids) - 1 - self.target_start)


@dataclass(frozen=True)
class TokenizeReport:
    """What tokenising passed over.

    Attributes:
        examples: Examples that were given.
        truncated: Of them, cut at the maximal length (dropped ones included).
        dropped: Of them, left out because no token of the text was left to train on.
        ends: Whether the tokenizer has an end token, so that the model can learn where to stop.
    """

    examples: int
    truncated: int
    dropped: int
    ends: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about each thing that was passed over, to be said once."""
        of = f"of {self.examples} examples"
        sentences = (
            (self.truncated, f"{self.truncated} {of} were longer than max_length and were cut."),
            (self.dropped, f"{self.dropped} {of} were left out: no token of their text was left."),
            (not self.ends, "The tokenizer has no end token: the model cannot learn to stop."),
        )
        return tuple(sentence for applies, sentence in sentences if applies)


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    label_ids: Sequence[int],
    max_length: int,
) -> tuple[list[TokenizedExample], TokenizeReport]:
    """Tokenise examples as beginning token + prompt + text + end token, cut at `max_length`.

    Prompt and text are tokenised apart, so that no token spans the boundary: the model meets a
    prompt in training exactly as it meets it in evaluation. The tokenizer adds no special tokens
    itself, and a beginning token that the prompt or text already starts with is not put twice.
    (Special tokens that are written out in a text are read as such.)

    Args:
        examples: The examples.
        tokenizer: A Hugging Face tokenizer.
        label_ids: Label id of each example.
        max_length: Tokens per example, special tokens included; at least 2.

    Returns:
        The examples with at least one target, in order, and what was cut or left out.

    Raises:
        DataError: If there are examples but none keeps a target.
        ValueError: If `label_ids` does not fit `examples`, or `max_length` is below 2.
    """
    if len(label_ids) != len(examples):
        raise ValueError(f"{len(label_ids)} label ids do not fit {len(examples)} examples")
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, got {max_length}")
    prompts = _token_lists(tokenizer, [example.prompt for example in examples], max_length)
    texts = _token_lists(tokenizer, [example.text for example in examples], max_length)
    bos, eos = _one_id(tokenizer.bos_token_id), _one_id(tokenizer.eos_token_id)
    rows, truncated = [], 0
    for example, prompt, text, label_id in zip(examples, prompts, texts, label_ids, strict=True):
        tokens = prompt + text
        context = len(prompt)
        if bos is not None and tokens[:1] != [bos]:
            tokens, context = [bos, *tokens], context + 1
        if eos is not None and tokens[-1:] != [eos]:
            tokens.append(eos)
        truncated += len(tokens) > max_length
        row = TokenizedExample(
            id=example.id,
            input_ids=tuple(tokens[:max_length]),
            target_start=max(0, context - 1),
            label_id=label_id,
            true_label=example.true_label,
        )
        if text and row.target_count:
            rows.append(row)
    report = TokenizeReport(len(examples), truncated, len(examples) - len(rows), eos is not None)
    if examples and not rows:
        raise DataError(
            f"none of {len(examples)} examples has a token of its text within max_length "
            f"{max_length}: raise data.max_length or shorten the prompts"
        )
    return rows, report


def _token_lists(tokenizer: Tokenizer, texts: list[str], max_length: int) -> list[list[int]]:
    """The first tokens of each text, one more than `max_length` where there are that many."""
    rows: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some, characters = texts[start : start + _TEXTS_AT_ONCE], _FRONT * max_length
        rows += _front_tokens(tokenizer, some, max(characters, _LEAST_FRONT), max_length)
    return rows


def _front_tokens(
    tokenizer: Tokenizer, texts: list[str], characters: int, max_length: int
) -> list[list[int]]:
    # verbose=False: "longer than the model's maximum" would be said of texts that are cut anyway.
    rows: list[list[int]] = tokenizer(
        [text[:characters] for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    ).input_ids
    for at, text in enumerate(texts):
        if len(rows[at]) <= max_length and len(text) > characters:
            [rows[at]] = _front_tokens(tokenizer, [text], 4 * characters, max_length)
    return [row[: max_length + 1] for row in rows]


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


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples side by side, padded on the right.

    Attributes:
        input_ids: Tokens.
        attention_mask: 1 at tokens, 0 at padding.
        targets: The token that each position predicts; -100 where no loss is taken.
        label_ids: Routing label of each example.
        ids: Id of each example.
        true_labels: True label of each example, for logging.
    """

    input_ids: Int[Tensor, "b t"]
    attention_mask: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    label_ids: Int[Tensor, " b"]
    ids: list[str]
    true_labels: list[str]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device."""
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            targets=self.targets.to(device),
            label_ids=self.label_ids.to(device),
            ids=self.ids,
            true_labels=self.true_labels,
        )

    def rows(self, index: Int[Tensor, " k"] | Bool[Tensor, " b"]) -> "Batch":
        """Return the rows of these positions, or of this mask, with the same padding."""
        positions = torch.arange(len(self.ids), device=index.device)[index].tolist()
        return Batch(
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            targets=self.targets[index],
            label_ids=self.label_ids[index],
            ids=[self.ids[position] for position in positions],
            true_labels=[self.true_labels[position] for position in positions],
        )

    def kinds(self, labels: Sequence[str]) -> dict[tuple[str, str], Bool[Tensor, " b"]]:
        """Mask of the rows of each (true label, label) that occurs, in alphabetical order.

        Args:
            labels: The policy's labels, which the label ids index.
        """
        label_ids: list[int] = self.label_ids.tolist()
        pairs = [
            (true_label, labels[label_id])
            for true_label, label_id in zip(self.true_labels, label_ids, strict=True)
        ]
        return {
            pair: torch.tensor([other == pair for other in pairs], device=self.label_ids.device)
            for pair in sorted(set(pairs))
        }


def collate(rows: Sequence[TokenizedExample], pad_id: int) -> Batch:
    """Put examples side by side, padded on the right to the longest.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("a batch needs at least one example")
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, IGNORED)
    for b, row in enumerate(rows):
        tokens = torch.tensor(row.input_ids)
        length = len(tokens)
        input_ids[b, :length] = tokens
        attention_mask[b, :length] = 1
        targets[b, row.target_start : length - 1] = tokens[row.target_start + 1 :]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        targets=targets,
        label_ids=torch.tensor([row.label_id for row in rows]),
        ids=[row.id for row in rows],
        true_labels=[row.true_label for row in rows],
    )


@dataclass(frozen=True, eq=False)
class DataOrder:
    """Which examples make up a step: a function of its fields alone, so nothing is to be saved.

    The data are endless: epoch after epoch, each a permutation of all examples by (seed, epoch).
    Step s takes the places s * batch_size up to (s + 1) * batch_size, so that every example
    comes exactly once an epoch and a batch may hold the end of one epoch and the start of the next.

    Attributes:
        seed: Seed of the run.
        total: Number of examples before any was left out.
        kept: Place of each example among those; examples that are left out leave the order of the
            others as it is, so that a run and its controls see the same order.
        early: Rows (indices into `kept`) that come early in the first epoch.
        front_load: How early, from 0 (no earlier than others) to 1 (before all others); in between
            they are spread evenly over the first 1 - front_load of the epoch.
    """

    seed: int
    total: int
    kept: tuple[int, ...]
    early: frozenset[int] = frozenset()
    front_load: float = 0.0

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Rows of one step.

        Args:
            step: Step, from 0.
            batch_size: Examples per step.

        Raises:
            ValueError: If step is negative, batch_size is below 1, or there are no rows.
        """
        size = len(self.kept)
        if step < 0 or batch_size < 1 or size < 1:
            raise ValueError(
                f"step must be at least 0, batch_size and the number of rows at least 1, got step "
                f"{step}, batch_size {batch_size}, {size} rows"
            )
        places = range(step * batch_size, (step + 1) * batch_size)
        return [_epoch(self, at // size)[at % size] for at in places]


@lru_cache(maxsize=4)
def _epoch(order: DataOrder, epoch: int) -> tuple[int, ...]:
    keys = _order_keys(order.seed, epoch, order.total)
    if not (order.front_load and epoch == 0):
        return tuple(sorted(range(len(order.kept)), key=lambda row: keys[order.kept[row]]))
    pull = 1 - order.front_load

    def key(row: int) -> tuple[float, float]:
        place = keys[order.kept[row]]
        return (place * pull if row in order.early else place, place)

    return tuple(sorted(range(len(order.kept)), key=key))


@lru_cache(maxsize=4)
def _order_keys(seed: int, epoch: int, size: int) -> tuple[float, ...]:
    # Python promises the stream of Random.random() for good, but not that of Random.shuffle().
    digest = hashlib.sha256(f"{seed}:{epoch}:order".encode()).digest()
    generator = random.Random(int.from_bytes(digest))
    return tuple(generator.random() for _ in range(size))
