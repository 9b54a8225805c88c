"""A tiny Llama written as a GGUF file, as llama.cpp's converter lays it out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import LlamaForCausalLM

from gradroute.models.base import embedded_model

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path, model: LlamaForCausalLM, more: Mapping[str, int] | None = None, packed: bool = False
) -> Path:
    """Write a model with the embedded tokenizer.

    Args:
        path: of the file; its folder is made.
        model: in float32.
        more: further keys of the header.
        packed: hold the matrices in 8 bits (Q8_0, blocks of 32) where they fit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), "llama")
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads or 1
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (more or {}).items():
        writer.add_uint32(key, value)
    _add_tokenizer(writer, config.vocab_size)
    for key, weight in model.state_dict().items():
        name, value = _gguf_name(key), weight.numpy()
        if "attn_q" in name or "attn_k" in name:
            value = _permuted(value, heads if "attn_q" in name else groups)
        if packed and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, vocabulary: int) -> None:
    saved: Any = json.loads((Path(embedded_model()) / "tokenizer.json").read_text())
    ids = dict(saved["model"]["vocab"]) | {
        one["content"]: one["id"] for one in saved["added_tokens"]
    }
    tokens = sorted(ids, key=ids.__getitem__)
    special = {one["content"] for one in saved["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens[:vocabulary])
    writer.add_token_types([3 if token in special else 1 for token in tokens[:vocabulary]])
    merges = saved["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _gguf_name(key: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if key in whole:
        return whole[key]
    _, _, index, *inner, last = key.split(".")
    return f"blk.{index}.{_NAMES['.'.join(inner)]}.{last}"


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order in which llama.cpp rotates them: pairs beside each other."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
