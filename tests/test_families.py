"""The promises of routing on every family: a shorter form of `benchmarks/families.py`."""

import pytest
import torch
from tiny_families import FAMILIES

from benchmarks import families

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_gets_the_oracles_gradient_in_every_family(family: str) -> None:
    assert families.oracle_error(family, "row") < families.BOUNDS["oracle"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablated_adapter_was_never_there_whatever_it_holds(family: str) -> None:
    assert families.ablation_is_exact(family, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_reloads_and_merges_every_family(family: str) -> None:
    assert families.reload_error(family) <= families.BOUNDS["reload"]
    assert families.merge_error(family, torch.float32) <= families.BOUNDS["merge_fp32"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_bfloat16_base_with_float32_adapters_trains_and_merges(family: str) -> None:
    assert families.ablation_is_exact(family, torch.bfloat16)
    found = families.merge_error(family, torch.bfloat16, families.WIDE)
    assert found <= families.BOUNDS["merge_bf16"]


@pytest.mark.parametrize("family", ["gemma3", "opt", "falcon", "qwen3-moe"])
def test_modes_that_share_a_batch_write_what_each_writes_alone(family: str) -> None:
    assert families.generation_agrees(family)
