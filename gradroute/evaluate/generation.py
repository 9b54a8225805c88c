"""Completions of the same prompts under several ablation modes, in one batched generation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.inference import in_pieces, inference
from gradroute.evaluate.sampling import SharedNoise, noise_keys
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode


@dataclass(frozen=True)
class Prompt:
    """What a completion starts from.

    Attributes:
        id: Names the prompt's noise: the same id and seed give the same noise everywhere.
        text: The text before the completion; empty to start from the beginning-of-text token.
    """

    id: str
    text: str


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt.

    Attributes:
        text: The new text alone, never the prompt.
        tokens: New tokens, the end token not counted.
        ended: Whether the model ended the text itself; False if it was cut at the limit.
    """

    text: str
    tokens: int
    ended: bool


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
) -> dict[str, list[Completion]]:
    """Complete every prompt under every mode.

    One forward pass serves all modes: the rows of a batch are grouped by mode and each adapter runs
    only on the rows where it is on. The sampling noise depends on (seed, prompt id, step, token)
    alone (see `sampling`), so modes and runs are compared on the same noise and a completion does
    not depend on the batch that it was computed in, but for rounding. The generation settings
    that come with the model are set aside; of them only its end tokens are kept.

    Args:
        model: A model with routed adapters.
        tokenizer: Its tokenizer.
        prompts: What to complete.
        modes: The ablation modes, of different names.
        max_new_tokens: Where a completion is cut.
        temperature: 1 samples from the model, 0 takes the most probable token.
        top_p: Sample from the most probable tokens that hold this share; 1 for all.
        seed: Of the noise.
        rows_per_batch: Rows (prompts times modes) that run at once, at least one prompt; fewer
            where memory runs out.

    Returns:
        Per mode name the completions, in the order of the prompts.

    Raises:
        ConfigError: A sampling setting is out of range, there is no mode, or a prompt is empty and
            the tokenizer has no token to begin with.
        DataError: A prompt is too long for the model, or has tokens that it does not know.
        NumericError: The model's logits are not finite.
        MachineError: No memory for even one row.
    """
    _check_asked(modes, max_new_tokens)
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    config = _generation_config(max_new_tokens, end_tokens := _end_tokens(base, tokenizer))
    completions: dict[str, list[Completion]] = {mode.name: [] for mode in modes}

    def measure(items: slice, some: slice) -> None:
        chunk, together = prompts[items], modes[some]
        rows = _prompt_rows(base, tokenizer, chunk, max_new_tokens)
        keys = noise_keys(seed, [prompt.id for prompt in chunk]).to(device)
        with ablated(model, together):
            new = _continue(base, rows * len(together), config, keys, temperature, top_p)
        written = _completions(tokenizer, rows * len(together), new, end_tokens)
        for at, mode in enumerate(together):  # rows are grouped by mode
            completions[mode.name][items] = written[at * len(chunk) : (at + 1) * len(chunk)]

    with inference(model) as device, _plain_generation(base):
        in_pieces(len(prompts), len(modes), rows_per_batch, measure)
    return completions


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

    Raises:
        GradrouteError: As `generate_modes` does.
    """
    _check_new_tokens(max_new_tokens)
    config = _generation_config(max_new_tokens, end_tokens := _end_tokens(model, tokenizer))
    completions: list[Completion] = []

    def measure(items: slice, _: slice) -> None:
        chunk = prompts[items]
        rows = _prompt_rows(model, tokenizer, chunk, max_new_tokens)
        keys = noise_keys(seed, [prompt.id for prompt in chunk]).to(device)
        new = _continue(model, rows, config, keys, temperature, top_p)
        completions[items] = _completions(tokenizer, rows, new, end_tokens)

    with inference(model) as device, _plain_generation(model):
        in_pieces(len(prompts), 1, rows_per_batch, measure)
    return completions


def _check_asked(modes: Sequence[AblationMode], max_new_tokens: int) -> None:
    _check_new_tokens(max_new_tokens)
    if not modes:
        raise ConfigError("no ablation mode was given to generate under; name at least one.")


def _check_new_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")


def _continue(
    base: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    config: GenerationConfig,
    keys: Int[Tensor, "prompts 4"],
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    """New tokens of each row, the end token and what fills a row after it included."""
    input_ids, attention_mask = (part.to(keys.device) for part in _left_padded(rows))
    length = input_ids.shape[1]
    sampler = SharedNoise(keys, prompt_length=length, temperature=temperature, top_p=top_p)
    output = base.generate(  # pyright: ignore[reportCallIssue]
        input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([sampler]),
    )
    return output[:, length:].tolist()


def _generation_config(max_new_tokens: int, end_tokens: Sequence[int]) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # the logits processor has drawn already
        num_beams=1,
        use_cache=True,
        eos_token_id=list(end_tokens) or None,
        pad_token_id=end_tokens[0] if end_tokens else 0,  # never read: cut at the end token
    )


@contextmanager
def _plain_generation(base: PreTrainedModel) -> Iterator[None]:
    """Set the model's own generation settings aside: `generate` fills every gap from them."""
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _end_tokens(base: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """The model's end tokens (a chat model has several) and the tokenizer's."""
    own = base.generation_config.eos_token_id if base.generation_config is not None else None
    named = own if isinstance(own, list) else [own]
    return sorted({token for token in [*named, tokenizer.eos_token_id] if token is not None})


def _prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The beginning token, if there is one, and the text; no end token, which would end it all."""
    tokens = tokenizer.encode(prompt.text, add_special_tokens=False) if prompt.text else []
    if tokenizer.bos_token_id is not None and tokens[:1] != [tokenizer.bos_token_id]:
        tokens = [tokenizer.bos_token_id, *tokens]
    if not tokens:
        raise ConfigError(
            f"prompt {prompt.id!r} is empty and the tokenizer has no beginning-of-text token to "
            "start from; give a prompt of at least one word."
        )
    return tokens


def _prompt_rows(
    base: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[list[int]]:
    """The tokens of prompts; those that the model does not know or has no room for are refused."""
    rows = [_prompt_tokens(tokenizer, prompt) for prompt in prompts]
    positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
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
                "Shorten it."
            )
    return rows


def _left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    length = max(map(len, rows))
    input_ids = torch.tensor([[row[0]] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return input_ids, mask


def _completions(
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
    end_tokens: Sequence[int],
) -> list[Completion]:
    cut = [
        next((at for at, token in enumerate(row) if token in end_tokens), len(row)) for row in new
    ]
    rows = [list(row[:at]) for row, at in zip(new, cut, strict=True)]
    heads = _decode(tokenizer, prompts)
    wholes = _decode(tokenizer, [[*a, *b] for a, b in zip(prompts, rows, strict=True)])
    alone = _decode(tokenizer, rows)
    return [
        # Cut from the whole text where possible: some tokenizers drop a leading space.
        Completion(whole[len(head) :] if whole.startswith(head) else own, at, at < len(row))
        for whole, head, own, at, row in zip(wholes, heads, alone, cut, new, strict=True)
    ]


def _decode(tokenizer: Tokenizer, rows: Sequence[Sequence[int]]) -> list[str]:
    decoded = tokenizer.batch_decode(
        [list(row) for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return list(decoded)
