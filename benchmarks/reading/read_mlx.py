"""Logits of mlx-lm on the CPU."""

import mlx.core as mx
import numpy as np
from mlx_lm import __version__, load
from reader import WORK, rows, save

mx.set_default_device(mx.cpu)
model = load(str(WORK / "merged"))[0]
found = {"merged bad_ablated": np.array(model(mx.array(rows())))}
note = ""
try:
    load(str(WORK / "base"), adapter_path=str(WORK / "peft"))
except Exception as error:
    note = f"it loads no PEFT adapter ({type(error).__name__}: {error})"
save(found, f"mlx-lm {__version__}, mlx {mx.__version__}", note)
