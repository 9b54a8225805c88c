"""Tiny configurations of more families of transformers, by the `model_type` of their configs.

A config takes of `SIZES` what it has a field for, and what `OWN` says of its family. Layers that
come in kinds (attention with a window, a state space, a mixture of experts) come in each kind.
"""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

LAYERS = 4
SIZES: Mapping[str, Any] = {
    # attention and the rest of a layer, under the names that configs have for them
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,  # shorter than the rows: padding and caching must survive it
    # mixtures of experts
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    # state spaces and linear attention
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "mamba_ngroups": 1,
    "mamba_headdim": 8,
    "mamba_chunk_size": 4,
    "chunk_size": 4,
    "expand": 2,
    "time_step_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "conv_dim": 32,
    "attention_hidden_size": 32,
    "lru_width": 32,
    "attention_window_size": 4,
}

_SHARED = {
    "num_hidden_layers": 6,
    "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "num_key_value_heads": 4,
}
_ALTERNATE = ["sliding_attention", "full_attention"] * 2

OWN: Mapping[str, Mapping[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1, 3]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {},
    "cohere": {},
    "cohere2": {"layer_types": _ALTERNATE},
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"qk_head_dim": 8, "head_dim": 4, "num_key_value_heads": 4},
    "doge": {},
    "dots1": {"layer_types": _ALTERNATE, "n_shared_experts": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {"layer_types": _ALTERNATE},
    "falcon_h1": {},
    "falcon_mamba": {},
    "gemma": {},
    "gemma2": {"layer_types": _ALTERNATE, "final_logit_softcapping": 2.0},
    "gemma3n_text": {
        "layer_types": _ALTERNATE,
        "intermediate_size": [48] * LAYERS,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    },
    "gemma4_text": {"layer_types": _ALTERNATE, "hidden_size_per_layer_input": 8},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gpt_oss": {"layer_types": _ALTERNATE},
    "gptj": {},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 16,
    },
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "attention_chunk_size": 4,
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 2,
    },
    "mamba": {},
    "mamba2": {"head_dim": 8, "num_heads": 8},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 4},
    "ministral": {"layer_types": _ALTERNATE},
    "mpt": {},
    "nemotron": {},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mlp", "mamba"]},
    "olmo": {},
    "olmo3": {"layer_types": _ALTERNATE},
    "olmoe": {},
    "persimmon": {},
    "phi": {},
    "phimoe": {},
    "qwen2_moe": {},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {"layer_types": _ALTERNATE},
    "xglm": {},
    "zamba": {**_SHARED, "n_mamba_heads": 2, "mamba_dt_rank": 4},
    "zamba2": {**_SHARED, "hybrid_layer_ids": [1, 4], "num_mem_blocks": 1, "adapter_rank": 4},
}


def further_config(
    kind: str, *, vocabulary: int, positions: int, spread: float
) -> PreTrainedConfig:
    """A config of some layers of 32 numbers; arguments as for `tiny_families.family_config`."""
    ends = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    places = ("max_position_embeddings", "n_positions", "max_seq_len")
    more = {"vocab_size_per_layer_input": vocabulary, "initializer_range": spread}
    known = AutoConfig.for_model(kind).to_dict()
    general = {**SIZES, **more, **dict.fromkeys(places, positions)}
    given = {key: value for key, value in general.items() if key in known}
    return AutoConfig.for_model(kind, **{**given, **ends, **OWN[kind]})
