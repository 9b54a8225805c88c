"""Sharding of a routed model over the ranks of a run: FSDP2, a unit per decoder layer.

The base of a layer and the adapters on it are one unit. It is gathered when the layer is called,
forward and backward, and the gradients of its adapters are summed over the ranks on the way back.
Never a unit per LoRA matrix: its hooks would take the routed layers off their fast path. What lies
outside the decoder layers (embedding, last norm, head) stays whole on every rank.
"""

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from gradroute.errors import ConfigError
from gradroute.routing.layers import adapter_weights, routed_layers
from gradroute.routing.targets import transformer_layers
from gradroute.system.ranks import Ranks
from gradroute.system.sharded import open_lone_group


def shard(model: PeftModel, ranks: Ranks, device: torch.device) -> None:
    """Spread the decoder layers of a routed model over the ranks, in place, and move it there.

    Parameters become `DTensor`s: make the optimizer afterwards, and read weights through
    `sharded.whole`, which puts them together.

    Args:
        model: On the CPU, or on the device.
        ranks: The processes.
        device: Where this rank computes.

    Raises:
        ConfigError: The model has no decoder layers, or adapters outside of them.
    """
    base = model.get_base_model()
    names = transformer_layers(base)
    layers = [base.get_submodule(name) for name in names]
    kind = type(base).__name__
    if not layers:
        raise ConfigError(
            f"train.parallel=fsdp2: no decoder layers are found in the model {kind}; use "
            "train.parallel=ddp."
        )
    inside = {id(p) for layer in layers for p in layer.parameters()}
    own = routed_layers(model)
    for path, layer in own.layers.items():
        weights = [w for name in layer.lora_A for w in adapter_weights(layer, name)]
        if any(id(weight) not in inside for weight in weights):
            raise ConfigError(
                f"train.parallel=fsdp2: {path} has an adapter and lies outside of the decoder "
                "layers, which alone are sharded; leave it out of the targets, or use "
                "train.parallel=ddp."
            )
    open_lone_group()
    mesh = init_device_mesh(device.type, (ranks.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root gathers the next layer while one computes. It has nothing of its own.
    root = base.get_submodule(names[0].rpartition(".")[0].rpartition(".")[0])
    outside = {p for p in root.parameters() if id(p) not in inside}
    fully_shard(root, mesh=mesh, reshard_after_forward=True, ignored_params=outside)
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is not None and id(weight) not in inside and not isinstance(weight, DTensor):
                weight.data = weight.data.to(device)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    for module in units(model):
        # gloo has no sum with a factor, which a factor alone would ask for.
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)  # sums: the loss is already a mean over all ranks


def units(model: nn.Module) -> list[FSDPModule]:
    """The sharded modules of a model."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
