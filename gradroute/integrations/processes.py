"""Several processes train together: each knows the labels of all, and adds up the gradients.

Every process keeps the bare model. DistributedDataParallel would wait for weights that no example
of a process reaches, and give an adapter that no label updates a gradient of zeros, which AdamW
turns into a step. So gradients are summed here, once a step, where transformers would clip them.
"""

import hashlib
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer

from gradroute.errors import ConfigError
from gradroute.routing.adapters import adapter_parameters
from gradroute.routing.policy import RoutingPolicy
from gradroute.system.ranks import Ranks
from gradroute.train.exchange import sum_gradients


def ranks_of(trainer: Trainer) -> Ranks:
    """The processes of a trainer; from now on accelerate hands it the model as it is.

    Raises:
        ConfigError: Weights or batches are split in a way that passes the adapters by.
    """
    for split, name in (
        (trainer.is_deepspeed_enabled, "DeepSpeed"),
        (trainer.is_fsdp_enabled, "FSDP"),
        (trainer.accelerator.torch_device_mesh is not None, "a device mesh"),
    ):
        if split:
            raise ConfigError(
                f"the trainer was set up for {name}, which splits weights that a routed trainer "
                "updates adapter by adapter. Start it with `accelerate launch --multi_gpu` or "
                "torchrun, without it."
            )
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            f"one process sees {trainer.args.n_gpu} GPUs, and transformers would copy the model to "
            "each of them for every step, which loses the labels. Start the script with torchrun "
            "or `accelerate launch`, a process for each GPU, or set CUDA_VISIBLE_DEVICES=0."
        )
    accelerator: Any = trainer.accelerator
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, str(accelerator.device))
    if ranks.several:
        accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)
    return ranks


def check_equal_weights(ranks: Ranks, model: PeftModel) -> None:
    """See that every process has begun with the same adapters.

    Raises:
        ConfigError: One has others.
    """
    if not ranks.several:
        return
    digest = hashlib.sha256()
    for weights in adapter_parameters(model).values():
        for weight in weights:
            digest.update(weight.detach().to("cpu", torch.float64).numpy().tobytes())
    ranks.check_equal({"adapter weights": digest.hexdigest()})


def share_step(
    ranks: Ranks,
    labels: Collection[str],
    groups: Mapping[str, Mapping[str, Any]],
    policy: RoutingPolicy,
) -> set[str]:
    """Exchange what the processes found in a step.

    Args:
        ranks: The processes.
        labels: Of the examples of this one.
        groups: Adapter -> its group of the optimizer.
        policy: The routing table.

    Returns:
        The adapters that the step updates: a label of some process says so, and some process has a
        gradient. Each of their weights has the mean of the gradients over all processes.
    """
    found = {n for n in groups if any(p.grad is not None for p in groups[n]["params"])}
    if not ranks.several:
        return policy.updated_by(labels) & found
    told = ranks.numbers(
        [float(one in labels) for one in policy.labels] + [float(one in found) for one in groups]
    )
    count = len(policy.labels)
    everybody = [one for one, n in zip(policy.labels, told[:count], strict=True) if n]
    anybody = [one for one, n in zip(groups, told[count:], strict=True) if n]
    updated = policy.updated_by(everybody) & {*anybody}
    weights = [p for name in groups if name in updated for p in groups[name]["params"]]
    sum_gradients(ranks, weights)
    for weight in weights:
        assert weight.grad is not None
        weight.grad /= ranks.size
    return updated
