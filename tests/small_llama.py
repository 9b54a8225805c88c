"""The Llama that tests outside of routing stand on."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Two layers and 64 tokens in evaluation mode, the same weights every time."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    return model.eval()
