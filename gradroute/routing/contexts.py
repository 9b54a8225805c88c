"""The two context managers of routing: `routed` for training, `ablated` for evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.layers import RoutedLayers, adapter_weights, outer_modules, routed_layers
from gradroute.routing.peft_changes import check_untouched
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.routing.scopes import AblatedScope, CapturingCheckpoint, RoutedScope, Scope

_CHECKPOINT_FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps it


@contextmanager
def routed(
    model: nn.Module,
    policy: RoutingPolicy,
    labels: Sequence[str] | Int[Tensor, " b"] | Int[Tensor, "b t"],
) -> Iterator[RoutedScope]:
    """Route the gradients of the batches that run inside, forward and backward.

    The innermost scope is in force; when it ends, by an exception too, the outer one is again.
    Keep the backward pass inside. (It is right outside as well: routes are fixed in the forward
    pass, also those of layers that transformers checkpoints. Checkpointing written by hand reads
    them when it recomputes.) A model has one scope at a time, whichever thread runs it.

    Args:
        model: A model of `attach_adapters` or `route_adapters`, wrapped or not.
        policy: The table.
        labels: One label per example: names, or ids (positions in `policy.labels`) [b]. Or ids
            per position [b t]: position t carries the label of the target that it predicts, which
            is the token after it.

    Yields:
        The scope. Its `ran` says, after a forward pass, which routes the layers were given.

    Raises:
        ConfigError: A label has no row, the table is for other adapters than the model's, or
            other code has switched off, disabled, merged, deleted, hot-swapped or replaced an
            adapter since it was routed, or both weights of an adapter that the labels update are
            fixed in some layer. (One of the two may be, for a loop that trains only B, say.)
            Inside: labels that do not fit the batch.
    """
    with _routed(model, policy, labels, finite=False) as scope:
        yield scope


@contextmanager
def routed_finite(
    model: nn.Module,
    policy: RoutingPolicy,
    labels: Sequence[str] | Int[Tensor, " b"] | Int[Tensor, "b t"],
) -> Iterator[RoutedScope]:
    """`routed`, faster, for a caller that has checked that all adapter weights are finite.

    An adapter may then be computed where the table ablates it, and set to 0 there. Nothing is
    checked here, since a check would wait for the device in every step. If a weight is not finite,
    examples that ablate its adapter may get NaN for outputs and gradients, but no wrong number.
    For `train_step` the check is made elsewhere: adapters are drawn or loaded finite, and
    `check_weights` looks at them after every update.

    Args:
        model: As for `routed`, and so are the next two.
        policy: See there.
        labels: See there.

    Yields:
        The scope.

    Raises:
        ConfigError: As for `routed`.
    """
    with _routed(model, policy, labels, finite=True) as scope:
        yield scope


@contextmanager
def _routed(
    model: nn.Module,
    policy: RoutingPolicy,
    labels: Sequence[str] | Int[Tensor, " b"] | Int[Tensor, "b t"],
    *,
    finite: bool,
) -> Iterator[RoutedScope]:
    own = routed_layers(model)
    check_untouched(own)
    if set(policy.adapters) != set(own.adapters):
        raise ConfigError(
            f"the routing table {policy.name!r} is for the adapters {', '.join(policy.adapters)}, "
            f"the model has {', '.join(own.adapters)}; the table needs exactly those."
        )
    scope = RoutedScope(policy, _label_ids(policy, labels), finite)
    learning = policy.updated_by(policy.labels[i] for i in scope.present)
    _check_switched_on(own, on=set(policy.adapters), learning=learning)
    with _in_force(model, own, scope):
        yield scope


@contextmanager
def ablated(
    model: nn.Module,
    mode: AblationMode | str | Sequence[AblationMode | str],
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Run with some adapters off or rescaled; an adapter at scale 0 is not computed at all.

    The result equals, bit for bit, that of a model that never had the adapters at 0. The innermost
    scope is in force. In training mode the adapters that are on learn from every row.

    Args:
        model: A model of `attach_adapters` or `route_adapters`, wrapped or not.
        mode: One mode for all rows. Or several: the rows of every batch are taken as that many
            contiguous groups, one mode each, and each adapter runs on its rows only.
        rows: How many rows each mode's group has, 0 for none; None for equal groups.

    Raises:
        ConfigError: A mode cannot be read or lacks an adapter of the model, or an adapter that
            it leaves on was switched off by PEFT's `set_adapter`, or other code has disabled,
            merged, deleted, hot-swapped or replaced one since it was routed, or `rows` does not
            fit the modes. Inside: a batch whose rows do not divide into the groups.
    """
    own = routed_layers(model)
    check_untouched(own)
    given = [mode] if isinstance(mode, str | AblationMode) else list(mode)
    modes = [AblationMode.parse(m, own.adapters) if isinstance(m, str) else m for m in given]
    if not modes:
        raise ConfigError("no ablation mode was given; give at least one, such as full.")
    if rows is not None and (len(rows) != len(modes) or min(rows) < 0 or not sum(rows)):
        raise ConfigError(
            f"the groups of {', '.join(map(str, rows)) or 'no'} rows do not fit {len(modes)} "
            "ablation modes; give each mode its number of rows, and at least one row in all."
        )
    for one in modes:
        if set(one.scales) != set(own.adapters):
            raise ConfigError(
                f"the ablation mode {one.name!r} has scales for {', '.join(one.scales) or 'none'}, "
                f"the model has the adapters {', '.join(own.adapters)}; it needs one for each."
            )
    _check_switched_on(own, on={name for one in modes for name in one.active}, learning=set())
    with _in_force(model, own, AblatedScope(modes, rows)):
        yield


