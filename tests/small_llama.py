"""The Llama that tests outside of routing stand on."""

import torch
from transformers import LlamaForCausalLM

from torture.bases import tiny_llama


def small_llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Two layers and 64 tokens in evaluation mode, the same weights every time."""
    return tiny_llama(64, 64, dtype=dtype)
