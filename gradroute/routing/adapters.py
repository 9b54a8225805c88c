"""Adapters on a model, and the active routing: the public face of routing.

model = attach_adapters(base, {"good": AdapterSpec(rank=32), "bad": AdapterSpec(rank=32)})
policy = RoutingPolicy.parse("anchored", ["good", "bad"])
with routed(model, policy, ["bad", "unlabeled", "good", "unlabeled"]):
    model(**batch).loss.backward()
with ablated(model, "bad_ablated"):
    model.generate(**prompt)
"""

import hashlib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import transformers_weight_conversion
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradroute.errors import ConfigError
from gradroute.routing.contexts import ablated, low_rank_products, routed
from gradroute.routing.layers import (
    adapter_weights,
    lora_layers,
    make_routed,
    routable_adapters,
    routed_layers,
)
from gradroute.routing.peft_changes import watch_peft
from gradroute.routing.plain_lora import check_plain_lora
from gradroute.routing.targets import find_targets
from gradroute.system.sharded import like

_PREFIX = "base_model.model."  # PEFT's wrapper around the base model
# What PEFT itself puts into the path of a parameter, besides that prefix.
_OF_PEFT = (
    *("lora_A.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B", "lora_dropout"),
    *("lora_magnitude_vector", "base_layer", "modules_to_save", "original_module"),
)


@runtime_checkable
class AdapterShape(Protocol):
    """What an adapter is made from; `config.AdapterConfig` and `AdapterSpec` are such."""

    @property
    def rank(self) -> int:
        """Inner dimension r."""
        ...

    @property
    def alpha(self) -> float | None:
        """The output is multiplied by alpha / rank; None means 2 * rank."""
        ...

    @property
    def dropout(self) -> float:
        """Share of the adapter's inputs that is set to 0 in training."""
        ...

    @property
    def rslora(self) -> bool:
        """Whether the output is multiplied by alpha / sqrt(rank) instead (rsLoRA)."""
        ...


@dataclass(frozen=True)
class AdapterSpec:
    """Rank, alpha (None: 2 * rank) and dropout of one adapter.

    Its output is multiplied by alpha / rank, with `rslora` by alpha / sqrt(rank) (Kalajdzievski
    2023, arXiv 2312.03732).
    """

    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False


def attach_adapters(
    model: nn.Module,
    adapters: Mapping[str, AdapterShape],
    *,
    targets: str | Sequence[str] = "all-linear",
    layers: str | Sequence[int] = "last-half",
    seed: int = 0,
) -> PeftModel:
    """Give a model one LoRA adapter per name, all active and trainable, the base frozen.

    The result is a PEFT model like any other: it saves, loads and merges as PEFT does. Adapter
    weights are fp32 whatever the base's dtype (fp64 for an fp64 base). B starts at 0; A is drawn
    uniformly as PEFT does, from the seed, the adapter's name and the module's, so that it depends
    on neither the global random state (which is left as it was) nor on the other adapters.

    Args:
        model: The base model; it is changed in place, and its training mode is kept.
        adapters: Name -> rank, alpha, dropout; the order is the order in which outputs are added.
        targets: Which modules get adapters, see `find_targets`.
        layers: In which transformer layers, see `find_targets`.
        seed: Of the initial weights.

    Raises:
        ConfigError: A name or number cannot be used, a name is part of the path of one of the
            model's parameters, nothing matches the targets, a target cannot be routed (it is tied
            to the embedding, say), or the model has adapters already.
    """
    if isinstance(model, PeftModel) or lora_layers(model):
        raise ConfigError(
            "the model has adapters already; hand the base model to attach_adapters, or the model "
            "that PEFT built to route_adapters."
        )
    if not adapters:
        raise ConfigError("no adapter was given; name at least one, as in {good: {}, bad: {}}.")
    for name, shape in adapters.items():
        _check_adapter(name, shape)
    names = find_targets(model, targets, layers)
    _check_paths(model, adapters, names)
    training = model.training
    with torch.random.fork_rng(devices=[]):
        adapted = _attach(model, adapters, names)
    # PEFT's wrapper and layers start in training mode, whatever the model was in.
    adapted.train(training)
    route_adapters(adapted)
    for path, layer in lora_layers(adapted).items():
        for name in layer.lora_A:
            _draw(adapter_weights(layer, name)[0], f"{seed}/{name}/{path.removeprefix(_PREFIX)}")
    return adapted


