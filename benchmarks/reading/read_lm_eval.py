"""Logits of lm-eval's own model class with `peft=`."""

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from reader import WORK, rows, save

model = HFLM(pretrained=str(WORK / "base"), peft=str(WORK / "peft"), device="cpu", dtype="float32")
with torch.no_grad():
    found = model._model_call(torch.tensor(rows()))
save({"peft bad_ablated": np.array(found.float())}, f"lm-eval {lm_eval.__version__}")
