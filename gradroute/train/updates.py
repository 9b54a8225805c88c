"""The optimizer's side of routing: adapters without an update stay, the others are clipped apart.

with routed(model, policy, labels):
    loss_of(model, batch).backward()
apply_updates(optimizer, policy, labels)
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradroute.errors import ConfigError, NumericError
from gradroute.routing.policy import RoutingPolicy
from gradroute.system.devices import to_host
from gradroute.system.sharded import whole


def apply_updates(
    optimizer: torch.optim.Optimizer,
    policy: RoutingPolicy,
    labels: Iterable[str] | Int[Tensor, "..."],
) -> dict[str, float]:
    """Clip each adapter's gradient by itself, step the optimizer, and clear the gradients.

    An adapter that no label of the step updates is skipped: its gradients become None, so that its
    weights, moments and step count stay bit-identical. A gradient of zero would not do. AdamW
    still moves a weight by its momentum and by weight decay (Loshchilov and Hutter 2019, arXiv
    1711.05101, algorithm 2).

    Args:
        optimizer: It has one parameter group per adapter of the policy. Each group names its
            adapter, and may have a largest gradient norm: `{"params": adapter_parameters(model)[
            "good"], "adapter": "good", "clip": 1.0}`. Without `clip`, or with None, the gradient is
            not clipped. A learning-rate scheduler steps after this function, as usual.
        policy: The routing table under which the gradients were computed.
        labels: The labels of the whole step, as names or as ids (positions in `policy.labels`) of
            any shape. With gradient accumulation: those of all micro-batches. On several
            processes: those of all of them.

    Returns:
        Adapter -> L2 norm of its gradient before clipping, for the adapters that were updated.

    Raises:
        ConfigError: A group names no adapter or an unknown one, an adapter has no group, a label
            has no row in the table, or no adapter that the labels update has a gradient.
        NumericError: A gradient is not finite. The optimizer has not acted, and the gradients are
            still there.
    """
    groups = adapter_groups(optimizer, policy)
    updated = policy.updated_by(_names(policy, labels))
    graded = {name for name in updated if any(p.grad is not None for p in groups[name]["params"])}
    if updated and not graded:
        raise ConfigError(
            f"the labels update {', '.join(sorted(updated))}, but none of their weights has a "
            "gradient: call backward() within `routed` before apply_updates."
        )
    norms = clip_gradients(groups, graded)
    numbers = to_host(list(norms.values())) if norms else []
    found = {name: norm for name, [norm] in zip(norms, numbers, strict=True)}
    for name, norm in found.items():
        if not math.isfinite(norm):
            raise NumericError(
                f"the gradient of adapter '{name}' is {norm}. Lower the learning rate, or look at "
                "the batch."
            )
    for name in groups.keys() - graded:
        skip_updates(groups[name])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found


def adapter_groups(
    optimizer: torch.optim.Optimizer, policy: RoutingPolicy
) -> dict[str, dict[str, Any]]:
    """Adapter -> its parameter group, for every adapter of the policy.

    Raises:
        ConfigError: A group names no adapter or an unknown one, or an adapter has no group.
    """
    groups: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(optimizer.param_groups):
        name = group.get("adapter")
        if name not in policy.adapters or name in groups:
            given = "no adapter" if name is None else f"the adapter {name!r}"
            again = " a second time" if name in groups else ""
            raise ConfigError(
                f"parameter group {number} of the optimizer names {given}{again}. Each adapter of "
                f"the routing table ({', '.join(policy.adapters)}) needs one group, as in "
                "{'params': adapter_parameters(model)['good'], 'adapter': 'good', 'clip': 1.0}."
            )
        groups[name] = group
    missing = [name for name in policy.adapters if name not in groups]
    if missing:
        raise ConfigError(
            f"the optimizer has no parameter group for the adapter {missing[0]!r}. Each adapter of "
            f"the routing table ({', '.join(policy.adapters)}) needs one."
        )
    return groups


def clip_gradients(
    groups: Mapping[str, dict[str, Any]], updated: Collection[str]
) -> dict[str, Float[Tensor, ""]]:
    """Scale the gradient of each updated adapter down to the `clip` of its group.

    Each adapter has a norm of its own. With a joint norm, a batch with large gradients for one
    adapter would shrink the step of the others.

    Returns:
        Adapter -> L2 norm of its gradient before clipping, on its device.
    """
    norms: dict[str, Tensor] = {}
    for name, group in groups.items():
        if name in updated:
            limit = group.get("clip")
            norms[name] = whole(
                nn.utils.clip_grad_norm_(group["params"], math.inf if limit is None else limit)
            )
    return norms


def skip_updates(group: dict[str, Any]) -> None:
    """Take the gradients of a parameter group away, so that the optimizer passes it over."""
    for parameter in group["params"]:
        parameter.grad = None


def _names(policy: RoutingPolicy, labels: Iterable[str] | Tensor) -> set[str]:
    """The names among some labels.

    Raises:
        ConfigError: An id is not that of a label of the table.
    """
    if not isinstance(labels, Tensor):
        return set(labels)
    ids = [int(label) for label in labels.unique().tolist()]
    if ids and not 0 <= min(ids) <= max(ids) < len(policy.labels):
        raise ConfigError(
            f"the label ids {ids} must lie between 0 and {len(policy.labels) - 1}, the labels of "
            f"the routing table {policy.name!r} ({', '.join(policy.labels)})."
        )
    return {policy.labels[label] for label in ids}
