"""Base models of two layers of 16 numbers: a step takes milliseconds."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from gradroute.models.base import embedded_model


def tiny_llama(
    vocabulary: int,
    positions: int,
    *,
    spread: float = 0.02,
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """A Llama in evaluation mode, the same weights every time.

    Args:
        vocabulary: tokens.
        positions: the longest row.
        spread: standard deviation of the initial weights.
        dtype: of the weights.
    """
    config = LlamaConfig(**_small(vocabulary, positions), initializer_range=spread)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    return model.eval()


def tiny_granite(vocabulary: int, positions: int) -> GraniteForCausalLM:
    """A Llama that scales its logits, so that a step computes all of them; arguments as above."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GraniteConfig(**_small(vocabulary, positions), logits_scaling=2.0)
        return GraniteForCausalLM(config).eval()


def save_base(folder: Path, vocabulary: int, positions: int, *, scaled: bool = False) -> Path:
    """Make `folder`, a tiny base with the embedded tokenizer in Hugging Face format.

    Args:
        folder: where it is made.
        vocabulary: tokens.
        positions: the longest row.
        scaled: make it a `tiny_granite` rather than a `tiny_llama`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(embedded_model()) / name, folder / name)
    logging.disable_progress_bar()
    make = tiny_granite if scaled else tiny_llama
    make(vocabulary, positions).save_pretrained(folder)
    return folder


def _small(vocabulary: int, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": positions,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
