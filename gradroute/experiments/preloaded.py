"""What runs need, for the process that others are forked from (see `parallel`).

It leaves no thread and no random number drawn: a run must find torch as a new interpreter finds it.
"""

import json
import os
from contextlib import suppress

from gradroute.config.libraries import NEEDS, Libraries
from gradroute.system.secrets import without_hub_code

without_hub_code()
with Libraries([]):  # no base in few bits
    import peft.tuners.lora
    import peft.utils.transformers_weight_conversion  # noqa: F401
    import torch
    import transformers.generation.utils
    import transformers.models.auto.tokenization_auto
    import transformers.models.llama.modeling_llama  # noqa: F401

    import gradroute.experiments.controls
    import gradroute.run  # noqa: F401
    from gradroute.data.embedded import drawn
    from gradroute.models.base import preload_base

    _needs = json.loads(os.environ.pop(NEEDS, "{}"))
    with suppress(Exception), torch.random.fork_rng(devices=[]):  # the run itself says why not
        for _arguments in _needs.get("draws", ()):
            drawn(*_arguments)
        for _name in _needs.get("bases", ()):
            preload_base(_name)
