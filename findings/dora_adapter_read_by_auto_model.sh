#!/usr/bin/env bash
# transformers 5.23.0 reads a DoRA adapter of PEFT 0.21.2 without its magnitudes
#
# Where two meet: an adapter folder that PEFT 0.21.2 saved with `use_dora=True`, and the loading of
# adapters in transformers 5.23.0 (AutoModelForCausalLM.from_pretrained on that folder).
# Guess, written down before it was run: the folder gives the same logits there as by
# PeftModel.from_pretrained, whatever the adapter has. Ten kinds were tried (patterns of rank and
# alpha, rsLoRA, token rows, whole modules, biases, parameters, ...).
# Seen: it holds for nine of them. Of a DoRA adapter, A and B are read but the trained magnitudes
# are not: they keep the norms of the base weights they start with. A report names the keys as
# unexpected and missing, and loading goes on. Saving the model again writes the untrained ones.
# Output: "trained" for PeftModel, "norms of the base" for AutoModel and for what it saves again.
# Source: PEFT saves that vector without a `.weight` at its end; LoraModel in tuners/lora/model.py
# puts it back for PeftModel. load_adapter in integrations/peft.py of transformers goes another way:
# build_peft_weight_mapping in PEFT gives it renamings that only put the adapter's name behind.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > look.py <<'PYTHON'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained("base")
recipe = LoraConfig(target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
trained = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), recipe)
with torch.no_grad():
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.add_(0.5)
trained.save_pretrained("adapter")


def layer(model):
    return next(part for name, part in model.named_modules() if name.endswith("q_proj"))


def whose(magnitudes):
    if torch.equal(magnitudes, layer(trained).lora_magnitude_vector["default"].weight):
        return "trained"
    norms = layer(trained).base_layer.weight.norm(dim=1)
    return "norms of the base" if torch.allclose(magnitudes, norms) else "others"


by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")
by_transformers = AutoModelForCausalLM.from_pretrained("adapter")
for name, model in (("PeftModel", by_peft), ("AutoModel", by_transformers)):
    same = all(
        torch.equal(part["default"].weight, mine["default"].weight)
        for part, mine in (
            (layer(model).lora_A, layer(trained).lora_A),
            (layer(model).lora_B, layer(trained).lora_B),
        )
    )
    print(name, "A and B trained:", same, "- magnitudes:", end=" ")
    print(whose(layer(model).lora_magnitude_vector["default"].weight))
by_transformers.save_pretrained("again")
saved = load_file("again/adapter_model.safetensors")
print("saved again:", whose(next(saved[key] for key in saved if "magnitude" in key)))
PYTHON
HF_HUB_OFFLINE=1 env/bin/python look.py 2> warnings.txt | tee seen.txt
grep -q UNEXPECTED warnings.txt
diff seen.txt - <<'SEEN'
PeftModel A and B trained: True - magnitudes: trained
AutoModel A and B trained: True - magnitudes: norms of the base
saved again: norms of the base
SEEN
