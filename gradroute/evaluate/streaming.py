"""Completions of one prompt under several ablation modes, token by token.

What is written is what `generation.generate_modes` writes: the same rows in the same batch, the
same noise, the same end.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.evaluate.answers import AnswerFinder
from gradroute.evaluate.batch_check import why_alone
from gradroute.evaluate.decoding import write_steps
from gradroute.evaluate.generation import (
    Completion,
    Prompt,
    check_asked,
    check_prompts,
    completions_of,
    end_tokens_of,
    grouped,
    written_texts,
)
from gradroute.evaluate.inference import inference
from gradroute.evaluate.sampling import SharedNoise, noise_keys
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode

_HALF = "\ufffd"
"""What a tokenizer writes for a character that is not whole yet."""


class Piece(NamedTuple):
    """A token as text.

    Attributes:
        mode: Index of the mode that wrote it.
        text: What it adds to the completion; empty for a part of a character, whose last part has
            the whole of it.
    """

    mode: int
    text: str


class Written(NamedTuple):
    """What one mode wrote.

    Attributes:
        prompt: The tokens of the prompt.
        tokens: The new tokens, the end token left out.
        pieces: The text that each of them adds; together they are the completion's.
        completion: The text and its answer.
    """

    prompt: list[int]
    tokens: list[int]
    pieces: list[str]
    completion: Completion


class _Row:
    """One mode's tokens so far, and the text that they have become."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], space: str) -> None:
        self._tokenizer, self._prompt, self._space = tokenizer, list(prompt), space
        self._shown = ""
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.ended = False

    def add(self, token: int) -> str:
        """Take a token; the text that it adds."""
        self.tokens.append(token)
        [text] = written_texts(
            self._tokenizer, [self._prompt], [self.tokens], [self._space], marked=False
        )
        whole = text.rstrip(_HALF)
        new = ""
        if whole.startswith(self._shown):  # else it waits for what settles it
            new, self._shown = whole[len(self._shown) :], whole
        self.pieces.append(new)
        return new


def stream_modes(
    model: PeftModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    modes: Sequence[AblationMode],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    score_thoughts: bool = False,
) -> Generator[list[Piece], None, list[Written]]:
    """Complete one prompt under every mode, a token at a time.

    Nothing else may run the model until the generator is at its end or closed.

    Args:
        model: A model with routed adapters.
        tokenizer: Its tokenizer.
        prompt: What to complete.
        modes: The ablation modes; one may be there twice.
        max_new_tokens: See `generate_modes`, as for all others.
        temperature: See there.
        top_p: See there.
        seed: See there.
        score_thoughts: See there.

    Yields:
        The pieces that one step adds, of the modes whose text has not ended; returned is what each
        mode wrote, in their order.

    Raises:
        GradrouteError: As `generate_modes` does, but for memory.
    """
    check_asked(modes, max_new_tokens)
    base, answers = model.get_base_model(), AnswerFinder(tokenizer, thoughts=score_thoughts)
    assert isinstance(base, PreTrainedModel)
    [row] = check_prompts(base, tokenizer, [prompt], max_new_tokens)
    ends = end_tokens_of(base, tokenizer)
    together, found = _batches(model, base, modes), list[Written]()
    with inference(model) as device:
        keys = noise_keys(seed, [prompt.id]).to(device)
        for some in together:
            own = [_Row(tokenizer, row, prompt.space) for _ in some]
            places = torch.zeros(len(some), dtype=torch.long)  # all rows continue one prompt
            steps = write_steps(
                base,
                [row] * len(some),
                SharedNoise(keys, places, temperature=temperature, top_p=top_p),
                grouped(model, some, 1),
                end_tokens=ends,
                max_new_tokens=max_new_tokens,
            )
            with closing(steps):
                for left, tokens in steps:
                    yield list(_added(own, left.tolist(), tokens.tolist(), ends, len(found)))
            found += _written(tokenizer, prompt, row, own, ends, answers)
    return found


def _batches(
    model: PeftModel, base: PreTrainedModel, modes: Sequence[AblationMode]
) -> list[Sequence[AblationMode]]:
    """The modes that share a batch: all of them, or each alone where the model needs that."""
    with ablated(model, "base"):  # as weights of adapters do not matter
        alone = len(modes) > 1 and bool(why_alone(base))
    return [[mode] for mode in modes] if alone else [modes]


def _added(
    rows: Sequence[_Row], left: list[int], tokens: list[int], ends: Sequence[int], first: int
) -> Generator[Piece, None, None]:
    for index, token in zip(left, tokens, strict=True):
        row = rows[index]
        if not row.ended and token in ends:
            row.ended = True
        elif not row.ended:
            yield Piece(first + index, row.add(token))


def _written(
    tokenizer: Tokenizer,
    prompt: Prompt,
    head: list[int],
    rows: Sequence[_Row],
    ends: Sequence[int],
    answers: AnswerFinder,
) -> list[Written]:
    """What the rows wrote, with pieces that make the whole text."""
    new = [[*row.tokens, *ends[:1]] if row.ended else row.tokens for row in rows]
    completions = completions_of(
        tokenizer, [head] * len(rows), new, ends, [prompt] * len(rows), answers
    )
    return [
        Written(head, row.tokens, _settled(row.pieces, one.text), one)
        for row, one in zip(rows, completions, strict=True)
    ]


def _settled(pieces: Sequence[str], text: str) -> list[str]:
    """The pieces with what the last one held back, or all in one where the text changed."""
    made = "".join(pieces)
    if made == text or not pieces:
        return list(pieces)
    if text.startswith(made):
        return [*pieces[:-1], pieces[-1] + text[len(made) :]]
    return [*("" for _ in pieces[1:]), text]
