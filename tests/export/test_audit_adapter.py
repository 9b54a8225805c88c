"""The audit adapter: everything that was trained, as one adapter that says so."""

import pytest
import torch
from export.shipped import checkpoint_of, export, run
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.export.audit_adapter import audit_adapter
from gradroute.models.trained import restore
from gradroute.routing.adapters import ablated
from gradroute.system.files import read_json, read_lines

IDS = torch.arange(40).reshape(2, 20) * 37 % 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), "gpt2", "adapters.bad.alpha=3")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_plain_peft_computes_what_full_does(folder, tmp_path):
    audit_adapter(folder, tmp_path / "audit")
    config = load_config(folder.config)
    _, model = restore(config, checkpoint_of(folder))
    base = AutoModelForCausalLM.from_pretrained(config.model)
    plain = PeftModel.from_pretrained(base, tmp_path / "audit").eval()
    with torch.no_grad():
        expected, found = (one(input_ids=IDS).logits for one in (model, plain))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    described = read_json(tmp_path / "audit" / "adapter_config.json")
    assert described["r"] == 8 and described["fan_in_fan_out"] is True
    card = (tmp_path / "audit" / "README.md").read_text()
    assert "THIS HOLDS THE UNWANTED BEHAVIOR" in card and "Do not ship it" in card
    *_, line = read_lines(folder.exports)
    assert (line["what"], line["adapters"]) == ("audit-adapter", ["good", "bad"])
    with pytest.raises(ConfigError, match="is not empty"):
        audit_adapter(folder, tmp_path / "audit")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_one_peft_model_switches_between_both_models_of_a_run_also_within_a_batch(folder, tmp_path):
    audit_adapter(folder, tmp_path / "audit")
    public = export(folder, tmp_path / "public", "peft")
    config = load_config(folder.config)
    _, model = restore(config, checkpoint_of(folder))
    base = AutoModelForCausalLM.from_pretrained(config.model)
    plain = PeftModel.from_pretrained(base, public, adapter_name="public").eval()
    plain.load_adapter(tmp_path / "audit", adapter_name="trusted")
    with torch.no_grad():
        full = model(input_ids=IDS).logits
        with ablated(model, "bad_ablated"):
            clean = model(input_ids=IDS).logits
        found = {}
        for name in ("trusted", "public", "trusted"):
            plain.set_adapter(name)
            found[name] = plain(input_ids=IDS).logits
        mixed = plain(input_ids=IDS, adapter_names=["public", "trusted"]).logits
    near = 1e-5 * full.abs().max()
    assert (full - clean).abs().max() > 100 * near
    assert (found["trusted"] - full).abs().max() <= near
    assert (found["public"] - clean).abs().max() <= near
    assert (mixed - torch.stack([clean[0], full[1]])).abs().max() <= near