@contextmanager
def low_rank_products(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the products with A and B are computed in this dtype; None leaves them as they are.

    The weights, their gradients and what the optimizer keeps stay in their own (fp32): A, B and the
    activations are rounded for each product, and what comes out is added to the base's output in
    the wider of the two dtypes. Keep the backward pass inside.

    Args:
        model: A model of `attach_adapters` or `route_adapters`, wrapped or not.
        dtype: Such as `torch.bfloat16`.
    """
    state = routed_layers(model).state
    before, state.products = state.products, dtype
    try:
        yield
    finally:
        state.products = before


@contextmanager
def _in_force(model: nn.Module, model_layers: RoutedLayers, scope: Scope) -> Iterator[None]:
    # Looked for in every scope, since transformers puts the function there when checkpointing is
    # switched on, which may be later than routing. It stays wrapped: outside of scopes that changes
    # nothing.
    for _, module in outer_modules(model):
        checkpoint = vars(module).get(_CHECKPOINT_FUNCTION)
        if checkpoint is not None and not isinstance(checkpoint, CapturingCheckpoint):
            setattr(
                module, _CHECKPOINT_FUNCTION, CapturingCheckpoint(checkpoint, model_layers.state)
            )
    before, model_layers.state.scope = model_layers.state.scope, scope
    try:
        yield
    finally:
        model_layers.state.scope = before


def _label_ids(
    policy: RoutingPolicy, labels: Sequence[str] | Int[Tensor, " b"] | Int[Tensor, "b t"]
) -> Tensor:
    if not isinstance(labels, Tensor):
        if isinstance(labels, str):
            raise ConfigError(f"one label per example is needed, as in [{labels!r}, …].")
        return torch.tensor(policy.label_ids(labels), dtype=torch.long)
    ids = labels.detach().to("cpu", torch.long)
    if ids.dim() not in (1, 2):
        raise ConfigError(
            f"label ids must be [batch] or [batch, time], got shape {list(ids.shape)}."
        )
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(policy.labels):
        raise ConfigError(
            f"label ids must lie in 0…{len(policy.labels) - 1} ({', '.join(policy.labels)}), got "
            f"{int(ids.min())}…{int(ids.max())}."
        )
    return ids


def _check_switched_on(model_layers: RoutedLayers, *, on: set[str], learning: set[str]) -> None:
    """Refuse what PEFT or another library switched off, before a run trains nothing.

    A layer in which one of A and B is fixed still learns: that is somebody's choice, not an
    accident, and passes.
    """
    cure = f"call model.base_model.set_adapter({list(model_layers.adapters)})"
    for layer in model_layers.layers.values():
        for name in on.intersection(layer.lora_A):
            if name not in layer.active_adapters:
                raise ConfigError(
                    f"the adapter {name!r} is switched off, since PEFT's set_adapter keeps only "
                    f"the adapters it is given; {cure}."
                )
            if name in learning and not any(w.requires_grad for w in adapter_weights(layer, name)):
                raise ConfigError(
                    f"the routing table updates the adapter {name!r}, but its weights do not "
                    f"require a gradient, which PEFT's set_adapter may have switched; {cure}."
                )
