"""Completions of the same prompts under several ablation modes, in one batched generation."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.token_offsets import asking_tokens, prompt_tokens
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.answers import Answer, AnswerFinder
from gradroute.evaluate.batch_check import why_alone
from gradroute.evaluate.decoding import write_on
from gradroute.evaluate.inference import bytes_of_row, in_batches, inference, memory_at_once
from gradroute.evaluate.sampling import SharedNoise, noise_keys
from gradroute.models.sizes import positions_of
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode


@dataclass(frozen=True)
class Prompt:
    """What a completion starts from.

    Attributes:
        id: Names the prompt's noise: the same id and seed give the same noise everywhere.
        text: The text before the completion; empty to start from the beginning-of-text token.
        templated: Whether a chat template wrote the text, which writes all special tokens itself.
        follows: What follows the text in the data, such as a word where that is not known; it says
            which token a space at the end belongs to, see `asking_tokens`, and nothing else.
    """

    id: str
    text: str
    templated: bool = False
    follows: str = "word"

    @property
    def space(self) -> str:
        """The space at the end of a plain text, which the model may write once more."""
        return "" if self.templated else self.text[len(self.text.rstrip()) :]


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt.

    Attributes:
        text: The new text alone, never the prompt.
        tokens: New tokens, the end token not counted.
        ended: Whether the model ended the text itself; False if it was cut at the limit.
        answer: What is scored of it, where a chat client shows something else than the text.
    """

    text: str
    tokens: int
    ended: bool
    answer: Answer | None = None

    @property
    def scored(self) -> str | None:
        """What a detector sees; None where the completion has no answer."""
        return self.text if self.answer is None else self.answer.text


def generate_modes(
    model: PeftModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    modes: Sequence[AblationMode],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    rows_per_batch: int,
    score_thoughts: bool = False,
) -> dict[str, list[Completion]]:
    """Complete every prompt under every mode.

    One forward pass serves all modes: each adapter runs on the rows of the modes that have it on.
    Rows leave the batch when their text has ended. The sampling noise depends on (seed, prompt id,
    step, token) alone. Of the model's own generation settings only the end tokens are used.

    Args:
        model: A model with routed adapters.
        tokenizer: Its tokenizer.
        prompts: What to complete.
        modes: The ablation modes, of different names.
        max_new_tokens: Where a completion is cut.
        temperature: 1 samples from the model, 0 takes the most probable token.
        top_p: Sample from the most probable tokens that hold this share; 1 for all.
        seed: Of the noise.
        rows_per_batch: Rows (prompts times modes) at once, at least one prompt; fewer where memory
            is short, see `memory_at_once`, and one where `batch_check.why_alone` has a reason.
        score_thoughts: Whether what a chat model thinks belongs to what is scored of it.

    Returns:
        Per mode name the completions, in the order of the prompts.

    Raises:
        ConfigError: A sampling setting is out of range, there is no mode, or nothing to begin with.
        DataError: A prompt is too long for the model, or has tokens that it does not know.
        NumericError: The model's logits are not finite.
        MachineError: No memory for even one row.
    """
    check_asked(modes, max_new_tokens)
    base, answers = model.get_base_model(), AnswerFinder(tokenizer, thoughts=score_thoughts)
    assert isinstance(base, PreTrainedModel)
    work = _Work(base, tokenizer, prompts, max_new_tokens, temperature, top_p, seed, answers)
    completions: dict[str, list[Completion | None]] = {m.name: [None] * len(prompts) for m in modes}

    def measure(items: slice, some: slice) -> None:
        chosen, together = work.order[items], modes[some]
        written = work.complete(chosen * len(together), grouped(model, together, len(chosen)))
        for row, completion in enumerate(written):  # rows are grouped by mode
            mode, item = divmod(row, len(chosen))
            completions[together[mode].name][chosen[item]] = completion

    with ablated(model, "base"):  # as weights of adapters do not matter
        alone = work.are_alone(len(prompts) * len(modes))
    rows = min(rows_per_batch, work.rows_at_once())
    with inference(model):
        in_batches(len(prompts), len(modes), 1 if alone else rows, measure, alone=alone)
    return {name: _without_none(own) for name, own in completions.items()}


