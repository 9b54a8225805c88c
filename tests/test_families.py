"""The promises of routing on every family: a shorter form of `benchmarks/families.py`."""

from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES, FURTHER

from benchmarks import families
from benchmarks.family_promises import Promise, exports_merged, learns, scores, writes
from benchmarks.family_table import COLUMNS, Row, into_page, line, read_rows, write_rows
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.provenance import provenance

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]


# Each stands for a kind: layers that share weights, keys and values that layers share, latent
# attention beside shared experts, linear attention, and weights that a model reads directly.
KINDS = ("zamba2", "gemma3n_text", "deepseek_v3", "qwen3_next", "mamba")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_gets_the_oracles_gradient_in_every_family(family: str) -> None:
    assert families.oracle_error(family, "row") < families.BOUNDS["oracle"]


@pytest.mark.parametrize("family", KINDS)
def test_labels_by_token_reach_layers_that_shape_a_batch_otherwise(family: str) -> None:
    assert families.exact_gradient(family).holds


@pytest.mark.parametrize("family", [*FAMILIES, *KINDS])
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


@pytest.mark.parametrize("family", KINDS)
def test_other_kinds_of_layers_train_are_scored_and_are_exported_as_they_are(family: str) -> None:
    policy = RoutingPolicy.parse("anchored", list(families.SPECS))
    model = families.routed_family(family, torch.float32).eval()

    def build():
        return families.tiny_family(family, dtype=torch.float32)

    assert scores(model, policy).holds
    exported = exports_merged(model, build, families.logits)
    assert families.or_rounding(family, exported).holds is not False
    assert learns(model, policy).holds is not False


def test_completions_are_held_against_the_model_without_batch_or_cache() -> None:
    assert writes(families.routed_family("llama", torch.float32).eval()).holds


def test_more_than_sixty_families_are_measured() -> None:
    assert len({*FAMILIES, *FURTHER}) == len(FAMILIES) + len(FURTHER) > 60


def test_a_broken_promise_stands_out_in_the_table_and_its_reason_below(tmp_path: Path) -> None:
    promises = {name: Promise(True, "yes") for name in COLUMNS}
    promises["scores"] = Promise(False, "2e-01", "losses differ: 0.2")
    promises["packs"] = Promise(None, "refused", "in the model Odd an example sees another")
    text = "adapters on 14 linear modules of layers 0 to 1; left out: 2 routers (mlp.gate)"
    rows = [Row("odd", "Odd", text, promises), Row("even", "Even", text, {})]
    assert [row.holds for row in rows] == [False, True]
    assert line(rows[0]).startswith("| odd | 14 | yes |") and "| **2e-01** |" in line(rows[0])
    assert line(rows[0]).endswith("| 2 routers |")
    write_rows(tmp_path / "x.json", rows, families.BOUNDS, provenance())
    assert list(read_rows(tmp_path / "x.json").values()) == rows
    page = tmp_path / "page.md"
    marks = ("<!-- families: from benchmarks/families.py --docs -->", "<!-- end of families -->")
    page.write_text(f"Before.\n\n{marks[0]}\nold\n{marks[1]}\n\nAfter.\n")
    into_page(page, rows)
    found = page.read_text()
    assert found.startswith("Before.") and found.endswith("After.\n") and "old" not in found
    assert "- **odd**, packing: in it an example sees another" in found
