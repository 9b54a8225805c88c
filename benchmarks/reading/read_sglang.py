"""What SGLang's own loading code makes of the adapter: B A times its scale, by module.

Only what reads an adapter is imported; the rest of SGLang is a stand-in, and nothing is served.
SGLang joins queries, keys and values, and the two halves of the MLP; they are taken apart again.
"""

import torch
from borrowed import borrow
from reader import WORK, save
from safetensors.torch import load_file
from transformers import AutoConfig

borrow(
    "sglang",
    (
        "sglang.srt.lora.lora",
        "sglang.srt.lora.lora_config",
        "sglang.srt.lora.utils",
        "sglang.srt.layers.utils",
        "sglang.srt.layers.utils.common",
    ),
)

from sglang.srt.lora.lora import LoRAAdapter  # noqa: E402
from sglang.srt.lora.lora_config import LoRAConfig  # noqa: E402

config = LoRAConfig(str(WORK / "peft"))
base = AutoConfig.from_pretrained(WORK / "base")
adapter = LoRAAdapter("good", config, base, None, None)
adapter.initialize_weights_from_tensors(load_file(WORK / "peft" / "adapter_model.safetensors"))
width = base.num_key_value_heads * base.head_dim
sizes = {
    "qkv_proj": {
        "q_proj": base.num_attention_heads * base.head_dim,
        "k_proj": width,
        "v_proj": width,
    },
    "gate_up_proj": {"gate_proj": base.intermediate_size, "up_proj": base.intermediate_size},
}
found = {}
for layer in adapter.layers:
    for name, down in layer.weights.items():
        if ".lora_A" not in name:
            continue
        up = layer.weights[name.replace("lora_A", "lora_B")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        path, _, last = module.rpartition(".")
        parts = sizes.get(last, {last: len(up)})
        downs = torch.split(down, len(down) // len(parts))
        ups = torch.split(up, list(parts.values()))
        for part, a, b in zip(parts, downs, ups, strict=True):
            update = adapter.scaling * b.double() @ a.double()
            found[f"update {path}.{part}"] = update.numpy()
save(found, "sglang 0.5.23", f"scale {adapter.scaling}")
