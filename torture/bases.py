"""Base models of two layers of 16 numbers: a step takes milliseconds."""

import shutil
from pathlib import Path

import torch
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from gradroute.model import embedded_model


def tiny_llama(
    vocabulary: int,
    positions: int,
    *,
    spread: float = 0.02,
    dtype: torch.dtype = torch.float32,
    scaled: bool = False,
) -> LlamaForCausalLM | GraniteForCausalLM:
    """A Llama in evaluation mode, the same weights every time.

    Args:
        vocabulary: tokens.
        positions: the longest row.
        spread: standard deviation of the initial weights.
        dtype: of the weights.
        scaled: make it a Granite, a Llama that scales its logits, so that all of them are computed.
    """
    kind = GraniteConfig if scaled else LlamaConfig
    config = kind(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        initializer_range=spread,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **({"logits_scaling": 2.0} if scaled else {}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (GraniteForCausalLM if scaled else LlamaForCausalLM)(config)
    torch.nn.Module.to(model, dtype)
    return model.eval()


def save_base(folder: Path, vocabulary: int, positions: int, *, scaled: bool = False) -> Path:
    """Make `folder`, a `tiny_llama` with the embedded tokenizer in Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(embedded_model()) / name, folder / name)
    logging.disable_progress_bar()
    tiny_llama(vocabulary, positions, scaled=scaled).save_pretrained(folder)
    return folder
