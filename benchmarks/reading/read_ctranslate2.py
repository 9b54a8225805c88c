"""Log-probabilities of CTranslate2, after its converter for transformers."""

import json

import ctranslate2
import numpy as np
from reader import WORK, rows, save

out = WORK / "converted" / "ctranslate2"
ctranslate2.converters.TransformersConverter(str(WORK / "merged")).convert(str(out), force=True)
generator = ctranslate2.Generator(str(out), device="cpu", compute_type="float32", inter_threads=1)
words = json.loads((out / "vocabulary.json").read_text("utf-8"))
texts = [[words[token] for token in row] for row in rows()]
found = generator.forward_batch(texts, return_log_probs=True)
save({"merged bad_ablated": np.array(found)}, f"ctranslate2 {ctranslate2.__version__}")
