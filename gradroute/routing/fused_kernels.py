"""Layers that another library patched so that adapters are not computed as modules.

Unsloth and Axolotl put fused kernels into attention and MLP modules. These read A and B of one
adapter from the projections and call no module of PEFT's: Axolotl 0.19 takes the first active
adapter and leaves out the others without a word (`axolotl.kernels.lora.get_lora_parameters`), and
no route is looked at. Unsloth 2026.10 also replaces the forward of whole classes, whose generation
does the same.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from gradroute.errors import ConfigError

_PLACES = ("forward", "apply_qkv", "apply_o")
CURES = {
    "unsloth": "load the model with transformers rather than with Unsloth",
    "unsloth_zoo": "load the model with transformers rather than with Unsloth",
    "axolotl": "set lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel to false",
}
"""Library -> what to do instead of what it does to a model."""


def parents_of(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """The modules that hold these, by path: attention and MLP of every adapted layer."""
    parents = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    return {path: model.get_submodule(path) for path in parents}


def check_not_fused(modules: Mapping[str, nn.Module]) -> None:
    """See that no module runs a kernel that passes adapters by.

    Raises:
        ConfigError: One does; the message names it, the library, and what to change.
    """
    for path, module in modules.items():
        for place in _PLACES:
            function: Any = vars(module).get(place) or getattr(type(module), place, None)
            function = getattr(function, "func", function)  # of a partial
            library, _, _ = str(getattr(function, "__module__", "")).partition(".")
            name = str(getattr(function, "__name__", ""))
            if library not in CURES or (library == "axolotl" and "apply_lora" not in name):
                continue
            raise ConfigError(
                f"{path} runs {name} of {library}, a kernel that reads one adapter's weights and "
                "calls no adapter, so that the others would not be computed and no label would be "
                f"looked at; {CURES[library]}."
            )
