"""Initial adapters: an existing LoRA adapter merged into the base, or as a routed one."""

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradroute.config.sections import AdapterConfig
from gradroute.errors import ConfigError
from gradroute.routing.adapters import adapter_state, load_adapter_state
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.routing.shared_weights import merged_once
from gradroute.untrusted.adapter_folder import read_adapter

_NO_MERGE = "It cannot be merged; let an adapter begin from it instead (adapters.<name>.start)."


def merge_start_adapter(model: PreTrainedModel, place: str) -> str:
    """Merge an adapter into the weights of a model in memory: W + s B A, summed in fp32.

    Args:
        model: A base without adapters, in plain numbers; it is changed in place.
        place: The adapter's folder.

    Returns:
        The adapter's identity.

    Raises:
        ConfigError: It is no plain LoRA adapter, or not one of this model; or modules with
            different updates share a weight, so that no merged one stands for both.
        NumericError: A weight of it is not finite.
    """
    file = read_adapter(place, "start_adapter")
    weights = {name: _weight(model, name, pair, place) for name, pair in file.factors.items()}
    factors = merged_once(model, file.factors, f"start_adapter: {place}", _NO_MERGE)
    with torch.no_grad():
        for name, (down, up) in factors.items():
            weight = weights[name]
            update = up.float() @ down.float() * file.scaling
            if isinstance(model.get_submodule(name), Conv1D):
                update = update.T
            exact = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(exact) + update.to(weight.device, exact))
    return file.identity


def put_starts(model: PeftModel, adapters: Mapping[str, AdapterConfig]) -> dict[str, str]:
    """Let adapters of a routed model begin as others ended, where their `start` names one.

    A is taken as it is, and B times the quotient of the two scalings, so that the update is the
    same whatever alpha the adapter has now.

    Args:
        model: A routed model; adapters without a `start` stay as they are.
        adapters: Adapter -> its settings.

    Returns:
        A fact of the run's ground, `starts`: the adapters with the identity of what each started
        from. Nothing where all begin anew.

    Raises:
        ConfigError: A folder holds no plain LoRA adapter, or one of another rank or of other
            modules than the model's.
        NumericError: A weight is not finite.
    """
    found = [
        f"{name} {_load_start(model, name, own.start)}"
        for name, own in adapters.items()
        if own.start
    ]
    return {"starts": "; ".join(found)} if found else {}


def _load_start(model: PeftModel, name: str, place: str) -> str:
    key = f"adapters.{name}.start"
    file = read_adapter(place, key)
    own = {
        adapter_weights(layer, name)[0].shape[0]: layer.scaling[name]
        for layer in lora_layers(model).values()
        if name in layer.lora_A
    }
    ((rank, scaling),) = own.items()
    if file.rank != rank:
        raise ConfigError(
            f"{key}: {place} is of rank {file.rank}, and adapters.{name}.rank is {rank}; give "
            f"adapters.{name}.rank={file.rank}."
        )
    own_names = set(adapter_state(model, name))
    tensors = _under_one_name(model, own_names, file.tensors, f"{key}: {place}")
    _check_modules(own_names, tensors, f"{key}: {place}")
    factor = file.scaling / scaling
    state = {
        tensor_name: tensor.float() * factor if ".lora_B." in tensor_name else tensor
        for tensor_name, tensor in tensors.items()
    }
    try:
        load_adapter_state(model, name, state)
    except ConfigError as error:
        raise ConfigError(f"{key}: {place}: {error}") from error
    return file.identity


def _under_one_name(
    model: PeftModel, own: set[str], tensors: Mapping[str, Tensor], told: str
) -> dict[str, Tensor]:
    """The tensors of a module that a model calls at several depths under one of its names.

    PEFT saves them once for each depth.
    """
    first: dict[int, str] = {}
    paths = dict(model.named_modules(remove_duplicate=False))
    kept = {}
    for name, tensor in tensors.items():
        module, _, part = name.partition(".lora_")
        known = name
        if name not in own and (layer := paths.get(module)) is not None:
            if not first:
                first = {id(one): path for path, one in lora_layers(model).items()}
            known = f"{first.get(id(layer), module)}.lora_{part}"
        if known != name and not torch.equal(tensor, tensors.get(known, tensor)):
            raise ConfigError(f"{told} has one {known} and another {name}, which are one tensor.")
        kept[known] = tensor
    return kept


def _check_modules(own: set[str], tensors: Mapping[str, Tensor], told: str) -> None:
    lacks, unknown = sorted(own - tensors.keys()), sorted(tensors.keys() - own)
    if not lacks and not unknown:
        return
    parts = [
        f"{len(names)} tensors that {what} ({', '.join(_modules(names)[:3])})"
        for names, what in (
            (lacks, "the run's adapters have are missing"),
            (unknown, "they do not have are present"),
        )
        if names
    ]
    raise ConfigError(
        f"{told} adapts other modules than the run's adapters: {'; '.join(parts)}. Set targets and "
        f"layers to the ones it was trained with."
    )


def _modules(names: list[str]) -> list[str]:
    """The modules of some tensors, each once."""
    return list(
        dict.fromkeys(n.removeprefix("base_model.model.").split(".lora_")[0] for n in names)
    )


def _weight(model: PreTrainedModel, name: str, pair: tuple[Tensor, Tensor], place: str) -> Tensor:
    """The weight that an adapter's factors of a module change."""
    told = f"start_adapter: {place}"
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ConfigError(
            f"{told} belongs to another model: this one has no module {name}."
        ) from None
    if not isinstance(module, nn.Linear | Conv1D):
        raise ConfigError(
            f"{told} changes {name}, which is of the kind {type(module).__name__}; only linear "
            "modules can be merged."
        )
    down, up = pair
    given = [up.shape[0], down.shape[1]]
    shape = list(module.weight.shape)
    needed = shape[::-1] if isinstance(module, Conv1D) else shape
    if given != needed:
        raise ConfigError(
            f"{told} belongs to another model: its update of {name} is {given}, the weight "
            f"{needed}."
        )
    return module.weight
