"""Logits of OpenVINO on the merged model, and greedy tokens of openvino-genai with the adapter.

openvino-genai reads `adapter_model.safetensors` alone, without the settings beside it, so the scale
lora_alpha / r is given by hand.
"""

import json

import numpy as np
import openvino
import openvino_genai
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM
from reader import WORK, rows, save
from transformers import AutoTokenizer

NEW = 16
for name in ("base", "merged"):
    out = WORK / "converted" / f"openvino-{name}"
    if not (out / "openvino_tokenizer.xml").is_file():
        settings = {"export": True, "load_in_8bit": False, "compile": False}
        OVModelForCausalLM.from_pretrained(WORK / name, **settings).save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(WORK / "merged")
        both = convert_tokenizer(tokenizer, with_detokenizer=True)
        for part, which in zip(both, ("tokenizer", "detokenizer"), strict=True):
            openvino.save_model(part, out / f"openvino_{which}.xml")
tokens = np.array(rows(), np.int64)
exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
model = openvino.Core().compile_model(
    str(WORK / "converted" / "openvino-merged" / "openvino_model.xml"), "CPU", exact
)
answer = model(
    {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1])[None].repeat(len(tokens), 0),
        "beam_idx": np.arange(len(tokens), dtype=np.int32),
    }
)
found = {"merged bad_ablated": answer["logits"]}
described = json.loads((WORK / "peft" / "adapter_config.json").read_text())
scale = described["lora_alpha"] / described["r"]
adapter = openvino_genai.Adapter(str(WORK / "peft" / "adapter_model.safetensors"))
greedy = openvino_genai.GenerationConfig(max_new_tokens=NEW, ignore_eos=True, do_sample=False)


def written(name: str, scales: float | None) -> np.ndarray:
    """Greedy tokens after each row."""
    more = {}
    if scales is not None:
        more["adapters"] = openvino_genai.AdapterConfig(adapter, scales)
    pipe = openvino_genai.LLMPipeline(str(WORK / "converted" / name), "CPU", **more, **exact)
    answers = []
    for row in tokens:
        one = openvino_genai.TokenizedInputs(
            openvino.Tensor(row[None]), openvino.Tensor(np.ones_like(row[None]))
        )
        answers.append(list(pipe.generate(one, greedy).tokens[0])[:NEW])
    return np.array(answers)


found["tokens merged bad_ablated"] = written("openvino-merged", None)
found["tokens peft bad_ablated"] = written("openvino-base", scale)
unscaled = written("openvino-base", 1.0)
equal = int((unscaled == found["tokens peft bad_ablated"]).sum())
note = (
    f"it does not read lora_alpha / r: {scale:.3f} was given as AdapterConfig's alpha; with the "
    f"default of 1, {equal} of {unscaled.size} tokens are the same"
)
save(found, f"openvino-genai {openvino_genai.__version__}", note)
