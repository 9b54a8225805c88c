"""Another distribution that the loss pulls the model to: that of its base, or of a teacher.

open_reference    configuration -> the reference, if there is one
pull_weights      the micro-batches of a step -> factor of each example
pull_of           one micro-batch -> what the reference says at its targets

`train.kl_good` adds the divergence from the base at the target tokens labeled good to the loss of
the step. It keeps the model near the base on such text, also where the data would teach it more,
and nowhere else: what unlabeled rows teach on other text it neither sees nor undoes.
`train.teacher` puts the divergence from a finished run in the place of the loss. Both are
KL(reference || model), so that the model is to cover whatever the reference may say.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from gradroute.config.run_config import RunConfig, load_config
from gradroute.config.sections import AdapterConfig
from gradroute.data.batches import Batch, TargetGroups
from gradroute.errors import ConfigError
from gradroute.models.checkpoint import adapter_tensors
from gradroute.models.lm_head import run_model
from gradroute.models.trained import finished_checkpoint
from gradroute.routing.adapters import ablated, adapter_state, low_rank_products
from gradroute.routing.frozen_check import run_upper_layers
from gradroute.routing.layers import routed_layers
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.routing.stand_in import standing_in
from gradroute.runs.folder import RunFolder
from gradroute.runs.resume import read_manifest
from gradroute.system.devices import to_device
from gradroute.system.modules import evaluation_mode


@dataclass(frozen=True)
class Reference:
    """A distribution that the loss pulls the model to.

    Attributes:
        factor: On the mean divergence, in the loss.
        alone: The divergence is the whole loss; no token of the data is a target.
        labels: Ids of the labels whose target tokens it is asked at; None for all.
        mode: Which of the model's adapters are on while it is asked.
        adapter: The one whose weights a teacher's stand in for.
        weights: The teacher's, see `stand_in.standing_in`; empty where there is none.
    """

    factor: float
    alone: bool
    labels: frozenset[int] | None
    mode: AblationMode
    adapter: str = ""
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


class Pull(NamedTuple):
    """What a reference says of one micro-batch.

    Attributes:
        reference: Whose answer it is.
        states: What the head is given by it, at the positions of the groups.
        groups: The target tokens it is asked at; positions are those of the micro-batch.
        weights: Factor of each example of the micro-batch, from `pull_weights`.
    """

    reference: Reference
    states: Float[Tensor, "n f"]
    groups: TargetGroups
    weights: Float[Tensor, " e"]


def open_reference(
    config: RunConfig, model: PeftModel, policy: RoutingPolicy, base: str
) -> tuple[Reference | None, dict[str, str]]:
    """The reference that a configuration names, for its model; None where it names none.

    Args:
        config: Of the run.
        model: The run's, with its adapters.
        policy: The run's table.
        base: Identity of the run's base.

    Returns:
        The reference, and a fact of the run, `teacher`: which weights under which mode; nothing
        for the base, which a run records anyway.

    Raises:
        ConfigError: The teacher has another base or adapts other modules, or there is no run of
            that name or no such mode of it.
        MachineError: The teacher is not finished.
    """
    names = routed_layers(model).adapters
    if config.train.teacher is not None:
        return _open_teacher(config.train.teacher, model, names, base)
    if not config.train.kl_good:
        return None, {}
    labels = frozenset(policy.label_ids(["good"]))
    mode = AblationMode.parse("base", names)
    return Reference(config.train.kl_good, alone=False, labels=labels, mode=mode), {}


def pull_weights(
    batches: Sequence[Batch], loss_mean: str, reference: Reference
) -> list[Float[Tensor, " e"]]:
    """Per example, the factor by which its summed divergence enters the mean of the global step.

    As `step.loss_weights`, over the target tokens that the reference is asked at and the examples
    that have such tokens; 0 for the others.

    Args:
        batches: All micro-batches of the step.
        loss_mean: "token" or "example".
        reference: Says at which tokens.
    """
    counts = []
    for batch in batches:
        groups = _asked(batch, reference.labels)
        count = torch.zeros(len(batch.ids), dtype=torch.float64)
        count.index_add_(0, torch.tensor(groups.examples, dtype=torch.long), _sizes(groups))
        counts.append(count)
    examples = sum(int((count > 0).sum()) for count in counts)
    total = sum(float(count.sum()) for count in counts)
    return [
        torch.where(
            count > 0,
            batch.weights / (total if loss_mean == "token" else examples * count),
            0.0,
        )
        for batch, count in zip(batches, counts, strict=True)
    ]


def pull_of(
    reference: Reference,
    model: PeftModel,
    batch: Batch,
    weights: Float[Tensor, " e"],
    head: nn.Linear | None,
) -> Pull | None:
    """Ask the reference about a micro-batch; None where it has no token to be asked at.

    Only the examples with such tokens are run, without gradient, dropout and random draws.

    Args:
        reference: From `open_reference`.
        model: The run's, whose base the reference shares.
        batch: The micro-batch, on the model's device.
        weights: Its part of `pull_weights`.
        head: From `lm_head.plain_head`.
    """
    groups = _asked(batch, reference.labels)
    if not groups.sizes:
        return None
    chosen = sorted(set(groups.examples))
    own = batch if len(chosen) == len(batch.ids) else batch.rows(torch.tensor(chosen))
    with ExitStack() as inside:
        inside.enter_context(torch.no_grad())
        inside.enter_context(evaluation_mode(model))
        inside.enter_context(low_rank_products(model, None))
        if reference.weights:
            inside.enter_context(standing_in(model, reference.adapter, reference.weights))
        inside.enter_context(ablated(model, reference.mode))
        inside.enter_context(run_upper_layers(model, own.states, own.inputs))
        states = run_model(model, own.inputs, head)
    # The same tokens in the same order, whatever the places of the examples.
    at = to_device(_asked(own, reference.labels).positions, states.device)
    device = batch.input_ids.device
    there = groups._replace(
        positions=to_device(groups.positions, device), tokens=to_device(groups.tokens, device)
    )
    return Pull(reference, states.index_select(0, at), there, weights)


def _asked(batch: Batch, labels: frozenset[int] | None) -> TargetGroups:
    """The target tokens with one of these labels; tensors on the CPU."""
    groups = batch.on_cpu.target_groups()
    if labels is None:
        return groups
    keep = [at for at, label in enumerate(groups.labels) if label in labels]
    sizes = list(groups.sizes)
    nothing = groups.positions[:0]
    positions, tokens = (
        torch.cat([nothing, *(part for at, part in enumerate(whole.split(sizes)) if at in keep)])
        for whole in (groups.positions, groups.tokens)
    )
    return TargetGroups(
        positions,
        tokens,
        tuple(groups.sizes[at] for at in keep),
        tuple(groups.examples[at] for at in keep),
        tuple(groups.labels[at] for at in keep),
        tuple(groups.factors[at] for at in keep) if groups.factors else (),
    )


def _sizes(groups: TargetGroups) -> Float[Tensor, " g"]:
    return torch.tensor(groups.sizes, dtype=torch.float64)


def _open_teacher(
    place: str, model: PeftModel, names: Sequence[str], base: str
) -> tuple[Reference, dict[str, str]]:
    """A finished run under a mode, as weights of the model's first adapter."""
    path, _, text = place.rpartition("@")
    folder = RunFolder(Path(path).expanduser())
    told = f"train.teacher: {place}"
    config = load_config(folder.config)
    mode = AblationMode.parse(text, tuple(config.adapters))
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    theirs = str(read_manifest(folder).get("base"))
    if theirs != base:
        raise ConfigError(
            f"{told} was trained on another base ({theirs}) than this run ({base}); name a run of "
            "the same base."
        )
    student = names[0]
    own = adapter_state(model, student)
    scaling = next(
        layer.scaling[student]
        for layer in routed_layers(model).layers.values()
        if student in layer.lora_A
    )
    parts = []
    for name in mode.active:
        factor = mode.scales[name] * _scaling(config.adapters[name]) / scaling
        parts.append((adapter_tensors(checkpoint, name), factor))
    if any(tensors.keys() != own.keys() for tensors, _ in parts):
        raise ConfigError(
            f"{told} adapts other modules than this run; give both the same targets and layers."
        )
    weights = {
        key: _joined([(tensors[key], factor) for tensors, factor in parts], key, tensor)
        for key, tensor in own.items()
        if parts
    }
    scales = {name: float(name == student and bool(parts)) for name in names}
    taught = Reference(
        1.0,
        alone=True,
        labels=None,
        mode=AblationMode("teacher", scales),
        adapter=student,
        weights=weights,
    )
    return taught, {"teacher": f"{mode.name}, checkpoint {checkpoint.identity}"}


def _joined(parts: Sequence[tuple[Tensor, float]], key: str, like: Tensor) -> Tensor:
    """Several adapters' A one below the other, or their B, times its factor, side by side."""
    up = ".lora_B." in key
    tensors = [tensor.to(like) * factor if up else tensor.to(like) for tensor, factor in parts]
    return torch.cat(tensors, dim=1 if up else 0)


def _scaling(adapter: AdapterConfig) -> float:
    """What PEFT multiplies the output of an adapter by."""
    alpha = 2 * adapter.rank if adapter.alpha is None else adapter.alpha
    return alpha / (adapter.rank**0.5 if adapter.rslora else adapter.rank)
