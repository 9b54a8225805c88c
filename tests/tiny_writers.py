"""Tiny models that write letters, with adapters that matter, and the tokenizer to read them."""

import random
import string
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gradroute.data.batches import TokenizedExample
from gradroute.evaluate.generation import Completion, Prompt, generate_modes
from gradroute.evaluate.losses import ExampleLosses, held_out_losses
from gradroute.routing.adapters import AdapterSpec, ablated, attach_adapters
from gradroute.routing.layers import lora_layers
from gradroute.routing.policy import AblationMode, standard_modes

LETTERS = f"{string.ascii_letters} .,"
VOCABULARY = ["<pad>", "<s>", "</s>", *LETTERS]
MODES = standard_modes(["good", "bad"])


def letter_tokenizer(
    bos: str | None = "<s>", eos: str | None = "</s>", pad: str | None = "<pad>"
) -> PreTrainedTokenizerFast:
    """One token per letter."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    inner = Tokenizer(models.BPE(vocab=ids, merges=[]))
    inner.decoder = decoders.Fuse()
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    if bos:  # it is put before every text
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{name: token for name, token in named.items() if token}
    )


def base_model(kind: str) -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    shared: dict[str, Any] = {"vocab_size": len(VOCABULARY), "initializer_range": 0.4}
    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt_neo":  # learned positions
            layers: dict[str, Any] = {
                "num_layers": 2,
                "attention_types": [[["global", "local"], 1]],
            }
            sizes = {
                "hidden_size": 16,
                "num_heads": 4,
                "max_position_embeddings": 64,
                **layers,
            }
            return GPTNeoForCausalLM(GPTNeoConfig(**sizes, **shared, **special)).eval()
        if kind == "gemma3":  # a sliding window shorter than what is written
            window: dict[str, Any] = {
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention"],
            }
            config = Gemma3TextConfig(**sizes, **heads, **shared, **special, **window)
            return Gemma3ForCausalLM(config).eval()
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **shared, **special)).eval()


def writer(kind: str = "llama", dtype: torch.dtype = torch.float32) -> PeftModel:
    """A model whose two adapters both change what it writes."""
    specs = {name: AdapterSpec(rank=rank, alpha=2.0) for name, rank in (("good", 2), ("bad", 3))}
    model = attach_adapters(base_model(kind).to(dtype), specs, layers="all")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                weight = part.weight
                assert isinstance(weight, Tensor)
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
    return model


def settings_of(model: PeftModel) -> GenerationConfig:
    """The generation settings that come with the model."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel) and base.generation_config is not None
    return base.generation_config


def next_logits(model: PeftModel, mode: AblationMode, tokens: list[int]) -> Tensor:
    """Logits of the token after these, from one whole forward pass without padding or cache."""
    with torch.no_grad(), ablated(model, mode):
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def write_slowly(model: PeftModel, mode: AblationMode, prompt: str, count: int) -> str:
    """Greedy completion, one prompt and one token at a time; stops at </s>."""
    tokens = [1, *(VOCABULARY.index(letter) for letter in prompt)]
    written: list[str] = []
    for _ in range(count):
        token = int(next_logits(model, mode, tokens).argmax())
        if token == 2:
            break
        tokens.append(token)
        written.append("" if token < 3 else VOCABULARY[token])  # special tokens are no text
    return "".join(written)


PROMPTS = [
    Prompt(f"p{index}", text) for index, text in enumerate(["Once upon a", "I", "THE END", ""])
]
TOKENIZER = letter_tokenizer()


def generate(
    model: PeftModel,
    prompts: list[Prompt] = PROMPTS,
    modes: tuple[AblationMode, ...] = MODES,
    tokenizer: PreTrainedTokenizerFast = TOKENIZER,
    *,
    max_new_tokens: int = 6,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 42,
    rows_per_batch: int = 1000,
) -> dict[str, list[Completion]]:
    return generate_modes(
        model,
        tokenizer,
        prompts,
        modes,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        rows_per_batch=rows_per_batch,
    )


def example(index: int, length: int, target_start: int = 0) -> TokenizedExample:
    letters = random.Random(index)
    tokens = (1, *(letters.randrange(3, len(VOCABULARY)) for _ in range(length - 1)))
    return TokenizedExample(str(index), tokens, target_start, 0, "good")


ROWS = [
    example(i, length, start)
    for i, (length, start) in enumerate([(9, 0), (2, 0), (17, 5), (4, 2), (12, 0), (9, 7), (17, 0)])
]


def losses(
    model: PeftModel,
    rows: list[TokenizedExample] = ROWS,
    modes: tuple[AblationMode, ...] = MODES,
    rows_per_batch: int = 1000,
    pad_id: int = 0,
) -> dict[str, ExampleLosses]:
    return held_out_losses(model, rows, modes, pad_id=pad_id, rows_per_batch=rows_per_batch)
