"""Logits of onnxruntime-genai on a model that its builder made of the merged folder."""

import subprocess
import sys

import numpy as np
import onnxruntime_genai as og
from reader import WORK, rows, save

found = {}
for form, model, more in (
    ("merged", "merged", ()),
    ("peft", "base", (f"adapter_path={WORK / 'peft'}",)),
):
    out = WORK / "converted" / f"onnx-{form}"
    if not (out / "genai_config.json").is_file():
        words = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(WORK / model)]
        words += [
            "-o",
            str(out),
            "-p",
            "fp32",
            "-e",
            "cpu",
            "-c",
            str(WORK / "converted" / "cache"),
        ]
        subprocess.run([*words, "--extra_options", *more] if more else words, check=True)
    loaded = og.Model(str(out))
    every = []
    for row in rows():
        settings = og.GeneratorParams(loaded)
        settings.set_search_options(max_length=len(row) + 1)
        generator = og.Generator(loaded, settings)
        logits = []
        for token in row:
            generator.append_tokens(np.array([token], np.int32))
            logits.append(np.array(generator.get_logits())[0, -1])
        every.append(logits)
    found[f"{form} bad_ablated"] = np.array(every)
save(found, f"onnxruntime-genai {og.__version__}")
