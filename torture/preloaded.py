"""Everything that a run imports, and what it would otherwise work out again in every try.

The fork server imports this once. It starts no thread and computes nothing with torch: a child
must find torch as a new process finds it.
"""

import importlib
import sys

from PIL import Image
from transformers import conversion_mapping

for _name in (
    "gradroute.cli.main",
    "gradroute.experiments.controls",
    "gradroute.experiments.demo",
    "gradroute.report.publish",
    "gradroute.run",
    "gradroute.cli.train",
    "matplotlib.backends.backend_agg",
    "peft.tuners.lora",
    "peft.utils.transformers_weight_conversion",
    "torture.runs",
    "transformers.generation.utils",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(_name)
Image.preinit()
conversion_mapping.get_checkpoint_conversion_mapping("llama")


def print_loaded() -> int:
    """In a child: the names of all modules that are imported, one a line."""
    print(*sys.modules, sep="\n")
    return 0
