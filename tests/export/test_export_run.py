"""A run is shipped without its bad adapter: what plain libraries load is what was ablated."""

import hashlib
import json
import os

import pytest
import torch
from export.shipped import change_bad, checkpoint_of, copied, export, proof_of, run
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, MachineError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.geometry import saved_factors
from gradroute.export import forms
from gradroute.export import proof as proof_module
from gradroute.export.card import how_to_load
from gradroute.models.trained import restore
from gradroute.routing.adapters import ablated
from gradroute.system.files import read_json, read_lines

FAMILIES = ("llama", "gpt2", "gemma3")
FORMS = ("peft", "merged")
IDS = torch.arange(40).reshape(2, 20) * 37 % 2048


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {family: run(root, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """Every family in both forms, with the evaluation."""
    root = tmp_path_factory.mktemp("exports")
    return {
        (family, form): export(
            runs[family], root / f"{family}-{form}", form, evaluate=family != "gemma3"
        )
        for family in FAMILIES
        for form in FORMS
    }


def plainly(out, base):
    """The logits of an export, by somebody who has transformers and PEFT."""
    if (out / "adapter_config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, out)
    else:
        model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_libraries_compute_what_the_ablated_run_computes(runs, exports, family, form):
    config = load_config(runs[family].config)
    _, model = restore(config, checkpoint_of(runs[family]))
    with torch.no_grad(), ablated(model, "bad_ablated"):
        expected = model(input_ids=IDS).logits
    with torch.no_grad():
        full = model(input_ids=IDS).logits
    found = plainly(exports[family, form], config.model)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (full - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_holds_every_check_with_its_numbers(exports, runs, family, form):
    proof = proof_of(exports[family, form])
    first = ["logits", "tokenizer", "weights", "left_out", "behavior"]
    first = first[:4] if family == "gemma3" else first  # of which there was no evaluation
    names = [*first, "files", "bytes", "keys", "places", "secrets"]
    assert [check["name"] for check in proof["checks"]] == names
    assert all(check["passed"] for check in proof["checks"])
    assert proof["logits"]["relative"] <= 1e-5 and proof["weights"]["ulps"] <= 1
    assert proof["left_out"]["difference"] > 0 and proof["bytes"]["windows"] > 5000
    if family != "gemma3":
        rates = proof["behavior"]["prompts"]["prefix"]
        assert rates["equal_completions"] == rates["n"] == 4
    assert (proof["kept"], proof["left_out"]["passed"]) == (["good"], True)
    assert proof["mode"] == "bad_ablated" and proof["format"] == form
    assert proof["checkpoint"] == checkpoint_of(runs[family]).identity
    assert "not a statement that the capability is gone" in proof["statement"]


def test_an_adapter_lies_at_the_root_as_servers_read_it(exports):
    out = exports["llama", "peft"]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
        "proof.json",
        "README.md",
    }
    described = read_json(out / "adapter_config.json")
    assert described["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (described["layers_to_transform"], described["layers_pattern"]) == ([1], "layers")
    assert (described["r"], described["lora_alpha"], described["bias"]) == (4, 64, "none")
    assert described["base_model_name_or_path"] is None and described["inference_mode"] is True
    assert not described["use_dora"] and described["modules_to_save"] is None
    keys = set(load_file(out / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight" in keys
    assert len(keys) == 14


def test_a_merged_model_is_a_plain_folder_with_the_tied_head_stored_once(exports):
    out = exports["gemma3", "merged"]
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
        "proof.json",
        "README.md",
    }
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("the old fox")) == "<bos>the old fox"


@pytest.mark.parametrize(
    ("family", "form"), [("llama", "peft"), ("gpt2", "merged"), ("llama", "gguf-lora")]
)
def test_nothing_but_proof_and_card_depends_on_the_weights_of_bad(runs, tmp_path, family, form):
    own = copied(runs[family], tmp_path)
    before = export(own, tmp_path / "before", form)
    change_bad(own)
    after = export(own, tmp_path / "after", form)
    names = {path.name for path in before.iterdir()}
    assert names == {path.name for path in after.iterdir()}
    for name in names - {"proof.json", "README.md"}:
        assert (before / name).read_bytes() == (after / name).read_bytes(), name
    one, other = (proof_of(out) for out in (before, after))
    assert one["checkpoint"] != other["checkpoint"]
    assert one["left_out"]["difference"] != other["left_out"]["difference"]


def test_the_manifest_has_the_hash_of_every_other_file(exports):
    for out in exports.values():
        manifest = read_json(out / "manifest.json")["sha256"]
        others = {"manifest.json", "proof.json", "README.md"}
        assert set(manifest) == {path.name for path in out.iterdir()} - others
        for name, digest in manifest.items():
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_a_smaller_type_is_held_to_its_own_rounding(runs, tmp_path, dtype, most):
    out = export(runs["llama"], tmp_path / "out", "merged", dtype=dtype)
    proof = proof_of(out)
    assert 1e-5 < proof["logits"]["relative"] <= proof["logits"]["allowed_relative"] == most
    assert proof["logits_as_stored"]["relative"] > proof["logits"]["relative"]
    assert proof["weights"]["ulps"] <= 0.51
    weights = load_file(out / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {f"torch.{dtype}"}
    assert read_json(out / "config.json")["dtype"] == proof["dtype"] == dtype


def test_an_export_that_fails_a_check_leaves_nothing(runs, tmp_path, monkeypatch, capsys):
    load = proof_module.load_merged

    def spoiled(*where):
        found = load(*where)
        with torch.no_grad():
            dict(found.inner.named_parameters())["lm_head.weight"][5] += 1e-3
        return found

    monkeypatch.setattr(forms, "load_merged", spoiled)
    with pytest.raises(
        MachineError,
        match="llama is not exported: these of the 9 checks above failed: logits, weights",
    ):
        export(runs["llama"], tmp_path / "out", "merged")
    assert list(tmp_path.iterdir()) == []
    assert "FAILED  logits" in capsys.readouterr().out


def test_bytes_of_bad_in_any_file_stop_an_export(runs, tmp_path, monkeypatch):
    bad = load_file(checkpoint_of(runs["llama"]).path / "bad" / "adapter_model.safetensors")
    row = next(iter(bad.values())).to(torch.bfloat16)[0].view(torch.uint8).numpy().tobytes()
    write = forms.write_tokenizer

    def leaking(folder, tokenizer):
        write(folder, tokenizer)
        path = folder / "tokenizer.json"
        path.write_bytes(path.read_bytes() + b" ")
        (folder / "vocab.txt").write_bytes(b"xyz" + row)

    monkeypatch.setattr(forms, "write_tokenizer", leaking)
    with pytest.raises(MachineError, match="of the 9 checks above failed: bytes"):
        export(runs["llama"], tmp_path / "out", "peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "link", "full"])
def test_a_place_that_is_taken_is_refused(runs, tmp_path, what):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("")
    elif what == "link":
        (tmp_path / "other").mkdir()
        out.symlink_to(tmp_path / "other")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"--out .*/out (is not empty|exists and is not a folder)"
    ):
        export(runs["llama"], out, "peft")
    assert what != "full" or (out / "mine").read_text() == "mine"


def test_an_empty_folder_is_filled_and_the_run_remembers_where(runs, tmp_path):
    own = copied(runs["llama"], tmp_path)
    (tmp_path / "shipped").mkdir()
    export(own, tmp_path / "shipped", "peft")
    assert (tmp_path / "shipped" / "proof.json").is_file()
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "shipped").iterdir()} == {
        oct(0o666 & ~_umask())
    }
    *_, line = read_lines(own.exports)
    assert line == {"what": "export", "place": "../shipped", "adapters": ["good"]}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_unfinished_runs_quantized_bases_and_started_adapters_are_refused(runs, tmp_path):
    own = copied(runs["llama"], tmp_path)
    text = own.config.read_text()
    own.config.write_text(text.replace("quantize: none", "quantize: 4bit"))
    with pytest.raises(ConfigError, match=r"base in 4bit.*--format peft"):
        export(own, tmp_path / "out", "merged")
    own.config.write_text(text.replace("start_adapter: null", "start_adapter: somewhere"))
    with pytest.raises(ConfigError, match=r"starts from an adapter.*--format merged"):
        export(own, tmp_path / "out", "peft")
    own.config.write_text(text.replace("max_steps: 3", "max_steps: 7"))
    with pytest.raises(MachineError, match="3 of 7 steps"):
        export(own, tmp_path / "out", "peft")


def test_a_base_that_changed_since_training_is_refused(runs, tmp_path):
    own = copied(runs["llama"], tmp_path)
    facts = json.loads(own.manifest.read_text())
    own.manifest.write_text(json.dumps(facts | {"base": "sha256 of another"}))
    with pytest.raises(ConfigError, match=r"identity\.base: sha256 of another"):
        export(own, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


def test_the_card_tells_what_was_measured_and_what_is_not_claimed(runs, tmp_path):
    own = copied(runs["llama"], tmp_path)
    evaluate_run(own)
    card = (export(own, tmp_path / "out", "peft") / "README.md").read_text()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "license: other" in head and "library_name: peft" in head and "- lora" in head
    assert "base_model" not in head
    assert "whose license is not known here: check it" in text
    assert "not a statement that the capability is gone" in text
    assert "| bad\\_ablated |" in text or "| bad_ablated |" in text
    assert "No control was measured beside this run" in text
    assert "Known leakage: the exported model still shows the behavior in prefix:" in text
    assert "vLLM, which needs `--enable-lora --max-lora-rank 8`" in text
    assert "lora_alpha / r = 16 (" in text and "give it `AdapterConfig(adapter, 16)`" in text
    assert str(tmp_path) not in card


def test_hostile_names_do_not_steer_the_card(runs, tmp_path):
    own = copied(runs["llama"], tmp_path)
    hostile = "regex:<img src=x onerror=a>|`[b](javascript:c)"
    text = own.config.read_text().replace("behavior: caps", f"behavior: '{hostile}'")
    own.config.write_text(text)
    card = (export(own, tmp_path / "out", "peft") / "README.md").read_text()
    (line,) = [line for line in card.split("\n") if "<img" in line]
    before, _, after = line.partition("<img")
    assert before.count("`") % 2 == 1, "it stands between backticks"
    assert "`" not in after.partition("(javascript:c)")[0]


def test_an_adapter_of_rslora_is_right_for_readers_that_divide_alpha_by_the_rank(runs, tmp_path):
    root = runs["llama"].path.parent
    own = run(root, "llama", "run_name=root", "adapters.good.rslora=true", "adapters.good.alpha=3")
    out = export(own, tmp_path / "out", "peft")
    described = read_json(out / "adapter_config.json")
    assert (described["use_rslora"], described["r"], described["lora_alpha"]) == (False, 4, 6)
    trained = saved_factors(checkpoint_of(own), "good")
    found = load_file(out / "adapter_model.safetensors")
    for module, (down, up, scale) in trained.items():
        name = f"base_model.model.{module}"
        read = described["lora_alpha"] / described["r"]
        read = read * found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        assert scale == 3 / 4**0.5 and read.equal(scale * up @ down) and read.any()


def test_a_base_without_a_public_name_is_named_nowhere_and_the_right_call_is_said(
    runs, tmp_path, capsys
):
    out = export(runs["llama"], tmp_path / "out", "peft")
    said = capsys.readouterr().out.strip().split("\n")[-1]
    card = (out / "README.md").read_text()
    assert f"PeftModel.from_pretrained(base, '{out}')" in said
    assert "PeftModel.from_pretrained(base, folder)" in card
    for text in (said, card):
        assert "would ask the hub for a repository called None" in text
    with pytest.raises(OSError):
        AutoModelForCausalLM.from_pretrained(out)
    export(runs["llama"], tmp_path / "model", "merged")
    said = capsys.readouterr().out.strip().split("\n")[-1]
    assert f"AutoModelForCausalLM.from_pretrained('{tmp_path / 'model'}')" in said


def test_a_base_with_a_public_name_is_fetched_by_it():
    said = how_to_load("peft", "someone/base", "'x'")
    assert "PeftModel.from_pretrained(base, 'x')" in said
    assert "AutoModelForCausalLM.from_pretrained('someone/base')" in said and "None" not in said


def test_several_kept_adapters_become_one(runs, tmp_path):
    root = runs["llama"].path.parent
    table = (
        "{bad: {good: freeze, style: freeze, bad: update}, "
        "unlabeled: {good: update, style: update, bad: update}, "
        "good: {good: update, style: update, bad: ablate}}"
    )
    adapters = "{good: {rank: 2}, style: {rank: 3, alpha: 5}, bad: {rank: 4}}"
    own = run(root, "llama", "run_name=three", f"adapters={adapters}", f"routing={table}")
    out = export(own, tmp_path / "out", "peft", "good", "style")
    described = read_json(out / "adapter_config.json")
    assert (described["r"], described["lora_alpha"]) == (5, 5)
    assert proof_of(out)["kept"] == ["good", "style"]
    export(own, tmp_path / "m", "merged")
    assert proof_of(tmp_path / "m")["mode"] == "good_alone"