def route_adapters(model: PeftModel) -> PeftModel:
    """Make a PEFT model with LoRA adapters a routed one, in place, all adapters active, trainable.

    For a model that PEFT or another library built: `PeftModel.from_pretrained` with
    `load_adapter`, or `get_peft_model` with `add_adapter`. Weights stay as they are.

    Raises:
        ConfigError: There is no LoRA adapter, an adapter or layer is of a kind that cannot be
            routed, or weights outside of adapters are trainable, which no table can route.
    """
    check_plain_lora(model.peft_config)
    names = routable_adapters(model)
    _check_names(names)
    _check_paths(model.get_base_model(), names, list(lora_layers(model))[:1])
    _check_nothing_else_learns(model)
    make_routed(model, names)
    watch_peft()
    assert isinstance(model.base_model, BaseTuner)
    model.base_model.set_adapter(names)
    return model


def adapter_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each adapter, in the model's order: A and B of every layer in turn."""
    own = routed_layers(model)
    return {
        name: [
            weight
            for layer in own.layers.values()
            if name in layer.lora_A
            for weight in adapter_weights(layer, name)
            if isinstance(weight, nn.Parameter)
        ]
        for name in own.adapters
    }


def adapter_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights of one adapter under the names that PEFT saves them by; not copied."""
    own = routed_layers(model)
    if name not in own.adapters:
        raise ConfigError(
            f"the model has no adapter {name!r}; its adapters are {', '.join(own.adapters)}."
        )
    state = {}
    for path, layer in own.layers.items():
        if name in layer.lora_A:
            key = f"{_PREFIX}{path.split(_PREFIX, 1)[-1]}"  # whatever the model is wrapped in
            down, up = adapter_weights(layer, name)
            state[f"{key}.lora_A.weight"] = down.detach()
            state[f"{key}.lora_B.weight"] = up.detach()
    return state


def load_adapter_state(model: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Copy weights that `adapter_state` returned into an adapter.

    Raises:
        ConfigError: A tensor is missing, unknown or of another shape; nothing is changed then.
    """
    own = adapter_state(model, name)
    wrong = sorted(own.keys() ^ state.keys())
    if wrong:
        raise ConfigError(
            f"the saved adapter {name!r} does not fit the model: {len(own.keys() - state.keys())} "
            f"tensors are missing and {len(state.keys() - own.keys())} unknown, such as "
            f"{wrong[0]}; attach the adapters with the targets and layers they were saved with."
        )
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise ConfigError(
                f"the saved adapter {name!r} does not fit the model: {key} is "
                f"{list(state[key].shape)}, the model needs {list(tensor.shape)}."
            )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(like(state[key], tensor))


def _attach(
    model: nn.Module, adapters: Mapping[str, AdapterShape], modules: Sequence[str]
) -> PeftModel:
    causal = isinstance(model, PreTrainedModel) and model.can_generate()
    configs = {}
    for name, shape in adapters.items():
        alpha = 2 * shape.rank if shape.alpha is None else shape.alpha
        configs[name] = LoraConfig(
            r=shape.rank,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # pyright: ignore
            lora_dropout=shape.dropout,
            use_rslora=shape.rslora,
            target_modules=list(modules),
            fan_in_fan_out=isinstance(model.get_submodule(modules[0]), Conv1D),
            task_type=TaskType.CAUSAL_LM if causal else None,
        )
    first, *others = configs
    with without_peft_warnings(), _targets_as_given():
        adapted = get_peft_model(model, configs[first], adapter_name=first)  # pyright: ignore
        for name in others:
            adapted.add_adapter(name, configs[name])
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_nothing_else_learns(model: PeftModel) -> None:
    """Refuse norms, biases and whatever else would learn from every example, whatever its label."""
    routed_ones = {
        id(weight)
        for layer in lora_layers(model).values()
        for name in layer.lora_A
        for weight in adapter_weights(layer, name)
    }
    others = [
        n for n, p in model.named_parameters() if p.requires_grad and id(p) not in routed_ones
    ]
    if others:
        raise ConfigError(
            f"{len(others)} trainable tensors are in no adapter ({others[0]}, …): they would learn "
            "from every example, whatever its label, and stay when an adapter is left out. Freeze "
            "them with requires_grad_(False)."
        )


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Without warnings that no user can act on: PEFT calls what newer transformers deprecate."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        # It says that weights may be drawn anew at loading; they are not.
        warnings.filterwarnings("ignore", message="Adapter name '.*' should not be contained in")
        yield


