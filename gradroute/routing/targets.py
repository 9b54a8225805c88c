"""Target modules of adapters: by place or by name, within some transformer layers."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import (
    _check_lora_target_modules_mamba,  # pyright: ignore[reportPrivateUsage]
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradroute.errors import ConfigError

ALL_LINEAR = "all-linear"
ATTENTION = "attention"
MLP = "mlp"
PLACES = (ALL_LINEAR, ATTENTION, MLP)
"""Targets that stand for a place in a transformer layer; every other one is a name."""

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_EXPERTS = re.compile(
    r"(^|\.)experts(\.|$)"
)  # not `shared_experts`, which see every token in order
_ROUTER = re.compile(r"gate|router", re.IGNORECASE)


@dataclass(frozen=True)
class _Found:
    """What targets match.

    Attributes:
        names: The modules, in the model's order.
        missed: Targets that match nothing.
        blocks: The transformer layers that were looked at.
        left_out: What a place holds that gets no adapter, by its kind.
    """

    names: list[str]
    missed: list[str]
    blocks: Sequence[str]
    left_out: dict[str, list[str]]


def find_targets(
    model: nn.Module, targets: str | Sequence[str], layers: str | Sequence[int]
) -> list[str]:
    """The full names of the modules that get adapters, in the model's order.

    Places are told by the names of modules: `attention` is every linear module below one of a
    transformer layer that is called attn or attention in some form (self_attn, attn, attention,
    self_attention); `mlp` is the layer's other linear modules; `all-linear` is both. None of them
    takes the output head, or in a mixture of experts the experts and their router.

    Args:
        model: The base model.
        targets: `all-linear`, `attention`, `mlp`, or the last parts of names, as in
            `["q_proj", "v_proj"]` or `["self_attn.q_proj"]`.
        layers: `last-half`, `all`, or `[first, end)` counted from 0: the transformer layers that
            are looked at. Names with `all` are looked for in the whole model.

    Raises:
        ConfigError: Nothing matches (the message lists what could), a match cannot be routed, or
            the layers do not exist.
    """
    found = _find(model, targets, layers)
    if found.names and found.missed:
        warnings.warn(
            f"the targets {', '.join(found.missed)} match no module of layers {_say(layers)} and "
            "are left out.",
            stacklevel=3,
        )
    for name in found.names:
        _check_target(model, name)
    if not found.names:
        last_parts = sorted({name.rsplit(".", 1)[-1] for name in _linear(model)})
        wanted = [targets] if isinstance(targets, str) else targets
        raise ConfigError(
            f"targets {', '.join(wanted) or '[]'} in layers {_say(layers)} match no module of "
            f"{type(model).__name__}; use {', '.join(PLACES)} or names among its linear modules: "
            f"{', '.join(last_parts) or 'there are none'}."
        )
    return found.names


def describe_targets(
    model: nn.Module, targets: str | Sequence[str], layers: str | Sequence[int]
) -> str:
    """What gets adapters and what does not, in words; arguments as for `find_targets`."""
    found = _find(model, targets, layers)
    numbers = [int(block.rsplit(".", 1)[-1]) for block in found.blocks]
    where = ""
    if numbers:
        first, last = numbers[0], numbers[-1]
        where = f" of layer {first}" if first == last else f" of layers {first} to {last}"
    text = f"adapters on {len(found.names)} linear modules{where}"
    told = [
        f"{len(names)} {kind} ({', '.join(_inner(names, found.blocks))})"
        for kind, names in found.left_out.items()
        if names
    ]
    return f"{text}; left out: {', '.join(told)}" if told else text


def transformer_layers(model: nn.Module) -> list[str]:
    """The names of a model's transformer layers, in order; none where there is no list of them."""
    return _blocks(model, _linear(model))