def grouped(
    model: PeftModel, modes: Sequence[AblationMode], size: int
) -> Callable[[Tensor], AbstractContextManager[None]]:
    """The scope of the rows that are left of a batch with `size` rows of each mode, in order."""
    groups = torch.arange(len(modes)).repeat_interleave(size)

    def scope(left: Tensor) -> AbstractContextManager[None]:
        return ablated(model, modes, groups[left].bincount(minlength=len(modes)).tolist())

    return scope


def generate_plain(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    rows_per_batch: int,
    score_thoughts: bool = False,
) -> list[Completion]:
    """Complete prompts with a model as it is, such as an exported one.

    Prompts, noise and settings mean what they mean in `generate_modes`, so that a model that
    computes what another one does under a mode writes what that one writes under it.

    Args:
        model: Any causal model.
        tokenizer: Its tokenizer.
        prompts: What to complete.
        max_new_tokens: See `generate_modes`, as for the others.
        temperature: See there.
        top_p: See there.
        seed: See there.
        rows_per_batch: See there.
        score_thoughts: See there.

    Raises:
        GradrouteError: As `generate_modes` does.
    """
    _check_new_tokens(max_new_tokens)
    answers = AnswerFinder(tokenizer, thoughts=score_thoughts)
    work = _Work(model, tokenizer, prompts, max_new_tokens, temperature, top_p, seed, answers)
    completions: list[Completion | None] = [None] * len(prompts)

    def measure(items: slice, _: slice) -> None:
        chosen = work.order[items]
        written = work.complete(chosen, lambda left: nullcontext())
        for index, completion in zip(chosen, written, strict=True):
            completions[index] = completion

    rows = 1 if work.are_alone(len(prompts)) else min(rows_per_batch, work.rows_at_once())
    with inference(model):
        in_batches(len(prompts), 1, rows, measure)
    return _without_none(completions)


class _Work:
    """What is to be completed and how, prompts of like length side by side.

    Attributes:
        order: The prompts' indices, the short ones first, so that little of a batch is padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        answers: AnswerFinder,
    ) -> None:
        self._model, self._tokenizer, self._answers = model, tokenizer, answers
        self._prompts = prompts
        self._rows = check_prompts(model, tokenizer, prompts, max_new_tokens)
        self._keys = noise_keys(seed, [prompt.id for prompt in prompts])
        self._max_new_tokens = max_new_tokens
        self._sampling = temperature, top_p
        self._end_tokens = end_tokens_of(model, tokenizer)
        self._device = next(model.parameters()).device
        self.order = sorted(range(len(prompts)), key=lambda index: len(self._rows[index]))

    def rows_at_once(self) -> int:
        """Rows for which there is memory by estimate, at least one."""
        longest = max(map(len, self._rows), default=1) + self._max_new_tokens
        return max(1, memory_at_once(self._device) // bytes_of_row(self._model, longest))

    def are_alone(self, rows: int) -> bool:
        """Whether so many rows must run one at a time, see `batch_check.why_alone`."""
        return rows > 1 and bool(why_alone(self._model))

    def complete(
        self, chosen: Sequence[int], scope: Callable[[Tensor], AbstractContextManager[None]]
    ) -> list[Completion]:
        """A completion for each chosen prompt; one may be chosen several times."""
        temperature, top_p = self._sampling
        rows = [self._rows[index] for index in chosen]
        sampler = SharedNoise(
            self._keys.to(self._device), torch.tensor(chosen), temperature=temperature, top_p=top_p
        )
        new = write_on(
            self._model,
            rows,
            sampler,
            scope,
            end_tokens=self._end_tokens,
            max_new_tokens=self._max_new_tokens,
        )
        asked = [self._prompts[index] for index in chosen]
        return completions_of(self._tokenizer, rows, new, self._end_tokens, asked, self._answers)


def _without_none(completions: Sequence[Completion | None]) -> list[Completion]:
    there = [one for one in completions if one is not None]
    assert len(there) == len(completions)
    return there


def check_asked(modes: Sequence[AblationMode], max_new_tokens: int) -> None:
    """See that there is a mode to generate under, and a token to write.

    Raises:
        ConfigError: There is not.
    """
    _check_new_tokens(max_new_tokens)
    if not modes:
        raise ConfigError("no ablation mode was given to generate under; name at least one.")


def _check_new_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")


def end_tokens_of(base: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """The model's end tokens (a chat model has several) and the tokenizer's."""
    own = base.generation_config.eos_token_id if base.generation_config is not None else None
    named = own if isinstance(own, list) else [own]
    return sorted({token for token in [*named, tokenizer.eos_token_id] if token is not None})


def _prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The prompt as it stands in training; nothing is put behind it, which might end it all."""
    if prompt.templated:
        tokens = prompt_tokens(tokenizer, prompt.text, templated=True)
    else:
        tokens = asking_tokens(tokenizer, prompt.text, prompt.follows)
    bos = tokenizer.bos_token_id
    if not tokens and isinstance(bos, int):
        return [bos]
    if not tokens:
        raise ConfigError(
            f"prompt {prompt.id!r} is empty and the tokenizer has no beginning-of-text token to "
            "start from; give a prompt of at least one word."
        )
    return tokens


