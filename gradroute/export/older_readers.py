"""Settings of transformers 5 with the keys that earlier readers look for.

transformers 5 moved the settings of rotary positions into one, `rope_parameters`, and renamed
others. Readers that know the earlier names (transformers 4, mlx-lm, converters of weights) find
nothing under them and take their defaults without a word. The earlier names are written beside the
new ones; transformers 5 reads both and gets the same model. docs/howto/export.md has the table.
"""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

_LOCAL_THETA = {"gemma3_text": "rope_local_base_freq", "gemma3n_text": "rope_local_base_freq"}
_THETAS_BY_LAYER = {
    "modernbert-decoder": {
        "full_attention": "global_rope_theta",
        "sliding_attention": "local_rope_theta",
    },
}
_OWN_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
"""Model type -> setting of `rope_parameters` -> its name before, where that is another one."""
_ONLY = {
    "phi3": {"type", "short_factor", "long_factor"},
    "olmo": {"type", "factor"},
    "olmo2": {"type", "factor"},
}
"""Model type -> the keys that its `rope_scaling` may have; transformers 4 refuses any other."""
_THETAS = {"rope_theta", "global_rope_theta", "rotary_emb_base"}
_LAYERS_BEFORE = {"linear_attention": "mamba", "full_attention": "attention"}
_HYBRIDS = ("granitemoehybrid", "zamba", "zamba2")
"""Model types whose layers had the names before of `_LAYERS_BEFORE`, which transformers 5 reads."""
_EXPERTS = ("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")
"""Model types whose number of experts transformers 5 renamed."""
_OWN_SETTINGS = {"gpt2": {"n_ctx": "n_positions"}, "cohere2": {"rotary_pct": None}}
"""Model type -> a setting that llama.cpp's converter needs and transformers 5 does not write, with
the one that has its value; None for 1.0, which the family always has."""
_NO_LIMIT = [0.0, {"__float__": "Infinity"}]
"""How transformers 5 writes an interval without end, which each class with one has by default."""


def with_older_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model with those that earlier readers look for, in every part.

    A setting that is there already is not changed.

    Args:
        settings: A model's `config.json`, as transformers 5 writes it.
    """
    model_type = settings.get("model_type", "")
    parts = {
        key: with_older_names(part) if isinstance(part, dict) and "model_type" in part else part
        for key, part in settings.items()
    }
    found = _positions(model_type, settings.get("rope_parameters") or {})
    if settings.get("dtype") is not None:
        found["torch_dtype"] = settings["dtype"]
    for key in ("layer_types", "layers_block_type"):
        if model_type in _HYBRIDS and settings.get(key):
            parts[key] = [_LAYERS_BEFORE.get(kind, kind) for kind in settings[key]]
    if settings.get("time_step_limit") == _NO_LIMIT:
        del parts["time_step_limit"]
    if model_type in _EXPERTS and "num_local_experts" in settings:
        found["num_experts"] = settings["num_local_experts"]
    for key, other in _OWN_SETTINGS.get(model_type, {}).items():
        if other is None or other in settings:
            found[key] = settings[other] if other else 1.0
    if model_type == "dbrx":  # transformers 4 refuses settings that these parts do not know
        general = PreTrainedConfig().to_dict().keys() - {"dtype", "model_type"}
        for name in ("attn_config", "ffn_config"):
            parts[name] = {k: v for k, v in settings[name].items() if k not in general}
    return found | parts


def only_for_new_readers(settings: Mapping[str, Any]) -> bool:
    """Whether a model has rotary positions that no earlier name can say.

    Args:
        settings: As `with_older_names` returns them.
    """
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    return any(part.get("rope_parameters") and not _THETAS & part.keys() for part in parts)


def tokenizer_with_older_names(settings: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings of a tokenizer under names that readers of transformers 4 and 5 know.

    The tokenizer gets the class that reads `tokenizer.json` and nothing else. The classes of single
    families put together normalizer, pre-tokenizer and special tokens by their own rules, which are
    not the same in both versions, so the same files would give other tokens. What the class would
    have set is written out.

    Args:
        settings: A tokenizer's `tokenizer_config.json`, as transformers 5 writes it.
        tokenizer: Whose.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return dict(settings)
    found = dict(settings) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.model_input_names),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
    if isinstance(listed := found.pop("extra_special_tokens", None), list):
        found["additional_special_tokens"] = listed
    if named := found.pop("model_specific_special_tokens", None):
        found["extra_special_tokens"] = named
    found.pop("add_prefix_space", None)
    spaced = (json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}).get(
        "add_prefix_space"
    )
    if spaced is not None:
        found["add_prefix_space"] = spaced
    return found


def _positions(model_type: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` says, under the names before; empty where there are none."""
    by_layer = {key: own for key, own in rope.items() if isinstance(own, dict)}
    if not by_layer:
        return _flat(model_type, rope) if "rope_theta" in rope else {}
    whole, sliding = by_layer.get("full_attention"), by_layer.get("sliding_attention")
    if model_type in _THETAS_BY_LAYER:
        names = _THETAS_BY_LAYER[model_type]
        return {names[kind]: own["rope_theta"] for kind, own in by_layer.items() if kind in names}
    if whole is None or sliding is None:
        return {}
    if model_type in _LOCAL_THETA:
        return _flat(model_type, whole) | {_LOCAL_THETA[model_type]: sliding["rope_theta"]}
    same = whole["rope_theta"] == sliding["rope_theta"]
    return _flat(model_type, whole) if same else {}


def _flat(model_type: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in found}
    names = _OWN_NAMES.get(model_type, {})
    found = {names.get(key, key): value for key, value in found.items()}
    if scaling.get("rope_type", "default") != "default" or len(scaling) > 1:
        scaling["type"] = scaling.get("rope_type", "default")
        allowed = _ONLY.get(model_type, scaling.keys())
        found["rope_scaling"] = {key: scaling[key] for key in scaling if key in allowed}
    return found