@contextmanager
def _targets_as_given() -> Iterator[None]:
    """Without what PEFT makes of the targets of a mixture of experts.

    In many such families it takes every target called `gate_proj`, `up_proj` or `down_proj` for
    one of experts that transformers 4 kept as modules, and adapts the tensors of all experts in
    its place. Here targets are whole names of modules, those of a dense or shared MLP.
    """
    convert = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = convert


def _draw(weight: Tensor, key: str) -> None:
    """PEFT's initial A (uniform in +-1/sqrt(inputs)), from a generator seeded by the key."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    generator = torch.Generator().manual_seed(number)
    drawn = torch.empty(weight.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    with torch.no_grad():
        weight.copy_(drawn)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name == "default":
            raise ConfigError(
                "an adapter cannot be called 'default': PEFT saves that one in another place than "
                "the others; give it a name of its own, such as good."
            )
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name in ("full", "base"):
            raise ConfigError(
                f"an adapter cannot be called {name!r}; use letters, digits, _ and -, a letter "
                "first, and not full or base, which are modes."
            )
        if name in dir(nn.ModuleDict()):
            raise ConfigError(
                f"an adapter cannot be called {name!r}, which the modules of PyTorch that PEFT "
                f"keeps adapters in have for themselves; give it another name, such as {name}_1."
            )


def _check_paths(base: nn.Module, names: Iterable[str], targets: Sequence[str]) -> None:
    """Refuse names that are a component of a parameter's path.

    When PEFT saves an adapter it drops every tensor whose path has the name of another one for a
    component, wherever that stands; so a file would lack tensors, or hold those of both.
    """
    every = [path for path, _ in (*base.named_parameters(), *base.named_buffers())]
    # What adapters there are have their own names in their paths.
    paths = [f"{_PREFIX}{path.split('.lora_')[0]}" for path in every]
    paths += [
        f"{_PREFIX}{target.removeprefix(_PREFIX)}.{part}"
        for target in targets[:1]
        for part in _OF_PEFT
    ]
    parts = {part: path for path in reversed(paths) for part in path.split(".")}
    for name in names:
        if name in parts:
            other = f"{name}_adapter"
            while other in parts:
                other += "_"
            raise ConfigError(
                f"an adapter cannot be called {name!r}, which is a part of the path "
                f"{parts[name]}: PEFT tells adapters by such parts when it saves them, and would "
                f"leave tensors out or mix adapters. Call it {other}, say."
            )


def _check_adapter(name: str, shape: AdapterShape) -> None:
    _check_names([name])
    if shape.rank < 1:
        raise ConfigError(f"adapter {name!r} has rank {shape.rank}; it must be at least 1.")
    if shape.alpha is not None and not (math.isfinite(shape.alpha) and shape.alpha > 0):
        raise ConfigError(f"adapter {name!r} has alpha {shape.alpha}; it must be above 0.")
    if not 0.0 <= shape.dropout < 1.0:
        raise ConfigError(f"adapter {name!r} has dropout {shape.dropout}; it must be in [0, 1).")


__all__ = [
    "AdapterShape",
    "AdapterSpec",
    "ablated",
    "adapter_parameters",
    "adapter_state",
    "attach_adapters",
    "load_adapter_state",
    "low_rank_products",
    "route_adapters",
    "routed",
]
