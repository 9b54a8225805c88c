"""Which modules of a model get adapters: by name, within a range of its transformer layers."""

import warnings
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradroute.errors import ConfigError

ALL_LINEAR = "all-linear"


def find_targets(
    model: nn.Module, targets: str | Sequence[str], layers: str | Sequence[int]
) -> list[str]:
    """The full names of the modules that get adapters, in the model's order.

    Args:
        model: The base model.
        targets: `all-linear` for every linear module but the output head, or the last parts of
            names, as in `["q_proj", "v_proj"]` or `["self_attn.q_proj"]`.
        layers: `last-half`, `all`, or `[first, end)` counted from 0: the transformer layers that
            are looked at. Names with `all` are looked for in the whole model.

    Raises:
        ConfigError: Nothing matches (the message lists what could), or the layers do not exist.
    """
    every = [name for name, _ in model.named_modules()]
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    blocks = _blocks(model, linear)
    chosen = tuple(f"{block}." for block in _chosen(blocks, layers))
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if wanted == [ALL_LINEAR]:
        head = _head(model)
        found = [n for n in linear if n != head and (n.startswith(chosen) or not blocks)]
    else:
        scope = every if layers == "all" else [n for n in every if n.startswith(chosen)]
        found = [n for n in scope if any(_is_called(n, target) for target in wanted)]
        missed = [t for t in wanted if not any(_is_called(n, t) for n in found)]
        if found and missed:
            warnings.warn(
                f"the targets {', '.join(missed)} match no module of layers {_say(layers)} and are "
                "left out.",
                stacklevel=3,
            )
    for name in found:
        if name not in linear:
            raise ConfigError(
                f"the target {name} is of the kind {type(model.get_submodule(name)).__name__}, "
                "which cannot be routed; only linear modules can."
            )
    if not found:
        last_parts = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"targets {', '.join(wanted) or '[]'} in layers {_say(layers)} match no module of "
            f"{type(model).__name__}; use all-linear or names among its linear modules: "
            f"{', '.join(last_parts) or 'there are none'}."
        )
    return found


def _is_linear(module: nn.Module) -> bool:
    # Quantized layers of other libraries are linear in name, not by class.
    return isinstance(module, nn.Linear | Conv1D) or type(module).__name__.endswith("Linear")


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _head(model: nn.Module) -> str | None:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return next((n for n, module in model.named_modules() if module is head), None)


def _blocks(model: nn.Module, linear: Sequence[str]) -> list[str]:
    """The names of the transformer layers: the longest list of modules that all hold linear ones.

    In a model of several parts (vision and text) it is the one inside the text decoder.
    """
    root = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    best: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not any(m is module for m in root.modules()):
            continue
        blocks = [f"{name}.{index}" for index in range(len(module))]
        held = all(any(one.startswith(f"{block}.") for one in linear) for block in blocks)
        if held and len(blocks) > len(best):
            best = blocks
    return best


def _chosen(blocks: Sequence[str], layers: str | Sequence[int]) -> Sequence[str]:
    """The blocks that `layers` names."""
    count = len(blocks)
    if layers == "all":
        return blocks
    if not count:
        raise ConfigError(
            f"layers {_say(layers)} was given, but the model has no list of transformer layers; "
            "use layers all."
        )
    if layers == "last-half":
        return blocks[count // 2 :]
    if not isinstance(layers, str) and len(layers) == 2 and 0 <= layers[0] < layers[1] <= count:
        return blocks[layers[0] : layers[1]]
    raise ConfigError(
        f"layers {_say(layers)} cannot be used; it must be last-half, all, or [first, end) with "
        f"0 <= first < end <= {count}, the number of layers of this model."
    )


def _say(layers: str | Sequence[int]) -> str:
    return layers if isinstance(layers, str) else str(list(layers))
