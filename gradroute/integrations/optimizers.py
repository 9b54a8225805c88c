"""The optimizer of a routed trainer: the one that its arguments name, with a group per adapter."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_optimizer import is_optimizer_factory

from gradroute.errors import ConfigError
from gradroute.routing.adapters import AdapterShape, adapter_parameters
from gradroute.train.optimizer import AdapterSettings


def routed_optimizer(
    trainer: Trainer, model: PeftModel, adapters: Mapping[str, AdapterShape]
) -> torch.optim.Optimizer:
    """The trainer's optimizer with one parameter group per adapter.

    One that the trainer holds already, because the user made it, is split by adapter. Learning
    rate, weight decay and largest gradient norm of a group are those of the adapter where it names
    them, else those of the trainer's arguments.

    Raises:
        ConfigError: The user's optimizer holds other weights or lacks some of an adapter's, or the
            optimizer that the arguments name makes its own groups.
    """
    if trainer.optimizer is not None:
        assert isinstance(trainer.optimizer, torch.optim.Optimizer)
        return split_by_adapter(trainer.optimizer, model)
    args = trainer.args
    if trainer.optimizer_cls_and_kwargs is not None:
        kind, settings = trainer.optimizer_cls_and_kwargs
    else:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)  # pyright: ignore
    own_groups = {"params", "model", "optimizer_dict"} & settings.keys()
    if own_groups or is_optimizer_factory(kind):
        raise ConfigError(
            f"the optimizer {args.optim} makes parameter groups of its own, so that one adapter "
            "cannot be skipped without the other. Take one such as adamw_torch."
        )
    groups = [
        {"params": weights, "adapter": name, **group_settings(adapters[name], args)}
        for name, weights in adapter_parameters(model).items()
    ]
    return kind(groups, **settings)


def group_settings(shape: AdapterShape, args: Any) -> dict[str, float | None]:
    """Learning rate, where the adapter names one, weight decay and clip of an adapter's group."""
    limit = args.max_grad_norm or None
    if not isinstance(shape, AdapterSettings):
        return {"weight_decay": args.weight_decay, "clip": limit}
    rate = {} if shape.learning_rate is None else {"lr": shape.learning_rate}
    return {**rate, "weight_decay": shape.weight_decay, "clip": shape.clip}


def split_by_adapter(optimizer: torch.optim.Optimizer, model: PeftModel) -> torch.optim.Optimizer:
    """Give an optimizer one parameter group per adapter and group, in place.

    Raises:
        ConfigError: A group holds a weight that is in no adapter, an adapter's weights are missing
            or in several groups.
    """
    owner = {id(p): name for name, own in adapter_parameters(model).items() for p in own}
    groups: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        for weight in group["params"]:
            if id(weight) not in owner:
                raise ConfigError(
                    "the optimizer holds weights that are in no adapter, which would learn from "
                    "every row. Give it those of adapter_parameters(trainer.model) alone."
                )
        for name in dict.fromkeys(owner[id(weight)] for weight in group["params"]):
            if name in groups:
                raise ConfigError(
                    f"the optimizer has the weights of adapter {name!r} in several groups, which "
                    "cannot be clipped as one. Give each adapter one group."
                )
            own = [weight for weight in group["params"] if owner[id(weight)] == name]
            groups[name] = {"clip": None, **settings, "params": own, "adapter": name}
    held = {id(weight) for group in groups.values() for weight in group["params"]}
    if missing := [owner[key] for key in owner if key not in held]:
        raise ConfigError(
            f"the optimizer lacks weights of adapter {missing[0]!r}. Give it those of "
            "adapter_parameters(trainer.model)."
        )
    optimizer.param_groups[:] = groups.values()
    return optimizer