def is_tied(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module's weight is the model's embedding too."""
    if not isinstance(model, PreTrainedModel):
        return False
    # By identity of the parameter: tied weights are one object, equal ones may not be tied.
    embedding = model.get_input_embeddings()
    own = {id(weight) for weight in module.parameters(recurse=False)}
    return embedding is not module and any(id(w) in own for w in embedding.parameters())


def refusal(model: nn.Module, name: str) -> str:
    """Why PEFT gives no adapter to a linear module of a model; nothing where it does.

    PEFT knows modules by their class, and in some families by their name: there the model may read
    the weight rather than run the module, and would not see an adapter on it.

    Args:
        model: The base model.
        name: Of one of its linear modules.
    """
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear | Conv1D) and _is_own(module):
        return f"PEFT does not know its kind, {type(module).__name__}"
    if isinstance(module, nn.Linear) and _is_own(module) and not _is_plain(module):
        return f"its kind, {type(module).__name__}, computes something else than a linear layer"
    # PEFT's own check (private, and where it lists families), so that the list is its release's.
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rsplit(".", 1)[-1])
    except ValueError:
        kind = model.config.model_type if isinstance(model, PreTrainedModel) else ""
        return f"PEFT refuses it in a model of the type {kind}"
    return ""


def _is_own(module: nn.Module) -> bool:
    """Whether a module's class comes with the code of a model, not with a way to quantize it."""
    return ".models." in type(module).__module__


def _is_plain(module: nn.Linear) -> bool:
    """Whether a linear module of a class of its own gives `outputs` numbers for `inputs`."""
    given = torch.zeros(
        1, 1, module.in_features, dtype=module.weight.dtype, device=module.weight.device
    )
    try:
        with torch.no_grad():
            return module(given).shape == (1, 1, module.out_features)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False


def is_expert(name: str) -> bool:
    """Whether a module is one of the experts of a mixture, by its name."""
    return _EXPERTS.search(name) is not None


def _find(model: nn.Module, targets: str | Sequence[str], layers: str | Sequence[int]) -> _Found:
    every = [name for name, _ in model.named_modules()]
    linear = _linear(model)
    blocks = _blocks(model, linear)
    chosen = _chosen(blocks, layers)
    starts = tuple(f"{block}." for block in chosen)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    places = [target for target in wanted if target in PLACES]
    # The head is outside of the layers; in a model without a list of layers it is left out here.
    head = _head(model)
    inside = [n for n in linear if n != head and (n.startswith(starts) or not blocks)]
    left_out = _left_out(model, chosen) if {ALL_LINEAR, MLP}.intersection(places) else {}
    passed_over = {name for names in left_out.values() for name in names}
    own = [name for name in inside if name not in passed_over]
    by_place = {
        place: [n for n in own if place in (ALL_LINEAR, _place(model, n, chosen))]
        for place in places
    }
    refused = {n for names in by_place.values() for n in names if refusal(model, n)}
    if refused:
        left_out["linear modules that PEFT does not adapt"] = [n for n in own if n in refused]
    scope = every if layers == "all" else [n for n in every if n.startswith(starts)]
    matches: dict[str, list[str]] = {}
    for target in wanted:
        if target in PLACES:
            matches[target] = [n for n in by_place[target] if n not in refused]
        else:
            matches[target] = [n for n in scope if n == target or n.endswith(f".{target}")]
    taken = {name for names in matches.values() for name in names}
    missed = [target for target, names in matches.items() if not names]
    return _Found([n for n in every if n in taken], missed, chosen, left_out)


def _check_target(model: nn.Module, name: str) -> None:
    module = model.get_submodule(name)
    if not _is_linear(module):
        raise ConfigError(
            f"the target {name} is of the kind {type(module).__name__}, which cannot be routed; "
            "only linear modules can."
        )
    if is_tied(model, module):
        raise ConfigError(
            f"the target {name} is tied to the embedding, so that an adapter on it alone would "
            "untie the two when it is merged; leave it out of the targets."
        )
    if reason := refusal(model, name):
        raise ConfigError(
            f"the target {name} cannot get an adapter: {reason}; leave it out of the targets."
        )
    if is_expert(name):
        raise ConfigError(
            f"the target {name} is an expert of a mixture, which sees tokens in an order of its "
            "own, where no label can follow; leave it out of the targets."
        )


def _left_out(model: nn.Module, blocks: Sequence[str]) -> dict[str, list[str]]:
    """What mixtures of experts hold in some layers: experts, which cannot be routed, and routers.

    An adapter on a router would change which experts a token is sent to; that is left alone.
    """
    starts = tuple(f"{block}." for block in blocks)
    holders = [
        name
        for name, module in model.named_modules()
        if name.startswith(starts)
        and (name.endswith(".experts") or type(module).__name__.endswith("Experts"))
    ]
    mixtures = {name.rpartition(".")[0] for name in holders}
    tensors, linear, routers = [], [], []
    for name, module in model.named_modules():
        if any(name == holder or name.startswith(f"{holder}.") for holder in holders):
            own = list(module.named_parameters(recurse=False))
            if _is_linear(module):
                linear.append(name)
            else:
                tensors += [f"{name}.{key}" for key, weight in own if weight.dim() == 3]
        elif any(_is_router(name, module, mixture) for mixture in mixtures):
            routers.append(name)
    return {"expert tensors": tensors, "linear modules of experts": linear, "routers": routers}


def _is_router(name: str, module: nn.Module, mixture: str) -> bool:
    """Whether a module of a mixture scores its experts: called gate or router, with a matrix."""
    if not name.startswith(f"{mixture}."):
        return False
    matrix = any(weight.dim() == 2 for weight in module.parameters(recurse=False))
    return matrix and _ROUTER.search(name.removeprefix(f"{mixture}.").split(".")[0]) is not None


def _place(model: nn.Module, name: str, blocks: Sequence[str]) -> str:
    """Whether a linear module belongs to attention or to the rest of its layer.

    Told by the names of what holds it within the layer; in hybrids these are all called the same
    (mixer), and their classes are not.
    """
    block = next((block for block in blocks if name.startswith(f"{block}.")), "")
    inner = name.removeprefix(block).strip(".").split(".")[:-1]
    start = block.split(".") if block else []
    classes = [
        type(model.get_submodule(".".join([*start, *inner[: at + 1]]))).__name__
        for at in range(len(inner))
    ]
    return ATTENTION if any(_ATTENTION.search(part) for part in [*inner, *classes]) else MLP


def _inner(names: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """The names without their layers, each once."""
    inner = []
    for name in names:
        block = next((block for block in blocks if name.startswith(f"{block}.")), "")
        inner.append(name.removeprefix(f"{block}."))
    return list(dict.fromkeys(inner))


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if _is_linear(module)]


def _is_linear(module: nn.Module) -> bool:
    # Quantized layers of other libraries are linear in name, not by class.
    return isinstance(module, nn.Linear | Conv1D) or type(module).__name__.endswith("Linear")


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
