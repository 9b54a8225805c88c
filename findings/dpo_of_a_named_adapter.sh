#!/usr/bin/env bash
# TRL 1.16.0: DPO of a PeftModel wants an adapter called "default" and saves a second one with it
#
# Where two meet: DPOTrainer of TRL 1.16.0 and a PeftModel of PEFT 0.21.2, whose adapter has the name
# its maker gave it (`adapter_name=` of get_peft_model and of PeftModel.from_pretrained).
# Guess, written down before it was run: an adapter called "policy" is trained like one called
# "default", and save_model writes the trained adapter only.
# Seen: with "policy", building the trainer ends with KeyError 'default'. With "default", save_model
# also writes a folder "ref" with a full adapter: the copy of the start that stood in as the
# reference model.
# Output: the error, the names of the saved adapters, and which of them has been trained.
# Source: the constructor of DPOTrainer in trl/trainer/dpo_trainer.py takes the config of the adapter
# "default" and adds an adapter "ref" to the user's model; save_pretrained of PEFT writes each adapter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 datasets==5.2.0 \
    accelerate==1.15.0
cat > look.py <<'PYTHON'
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("_ . a b c d".split())}, "_"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="_", eos_token=".")
rows = Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}] * 4)
sizes = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}


def trainer_for(adapter):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, **special, num_attention_heads=2))
    recipe = LoraConfig(
        target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, recipe, adapter_name=adapter)
    settings = DPOConfig("out", max_steps=2, learning_rate=0.1, report_to=[], use_cpu=True, bf16=False)
    return DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)


try:
    trainer_for("policy")
except KeyError as error:
    print("policy: KeyError", error)
trainer = trainer_for("default")
trainer.model.save_pretrained("start", selected_adapters=["default"])
trainer.train()
trainer.save_model("end")
start = load_file("start/adapter_model.safetensors")
for path in sorted(Path("end").rglob("adapter_model.safetensors")):
    saved = load_file(path)
    same = all(torch.equal(saved[key], start[key]) for key in start)
    print("default:", path, "as at the start" if same else "trained")
PYTHON
HF_HUB_OFFLINE=1 env/bin/python look.py 2> warnings.txt > printed.txt
grep -E '^(policy|default):' printed.txt | tee seen.txt
diff seen.txt - <<'SEEN'
policy: KeyError 'default'
default: end/adapter_model.safetensors trained
default: end/ref/adapter_model.safetensors as at the start
SEEN
