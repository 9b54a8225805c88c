"""A tiny model of every family that is promised to work, built in memory from its configuration."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from further_families import OWN, further_config
from transformers import (
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY = 24
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}
_GEMMA = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4}

# A window shorter than the rows, where a family has one: padding and caching must survive it.
_FAMILIES: Mapping[str, tuple[Callable[..., PreTrainedConfig], Mapping[str, Any]]] = {
    "llama": (LlamaConfig, _SIZES | _HEADS),
    "llama-tied": (LlamaConfig, _SIZES | _HEADS | {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, _SIZES | _HEADS),
    "qwen3": (Qwen3Config, _SIZES | _HEADS | {"head_dim": 4}),
    "gemma3": (Gemma3TextConfig, _SIZES | _HEADS | _GEMMA | {"head_dim": 4, "sliding_window": 4}),
    "mistral": (MistralConfig, _SIZES | _HEADS | {"sliding_window": 4}),
    "phi3": (Phi3Config, _SIZES | _HEADS | {"sliding_window": 4}),
    "olmo2": (Olmo2Config, _SIZES | _HEADS),
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 4}),
    "gpt-neox": (GPTNeoXConfig, _SIZES | {"num_attention_heads": 4}),
    "opt": (OPTConfig, {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16} | _HEADS),
    "falcon": (FalconConfig, {"hidden_size": 16, "multi_query": True} | _HEADS),
    "mixtral": (MixtralConfig, _SIZES | _HEADS | {"num_local_experts": 4}),
    "qwen3-moe": (Qwen3MoeConfig, _SIZES | _HEADS | _EXPERTS | {"head_dim": 4}),
}
_LAYERS = {"opt": {"num_hidden_layers": 2}, "falcon": {"num_hidden_layers": 2}}
_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "ffn_dim",
    "word_embed_proj_dim",
    "n_embd",
    "head_dim",
)
_DROPOUT = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attn_dropout",
    "embd_dropout",
    "embedding_dropout",
    "activation_dropout",
    "residual_dropout",
)

FAMILIES = tuple(_FAMILIES)
"""Their names; `llama-tied` is the one whose output head is its embedding."""
FURTHER = tuple(OWN)
"""The names of the others that `benchmarks/families.py` measures."""


def family_config(
    name: str,
    *,
    vocabulary: int = VOCABULARY,
    positions: int = 64,
    spread: float = 0.3,
    wider: int = 1,
) -> PreTrainedConfig:
    """Two layers of 16 numbers; of `FURTHER` some of 32.

    Args:
        name: one of `FAMILIES` or `FURTHER`.
        vocabulary: tokens.
        positions: the longest row.
        spread: standard deviation of the initial weights.
        wider: how many times as wide the layers are; of `FAMILIES` alone.
    """
    if name in OWN:
        config = further_config(name, vocabulary=vocabulary, positions=positions, spread=spread)
        return _without_dropout(config)
    kind, given = _FAMILIES[name]
    own = {key: value * wider if key in _WIDTHS else value for key, value in given.items()}
    config = kind(
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        initializer_range=spread,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **own,
        **_LAYERS.get(name, {}),
    )
    return _without_dropout(config)


def _without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    for dropout in _DROPOUT:
        if dropout in config.to_dict():
            setattr(config, dropout, 0.0)
    return config


def tiny_family(
    name: str,
    *,
    vocabulary: int = VOCABULARY,
    positions: int = 64,
    spread: float = 0.3,
    wider: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> PreTrainedModel:
    """A causal model in evaluation mode, the same weights every time; arguments as above.

    Norms and biases are moved off their usual 1 and 0, so that a mistake in them shows.
    """
    config = family_config(
        name, vocabulary=vocabulary, positions=positions, spread=spread, wider=wider
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # The faster ways to run experts know no float64.
        code = "eager" if dtype == torch.float64 else None
        model = AutoModelForCausalLM.from_config(config, experts_implementation=code)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight.add_(0.1 * torch.randn(weight.shape))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model.eval()
