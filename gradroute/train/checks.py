"""Checks that stop a step: an adapter that would not learn, and numbers that are not finite.

Each check costs next to nothing while all is well. What explains a failure may cost a few forward
passes, since nothing comes after it.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from gradroute.data.batches import Batch
from gradroute.errors import ConfigError, NumericError
from gradroute.routing.adapters import ablated, adapter_parameters
from gradroute.routing.layers import adapter_weights, routed_layers
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.system.sharded import total_norm, whole

_NAMED = 5  # examples that a message names


class RowLoss(NamedTuple):
    """One example in one step.

    Attributes:
        id: The example's.
        label: Its routing label.
        nll: Summed negative log likelihood of its target tokens, in nats.
        tokens: Target tokens.
        labels: The labels of all positions that gradient can reach; more than one only where
            tokens have labels of their own.
        target_labels: Of them, those of its target tokens.
    """

    id: str
    label: str
    nll: float
    tokens: int
    labels: tuple[str, ...]
    target_labels: tuple[str, ...]


def check_can_learn(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    policy: RoutingPolicy,
) -> None:
    """Before a step: whatever the table updates in it can be updated, every weight of it.

    Stricter than `routed`, which lets a loop of one's own train some weights of an adapter and not
    others: what `train_step` trains, it trains whole.

    Raises:
        ConfigError: An adapter that examples of the step update was switched off or merged by
            PEFT, or has weights that require no gradient or that the optimizer does not have.
    """
    counts: dict[str, int] = {}
    for batch in batches:
        trained = batch.target_counts().tolist()
        for label_ids in itertools.compress(batch.computed_labels(), trained):
            for label in (policy.labels[label_id] for label_id in label_ids):
                counts[label] = counts.get(label, 0) + 1
    own = routed_layers(model)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    cure = f"Call model.base_model.set_adapter({list(own.adapters)})"
    for name in sorted(policy.updated_by(counts)):
        layers = [layer for layer in own.layers.values() if name in layer.lora_A]
        weights = [weight for layer in layers for weight in adapter_weights(layer, name)]
        off = [
            layer
            for layer in layers
            if layer.disable_adapters or layer.merged or name not in layer.active_adapters
        ]
        fixed = sum(not weight.requires_grad for weight in weights)
        strange = sum(id(weight) not in known for weight in weights)
        if off:
            trouble = f"it is switched off or merged in {len(off)} of its {len(layers)} layers"
        elif fixed:
            trouble = f"{fixed} of its {len(weights)} weights do not require a gradient"
        elif strange:
            trouble = f"the optimizer does not have {strange} of its {len(weights)} weights"
        else:
            continue
        way = "Make the optimizer from all adapters" if strange and not (off or fixed) else cure
        raise ConfigError(
            f"the routing table updates the adapter '{name}' in this step "
            f"({_examples(name, counts, policy)}), but {trouble}. {way} before training."
        )


def check_rates(groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Before the optimizer acts: no factor of its update overflows the dtype of the weights.

    Args:
        groups: Adapter -> its parameter group, at the learning rate of this step.

    Raises:
        NumericError: The rate over AdamW's first bias correction, 1 - beta1, or the rate times the
            weight decay is more than the dtype holds.
    """
    for name, group in groups.items():
        largest = torch.finfo(_weights(group)[0].dtype).max
        momentum, *_ = group.get("betas", (0.0,))
        factor = max(1 / (1 - momentum), group["weight_decay"])
        if group["lr"] * factor > largest:
            raise NumericError(
                f"the learning rate {group['lr']:.3g} of adapter '{name}' overflows the dtype of "
                f"its weights, which holds {largest:.2g} at most."
            )


def check_received(
    name: str,
    norm: float,
    parameters: Sequence[nn.Parameter],
    rows: Sequence[RowLoss],
    policy: RoutingPolicy,
) -> None:
    """After the backward pass: a gradient of exactly zero, though there was something to learn.

    An example whose loss is exactly 0 has nothing to teach, and does not count. B at 0, as in the
    first step, is no such case: the gradient of A is 0 then, that of B is not.

    Args:
        name: An adapter that the step updates.
        norm: Of its gradient.
        parameters: Its weights.
        rows: The examples of the step.
        policy: The table.

    Raises:
        ConfigError: It has received nothing.
    """
    if norm > 0.0:
        return
    counts: dict[str, int] = {}
    for row in rows:
        for label in row.target_labels if row.tokens and row.nll != 0.0 else ():
            if policy.table[label][name].update > 0:
                counts[label] = counts.get(label, 0) + 1
    # Squares of tiny numbers are 0 where the numbers are not.
    if not counts or any(p.grad is not None and bool(whole(p.grad).any()) for p in parameters):
        return
    raise ConfigError(
        f"the routing table updates the adapter '{name}' in this step "
        f"({_examples(name, counts, policy)}), but no gradient has reached it. Its layers take no "
        "part in the loss of these examples: look at adapters, targets and layers, and at whatever "
        "has changed the model since the adapters were attached."
    )


