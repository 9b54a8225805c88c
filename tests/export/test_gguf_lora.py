"""LoRA files for llama.cpp: what its converter would have written, scaled as llama.cpp scales."""

import numpy as np
import pytest
import torch
from export.shipped import checkpoint_of, copied, export, proof_of, run
from gguf import MODEL_ARCH, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from small_llama import small_llama
from tiny_families import tiny_family
from tiny_gguf import write_gguf as write_base

from gradroute.errors import ConfigError, MachineError
from gradroute.evaluate.geometry import Factors, saved_factors
from gradroute.export import forms, gguf_lora
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.export.gguf_layout import (
    ARCHITECTURES,
    PERMUTED,
    Place,
    check_base_file,
    from_place,
    in_place,
    places_of,
)
from gradroute.export.merging import distance_in_ulps, exact_update
from gradroute.export.purge import holders
from gradroute.models.checkpoint import adapter_tensors
from gradroute.runs.folder import RunFolder

FAMILIES = {
    "llama": ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    "gpt2": ("transformer.h.{}.attn.c_attn", "blk.{}.attn_qkv"),
}
HEADS = {"attn_q.": 4, "attn_k.": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def llama(root):
    return run(root, "llama")


def rows_of(name: str, count: int) -> list[int]:
    """Row of the model for each row of the file, as llama.cpp's converter has it for a Llama."""
    blocks = next((n for part, n in HEADS.items() if part in name), None)
    if blocks is None:
        return list(range(count))
    size = count // blocks
    return [
        block * size + half * size // 2 + pair
        for block in range(blocks)
        for pair in range(size // 2)
        for half in (0, 1)
    ]


def updates_in(path) -> dict[str, torch.Tensor]:
    """`alpha / rank * B A` of every tensor of a file in float64, by the `gguf` package alone."""
    reader = GGUFReader(path)
    alpha = reader.get_field("adapter.lora.alpha").contents()  # pyright: ignore
    found = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")]
    assert len(found) == 2 * len(names)
    return {
        name: torch.tensor(
            alpha / len(found[f"{name}.lora_a"]) * found[f"{name}.lora_b"] @ found[f"{name}.lora_a"]
        )
        for name in names
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_base_plus_the_update_of_a_file_is_the_merged_weight(root, tmp_path, family):
    own = run(root, family)
    export(own, tmp_path / "lora", "gguf-lora")
    export(own, tmp_path / "merged", "merged", dtype="float32")
    updates = updates_in(tmp_path / "lora" / "good.gguf")
    base = load_file(root / "bases" / family / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    changed = [name for name in base if not base[name].equal(merged[name])]
    assert len(updates) == len(changed) > 3
    module, tensor = (name.format(1) + ".weight" for name in FAMILIES[family])
    assert module in changed and tensor in updates
    pairs = dict(zip(sorted(changed, key=_order), sorted(updates, key=_order), strict=True))
    for name, place in pairs.items():
        weight, whole = (one[name].T if family == "gpt2" else one[name] for one in (base, merged))
        order = rows_of(place if family == "llama" else "", len(weight))
        exact = weight.double()[order] + updates[place]
        assert distance_in_ulps(whole[order], exact) <= 1


def _order(name: str) -> tuple:
    """Names of both kinds in the same order."""
    kinds = [
        ("attn_qkv", "c_attn"),
        ("attn_q", "q_proj"),
        ("attn_k", "k_proj"),
        ("attn_v", "v_proj"),
        ("attn_output", "o_proj", "attn.c_proj"),
        ("ffn_gate", "gate_proj"),
        ("ffn_up", "up_proj", "c_fc"),
        ("ffn_down", "down_proj", "mlp.c_proj"),
    ]
    (layer,) = [int(part) for part in name.split(".") if part.isdigit()]
    return layer, next(i for i, parts in enumerate(kinds) if any(p in name for p in parts))


@pytest.mark.parametrize("settings", ["rslora=true", "alpha=0.1", "alpha=5"])
def test_any_scale_is_read_as_alpha_by_rank_in_float32(root, tmp_path, settings):
    own = run(root, "llama", f"run_name=s{len(settings)}", f"adapters.good.{settings}")
    updates = updates_in(export(own, tmp_path / "out", "gguf-lora") / "good.gguf")
    tensors = adapter_tensors(checkpoint_of(own), "good")
    scale = next(iter(saved_factors(checkpoint_of(own), "good").values())).scale
    name = "model.layers.1.mlp.up_proj"
    exact = exact_update(tensors, name, scale)
    found = updates["blk.1.ffn_up.weight"]
    assert (found - exact).abs().max() <= 2e-7 * exact.abs().max() and exact.any()
    assert proof_of(tmp_path / "out")["weights"]["ulps"] <= 1


def test_ranks_and_scales_that_differ_by_module_are_folded_into_b(tmp_path):
    factors = {
        "a": Factors(torch.randn(4, 8), torch.randn(6, 4), 2.0),
        "b": Factors(torch.randn(3, 8), torch.randn(6, 3), 0.7),
        "c": Factors(torch.randn(2, 8), torch.randn(6, 2), 0.0),
    }
    places = {name: Place(f"blk.0.{name}.weight", None) for name in factors}
    path = tmp_path / "x.gguf"
    gguf_lora.write_gguf(path, factors, places, architecture="llama", dtype=torch.float32)
    alpha, read = gguf_lora.read_gguf(path, places)
    assert alpha == 8.0 and read["a"].B.equal(factors["a"].B)
    for name, update in updates_in(path).items():
        own = factors[name.split(".")[2]]
        exact = own.scale * own.B.double() @ own.A.double()
        assert torch.allclose(update, exact, rtol=0, atol=1e-6)
    zero = {"c": factors["c"]}  # llama.cpp takes alpha 0 for "not scaled"
    gguf_lora.write_gguf(path, zero, places, architecture="llama", dtype=torch.float32)
    alpha, read = gguf_lora.read_gguf(path, places)
    assert alpha == 2.0 and not read["c"].B.any()


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_a_file_of_a_smaller_type_says_so_and_is_held_to_its_rounding(llama, tmp_path, dtype, kind):
    out = export(llama, tmp_path / "out", "gguf-lora", dtype=dtype)
    reader = GGUFReader(out / "good.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {kind}
    assert proof_of(out)["weights"]["ulps"] <= 0.5
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert (facts["general.type"], facts["adapter.type"]) == ("adapter", "lora")
    assert (facts["general.architecture"], facts["adapter.lora.alpha"]) == ("llama", 64)


def test_good_alone_is_written_unless_bad_is_named(llama, tmp_path, capsys):
    wanted = ExportRequest(None, "gguf-lora", tmp_path / "own", evaluate=False)
    export_run(llama, wanted, repo=None, public=False)
    names = {path.name for path in (tmp_path / "own").iterdir()}
    assert names == {"good.gguf", "manifest.json", "proof.json", "README.md"}
    proof = proof_of(tmp_path / "own")
    assert (proof["kept"], proof["left_out"]["passed"], proof["warnings"]) == (["good"], True, [])
    assert "Do not ship" not in capsys.readouterr().err
    both = export(llama, tmp_path / "both", "gguf-lora", "good", "bad")
    assert {"good.gguf", "bad.gguf"} < {path.name for path in both.iterdir()}
    assert "also bad: this is for auditors. Do not ship it" in capsys.readouterr().err
    card = (both / "README.md").read_text()
    assert "AUDIT FILES" in card and "nothing is proved absent" in card
    assert proof_of(both)["mode"] == "full"
    with pytest.raises(ConfigError, match="keeps every adapter"):
        export(llama, tmp_path / "peft", "peft", "good", "bad")


def test_bytes_of_bad_in_the_order_of_a_file_stop_an_export(llama, tmp_path, monkeypatch):
    bad = saved_factors(checkpoint_of(llama), "bad")
    write = forms.write_gguf

    def leaking(path, factors, places, **settings):
        write(path, factors, places, **settings)
        module = next(name for name in places if name.endswith("k_proj"))
        rows = in_place(bad[module].B, places[module])[1:3]  # rows that are no neighbors in B
        path.write_bytes(path.read_bytes() + rows.contiguous().numpy().tobytes())

    monkeypatch.setattr(forms, "write_gguf", leaking)
    with pytest.raises(MachineError, match="failed: bytes"):
        export(llama, tmp_path / "out", "gguf-lora")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_scaled_or_ordered_otherwise_is_not_exported(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_lora, "in_place", lambda weight, place: weight.flip(0))
    with pytest.raises(MachineError, match="failed: logits, weights"):
        export(llama, tmp_path / "out", "gguf-lora")


def test_purge_finds_the_file_of_bad_where_it_was_exported(llama, tmp_path):
    own = copied(llama, tmp_path)
    audit = export(own, tmp_path / "audit", "gguf-lora", "good", "bad")
    found = [holder.path for holder in holders(own, ["bad"])]
    assert [path for path in found if path.parent == audit] == [audit / "bad.gguf"]


def test_rows_go_to_their_places_and_back():
    weight = torch.randn(24, 5)
    there = in_place(weight, Place("x", 3))
    pairs = [0, 4, 1, 5, 2, 6, 3, 7]
    assert there.equal(weight[[8 * head + row for head in range(3) for row in pairs]])
    assert from_place(there, Place("x", 3)).equal(weight)


def test_every_family_of_the_table_is_one_of_the_package():
    assert set(ARCHITECTURES.values()) <= set(MODEL_ARCH.__members__)
    assert set(PERMUTED) <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("family", "module", "said"),
    [
        ("opt", "model.decoder.layers.0.fc1", "of the kind 'opt'.*knows apertus, arcee"),
        ("gpt-neox", "gpt_neox.layers.0.attention.dense", "of the kind 'gpt_neox'"),
        ("llama", "model.layers.0.self_attn.qkv_proj", "acts on model.layers.0.self_attn.qkv_proj"),
        ("llama-tied", "lm_head", "lm_head, whose weight is that of the embeddings"),
    ],
)
def test_what_a_file_has_no_place_for_is_refused_by_name(family, module, said):
    with pytest.raises(ConfigError, match=said):
        places_of(tiny_family(family), [module])


def test_a_base_whose_own_file_has_other_tensors_is_refused(tmp_path):
    model = small_llama(dtype=torch.float32)
    path = write_base(tmp_path / "base.gguf", model)
    rows, columns = model.state_dict()["model.layers.0.self_attn.k_proj.weight"].shape
    right = {"blk.0.attn_k.weight": (rows, columns)}
    check_base_file(path, "llama", right)
    for architecture, sizes in [
        ("gemma3", right),
        ("llama", {"blk.0.attn_k.weight": (rows, columns + 1)}),
        ("llama", {"blk.0.attn_qkv.weight": (rows, columns)}),
    ]:
        with pytest.raises(ConfigError, match=r"base's own file base.gguf has (no tensor|kind)"):
            check_base_file(path, architecture, sizes)


def test_the_package_that_is_missing_is_named(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("gradroute.models.files.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"writes GGUF files, is not.*gradroute\[gguf\]"):
        export(RunFolder(llama.path), tmp_path / "out", "gguf-lora")
