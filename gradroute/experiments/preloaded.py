"""What runs need, for the process that others are forked from (see `parallel`).

It starts no thread and computes nothing: a run must find torch as a new interpreter finds it.
"""

from importlib import import_module

from gradroute.config.libraries import Libraries
from gradroute.system.secrets import without_hub_code

_NEEDED = (
    "gradroute.experiments.controls",
    "gradroute.run",
    "peft.tuners.lora",
    "peft.utils.transformers_weight_conversion",
    "transformers.generation.utils",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)

without_hub_code()
with Libraries([]):  # no base in few bits
    for _name in _NEEDED:
        import_module(_name)
