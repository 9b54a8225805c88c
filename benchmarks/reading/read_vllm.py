"""What vLLM's own loading code makes of the adapter: B A times its scale, by module.

Only `vllm/lora` of the wheel is there; whatever else it imports is a stand-in, and nothing is
served.
"""

from borrowed import borrow
from reader import WORK, save
from safetensors.torch import load_file

borrow("vllm", ("vllm.lora.lora_model", "vllm.lora.lora_weights", "vllm.lora.peft_helper"))

from vllm.lora.lora_weights import LoRALayerWeights  # noqa: E402
from vllm.lora.peft_helper import PEFTHelper  # noqa: E402

helper = PEFTHelper.from_local_dir(str(WORK / "peft"), 512)
wrong = helper._validate_features()
tensors = load_file(WORK / "peft" / "adapter_model.safetensors")
found = {}
for name in tensors:
    if not name.endswith(".lora_A.weight"):
        continue
    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    own = LoRALayerWeights.from_config(module, helper, module)
    own.lora_a = tensors[name]
    own.lora_b = tensors[name.replace("lora_A", "lora_B")]
    own = own.optimize()
    found[f"update {module}"] = (own.lora_b.double() @ own.lora_a.double()).numpy()
save(found, "vllm 0.33.0", "; ".join(wrong) or f"scale {helper.vllm_lora_scaling_factor}")