def check_prompts(
    base: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[list[int]]:
    """The tokens of prompts, if the model knows them and has room for what comes after them.

    Raises:
        ConfigError: A prompt is empty and the tokenizer has no token to begin with.
        DataError: A prompt has tokens that the model does not know, or is too long for it.
    """
    rows = [_prompt_tokens(tokenizer, prompt) for prompt in prompts]
    positions = positions_of(base)
    weight = base.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    for prompt, row in zip(prompts, rows, strict=True):
        if max(row) >= len(weight):
            raise DataError(
                f"prompt {prompt.id!r} has the token {max(row)}, and the model has embeddings for "
                f"{len(weight)}; the tokenizer belongs to another model."
            )
        if positions and len(row) + max_new_tokens > positions:
            raise DataError(
                f"prompt {prompt.id!r} is {len(row)} tokens long; with max_new_tokens="
                f"{max_new_tokens} that is more than the {positions} positions of the model. "
                f"{_shorten_advice(positions - len(row))}"
            )
    return rows


def _shorten_advice(room: int) -> str:
    """What to do about a prompt that leaves room for so many tokens."""
    return (
        f"Set evaluate.max_new_tokens={room} or less, or shorten it." if room > 0 else "Shorten it."
    )


def completions_of(
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
    end_tokens: Sequence[int],
    asked: Sequence[Prompt],
    answers: AnswerFinder,
) -> list[Completion]:
    """The completions of rows of new tokens, each cut at its end token."""
    cut = [
        next((at for at, token in enumerate(row) if token in end_tokens), len(row)) for row in new
    ]
    rows = [list(row[:at]) for row, at in zip(new, cut, strict=True)]
    spaces = [prompt.space for prompt in asked]
    written = written_texts(tokenizer, prompts, rows, spaces, marked=False)
    found: list[Answer | None] = [None] * len(rows)
    if answers.needed:
        marked = written_texts(tokenizer, prompts, rows, spaces, marked=True)
        texts = [prompt.text for prompt in asked]
        found = [answers.find(*one) for one in zip(texts, written, marked, strict=True)]
    return [
        Completion(text, at, at < len(row), answer)
        for text, at, row, answer in zip(written, cut, new, found, strict=True)
    ]


def written_texts(
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    spaces: Sequence[str],
    *,
    marked: bool,
) -> list[str]:
    """What was written after prompts as text, with special tokens or without.

    A space that ends a prompt's text, but not its tokens, is none of the text that was written.

    Args:
        tokenizer: Of the model.
        prompts: The tokens of each prompt.
        rows: The tokens after it.
        spaces: `Prompt.space` of each.
        marked: Whether special tokens are written too.
    """
    heads = _decode(tokenizer, prompts, marked)
    wholes = _decode(tokenizer, [[*a, *b] for a, b in zip(prompts, rows, strict=True)], marked)
    alone = _decode(tokenizer, rows, marked)
    texts = [
        # Cut from the whole text where possible: some tokenizers drop a leading space.
        whole[len(head) :] if whole.startswith(head) else own
        for whole, head, own in zip(wholes, heads, alone, strict=True)
    ]
    left = [
        space[max(at for at in range(len(space) + 1) if head.endswith(space[:at])) :]
        for head, space in zip(heads, spaces, strict=True)
    ]
    return [text.removeprefix(space) for text, space in zip(texts, left, strict=True)]


def _decode(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], marked: bool) -> list[str]:
    decoded = tokenizer.batch_decode(
        [list(row) for row in rows],
        skip_special_tokens=not marked,
        clean_up_tokenization_spaces=False,
    )
    return list(decoded)
