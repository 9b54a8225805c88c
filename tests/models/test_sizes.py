"""How many positions a model has, learned or rotary, and sizes that differ by layer."""

from typing import Any

import pytest
import torch
from tiny_families import tiny_family
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma4TextConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from gradroute.models.sizes import largest, ordinary_tokens, positions_of

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 30,
}


def positions(config: PreTrainedConfig) -> int | None:
    with torch.random.fork_rng():
        return positions_of(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gpt-neox", "falcon", "gemma3"])
def test_every_family_has_the_positions_of_its_config(family: str):
    assert positions_of(tiny_family(family, positions=17, dtype=torch.float32)) == 17


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_learned_table_is_as_long_as_it_says(family: str):
    model = tiny_family(family, positions=17, dtype=torch.float32)
    model(input_ids=torch.full((1, 17), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 18), 5))


def test_a_table_that_begins_with_unused_rows_has_fewer_positions_than_its_config_says():
    config = RobertaConfig(
        **SMALL, intermediate_size=16, max_position_embeddings=20, pad_token_id=1, is_decoder=True
    )
    assert positions(config) == 18


def test_models_without_positions_have_no_limit():
    few: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16}
    assert positions(BloomConfig(**few, n_layer=1, n_head=2)) is None
    assert positions(MambaConfig(**few, num_hidden_layers=1, state_size=4)) is None


def test_a_table_of_biases_limits_a_model_as_well():
    assert (
        positions(MptConfig(vocab_size=30, d_model=16, n_layers=1, n_heads=2, max_seq_len=16)) == 16
    )


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 16),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 64),
        (
            {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 1e4,
            },
            32,
        ),
    ],
)
def test_rotary_positions_count_their_scaling(rope: dict[str, Any], expected: int):
    config = LlamaConfig(
        **SMALL, intermediate_size=16, max_position_embeddings=16, rope_parameters=rope
    )
    assert positions(config) == expected


def test_a_size_that_differs_by_layer_is_the_largest():
    own: dict[str, Any] = {"global_head_dim": 8}
    config = Gemma4TextConfig(
        num_hidden_layers=2, head_dim=4, **own,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    assert largest(config, "head_dim", 1) == 8
    assert largest(config, "no_such_size", 3) == 3


def test_ordinary_tokens_have_no_meaning_of_their_own():
    model = tiny_family("llama", dtype=torch.float32)  # 0, 1 and 2 are special
    tokens = ordinary_tokens(model, 12)
    assert len(tokens) == 12 and min(tokens) > 2 and max(tokens) < 24
