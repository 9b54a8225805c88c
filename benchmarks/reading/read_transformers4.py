"""Logits of transformers 4 and an earlier PEFT: the adapter on the base, and the merged model."""

import torch
import transformers
from peft import PeftModel, __version__
from reader import WORK, rows, save
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(WORK / "base", torch_dtype="float32")
models = {
    "merged": AutoModelForCausalLM.from_pretrained(WORK / "merged"),
    "peft": PeftModel.from_pretrained(base, str(WORK / "peft")),
}
with torch.no_grad():
    logits = {
        f"{form} bad_ablated": model.eval()(input_ids=torch.tensor(rows())).logits.numpy()
        for form, model in models.items()
    }
save(logits, f"transformers {transformers.__version__}, PEFT {__version__}")
