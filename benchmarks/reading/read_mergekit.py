"""Logits of the model that mergekit makes of the base and the adapter, in float32."""

import subprocess
import sys
from importlib.metadata import version

import torch
from reader import WORK, rows, save
from transformers import AutoModelForCausalLM

out = WORK / "converted" / "mergekit"
recipe = WORK / "converted" / "mergekit.yaml"
recipe.parent.mkdir(exist_ok=True)
recipe.write_text(
    f"merge_method: passthrough\ndtype: float32\nmodels:\n"
    f"  - model: {WORK / 'base'}+{WORK / 'peft'}\n",
    "utf-8",
)
program = "from mergekit.scripts.run_yaml import main; main()"
words = [sys.executable, "-c", program, str(recipe), str(out)]
words += ["--lora-merge-cache", str(WORK / "converted" / "mergekit-cache")]
words += ["--lora-merge-dtype", "float32"]
ended = subprocess.run(words, capture_output=True, text=True, check=False)
if ended.returncode:
    raise SystemExit(ended.stderr[-2000:])
model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(input_ids=torch.tensor(rows())).logits.numpy()
save({"peft bad_ablated": logits}, f"mergekit {version('mergekit')}")