def check_loss(
    model: PeftModel, batches: Sequence[Batch], loss: float, rows: Sequence[RowLoss]
) -> None:
    """See that the loss is finite.

    Raises:
        NumericError: It is not; the message names the examples and where it comes from.
    """
    if math.isfinite(loss):
        return
    wrong = [row.id for row in rows if not math.isfinite(row.nll)]
    if wrong:
        where = f"not finite for {_ids(wrong)}"
    else:
        where = f"finite for each of {_ids([row.id for row in rows])}, but not their sum"
    raise NumericError(f"the loss is {loss}, {where}. {_origin(model, batches, wrong)}")


def check_gradient(
    model: PeftModel,
    name: str,
    norm: float,
    rows: Sequence[RowLoss],
    policy: RoutingPolicy,
) -> None:
    """See that the gradient of an adapter is finite.

    Raises:
        NumericError: It is not.
    """
    if math.isfinite(norm):
        return
    ids = [
        row.id for row in rows if any(policy.table[label][name].update > 0 for label in row.labels)
    ]
    broken = _broken_weights(model)
    of = broken or "All weights are finite: the backward pass overflowed."
    raise NumericError(
        f"the gradient of adapter '{name}' is {norm}, though the loss is finite; it comes from "
        f"{_ids(ids)}. {of}"
    )


def check_weights(
    groups: Sequence[Mapping[str, object]], names: Collection[str], norm: float | None = None
) -> None:
    """After the optimizer acted: what it updated is finite.

    Args:
        groups: Of the optimizer.
        names: The adapters that are looked at.
        norm: `weights_norm` of them, where it is known.

    Raises:
        NumericError: It is not; the message names the adapters.
    """
    # A finite norm has finite parts only. It is several times as fast as looking at each.
    if math.isfinite(float(weights_norm(groups, names)) if norm is None else norm):
        return
    touched = {str(g["adapter"]): g for g in groups if g["adapter"] in names}
    wrong = {
        name: group for name, group in touched.items() if not all(map(_finite, _weights(group)))
    }
    if wrong:
        named = ", ".join(f"'{name}' (learning rate {g['lr']:.3g})" for name, g in wrong.items())
        raise NumericError(f"the update has made weights of adapter {named} infinite or NaN.")


def weights_norm(
    groups: Sequence[Mapping[str, object]], names: Collection[str]
) -> Float[Tensor, ""]:
    """Norm of all weights of some adapters, on their device."""
    of = [group for group in groups if group["adapter"] in names]
    return total_norm([w.detach() for group in of for w in _weights(group)])


def _weights(group: Mapping[str, object]) -> Sequence[Tensor]:
    weights = group["params"]
    assert isinstance(weights, list)
    return weights


def _examples(name: str, counts: Mapping[str, int], policy: RoutingPolicy) -> str:
    """How many examples update an adapter, and their labels."""
    own = {label: n for label, n in counts.items() if policy.table[label][name].update > 0}
    total = sum(own.values())
    plural = "s" if total > 1 else ""
    return f"{total} example{plural} labeled {' or '.join(sorted(own))}"


def _ids(ids: Sequence[str]) -> str:
    named = ", ".join(ids[:_NAMED])
    more = f", and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{len(ids)} example{'s' if len(ids) != 1 else ''} ({named}{more})"


def _origin(model: PeftModel, batches: Sequence[Batch], wrong: Sequence[str]) -> str:
    """A sentence on where a loss that is not finite comes from."""
    broken = _broken_weights(model)
    if broken:
        return broken
    adapters = routed_layers(model).adapters
    part = _first_row(batches, wrong)
    nothing = dict.fromkeys(adapters, 0.0)
    if not _finite_under(model, part, nothing):
        return "It comes from the base model alone: it is not finite without any adapter either."
    alone = [name for name in adapters if not _finite_under(model, part, nothing | {name: 1.0})]
    if alone:
        named = " and ".join(f"'{name}'" for name in alone)
        return f"It comes from adapter {named}: its weights are finite, but too large."
    return "All weights are finite, and so are the logits with each adapter alone."


def _broken_weights(model: PeftModel) -> str | None:
    """A sentence on the weights that are not finite: adapters, or the base; None if all are."""
    own = adapter_parameters(model)
    adapters = [name for name, weights in own.items() if not all(map(_finite, weights))]
    if adapters:
        named = " and ".join(f"'{name}'" for name in adapters)
        return f"The weights of adapter {named} are not finite."
    for name, weight in model.named_parameters():
        if not _finite(weight):
            return f"The base model holds weights that are not finite ({name}), no adapter does."
    return None


def _first_row(batches: Sequence[Batch], wrong: Sequence[str]) -> Batch:
    """The first example that is wrong, or else the first of all, as a batch of its own."""
    for batch in batches:
        for at, name in enumerate(batch.ids):
            if name in wrong or not wrong:
                return batch.rows(torch.tensor([at], device=batch.label_ids.device))
    raise ValueError("the examples are not in the batches")


def _finite_under(model: PeftModel, batch: Batch, scales: dict[str, float]) -> bool:
    with torch.no_grad(), ablated(model, AblationMode("looked at", scales)):
        logits = model(**batch.inputs).logits
    return _finite(logits[batch.attention_mask == 1])


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(whole(tensor.detach())).all())
