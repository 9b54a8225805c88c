"""What runs need, for the process that others are forked from (see `parallel`).

It starts no thread and computes nothing: a run must find torch as a new interpreter finds it.
"""

from gradroute.config.libraries import Libraries
from gradroute.system.secrets import without_hub_code

without_hub_code()
with Libraries([]):  # no base in few bits
    import peft.tuners.lora
    import peft.utils.transformers_weight_conversion  # noqa: F401
    import transformers.generation.utils
    import transformers.models.auto.tokenization_auto
    import transformers.models.llama.modeling_llama  # noqa: F401

    import gradroute.experiments.controls
    import gradroute.run  # noqa: F401
