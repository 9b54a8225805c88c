"""The routing in force while a model runs: a routing table with labels, or ablation modes.

A scope turns the shape of a batch into the groups of `ops`: which adapters run at which positions,
and with which gates. One `RoutingState` is shared by the layers of one model. It is a plain
object, never thread-local: gradient checkpointing recomputes layers in the backward pass, which
runs on other threads.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradroute.errors import ConfigError
from gradroute.routing.adapter_groups import AdapterGroup, Rows
from gradroute.routing.frozen_layers import LowerLayers
from gradroute.routing.gates import Gate
from gradroute.routing.policy import AblationMode, Route, RoutingPolicy
from gradroute.routing.weight_cache import StackCache
from gradroute.system.devices import to_device

NO_ROUTE = (
    "the model is in training mode and no routing is in force, so it cannot know which adapter "
    "learns from which example; run the forward pass inside `with routed(model, policy, labels):` "
    "(or `ablated(model, mode)`), or call model.eval()."
)


@lru_cache
def full_groups(count: int) -> tuple[AdapterGroup, ...]:
    """The groups of a model that runs as it is: all adapters on, everywhere."""
    if not count:
        return ()
    return (
        AdapterGroup(tuple(range(count)), None, (1.0,) * count, (1.0,) * count, (True,) * count),
    )


class RoutedScope:
    """A routing table with the labels of one batch.

    Args:
        policy: The table.
        label_ids: Per example [b], or per position [b t]; on the CPU.
        finite: All adapter weights are known to be finite, so that an adapter may be computed where
            it is ablated, and set to 0 there.
    """

    def __init__(
        self,
        policy: RoutingPolicy,
        label_ids: Int[Tensor, " b"] | Int[Tensor, "b t"],
        finite: bool = False,
    ):
        self.finite = finite
        self.policy = policy
        # On the CPU, so that which adapters run where is known without a wait for the device.
        self.label_ids = label_ids
        self.present = label_ids.unique().tolist()
        self._plans: dict[tuple, tuple[AdapterGroup, ...]] = {}

    def groups(
        self, shape: torch.Size, device: torch.device, adapters: Sequence[str]
    ) -> tuple[AdapterGroup, ...]:
        """The groups for a batch of positions of this shape; the same object for every layer.

        Raises:
            ConfigError: The labels do not fit the shape.
        """
        # Gates are made once for a batch and not once for a layer. A layer of another device or
        # with other adapters has a plan of its own.
        key = (shape, device, tuple(adapters))
        if key not in self._plans:
            self._plans[key] = self._build(self._positions(shape), device, adapters)
        return self._plans[key]

    def ran(self) -> Iterator[tuple[str, Float[Tensor, "n 3"]]]:
        """What the layers were given to run, read back from the groups and not from the table.

        Yields:
            An adapter, and at every position of the flattened batch the gates of its route:
            forward (0 or 1), the weight of the update, and whether gradient passes (0 or 1). One
            pair for every shape of batch and group of adapters that some layer asked for.
        """
        for (shape, _, adapters), groups in self._plans.items():
            for index, adapter in enumerate(adapters):
                gates = torch.zeros(shape.numel(), 3, dtype=torch.float64)
                for group in groups:
                    for member, owner in enumerate(group.adapters):
                        if owner == index:
                            _mark(gates, group, member)
                yield adapter, gates

    def _positions(self, shape: torch.Size) -> Int[Tensor, " n"]:
        """The label id of every position of a flattened batch."""
        ids = self.label_ids
        if ids.dim() == 1 and len(shape) >= 1 and shape[0] == len(ids):
            return ids.repeat_interleave(shape[1:].numel())
        # Some models flatten [batch, time] on the way; the order of positions is the same.
        if ids.dim() == 1 and len(shape) == 1 and len(ids) and shape[0] % len(ids) == 0:
            return ids.repeat_interleave(shape[0] // len(ids))
        # Latent attention (DeepSeek) puts a 1 between: [batch, 1, time].
        same = [size for size in shape if size != 1] == [size for size in ids.shape if size != 1]
        if ids.dim() == 2 and (same or tuple(shape) == (ids.numel(),)):
            return ids.reshape(-1)
        given = f"{len(ids)} examples" if ids.dim() == 1 else f"{tuple(ids.shape)} positions"
        raise ConfigError(
            f"the routing labels are for {given}, but an adapted layer was given a batch of shape "
            f"{tuple(shape)}; pass one label per example [batch], or per position [batch, time]."
        )

    def _build(
        self, positions: Tensor, device: torch.device, adapters: Sequence[str]
    ) -> tuple[AdapterGroup, ...]:
        # Only labels that occur count: an adapter that all of them run needs no selection, and one
        # that all of them ablate is in no group, so that it is not computed.
        rows_of = [self.policy.table[self.policy.labels[i]] for i in self.present]
        always, partly = [], []
        for index, adapter in enumerate(adapters):
            routes = [row[adapter] for row in rows_of]
            if all(route.forward for route in routes):
                always.append((index, routes))
            elif any(route.forward for route in routes):
                partly.append((index, routes))
        on = [self._lookup([float(r.forward) for r in own], positions) > 0 for _, own in partly]
        # `GatedDown` and `GatedUp` ask for one adapter alone: they know rows, but no mask.
        if partly and self.finite and len(adapters) > 1:
            return (
                self._whole_group([*always, *partly], [None] * len(always) + on, positions, device),
            )
        groups = [self._group(always, None, positions, device)] if always else []
        for member, here in zip(partly, on, strict=True):
            groups.append(self._group([member], here, positions, device))
        return tuple(groups)

    def _whole_group(
        self,
        members: Sequence[tuple[int, Sequence[Route]]],
        masks: Sequence[Tensor | None],
        positions: Tensor,
        device: torch.device,
    ) -> AdapterGroup:
        """One group for adapters of which some are off at some positions."""
        # First on the CPU, where gates and masks can be compared without a wait.
        here = self._group(members, None, positions, positions.device)
        on = [True if mask is None else to_device(mask, device) for mask in masks]

        def there(gates: Sequence[Gate]) -> tuple[Gate, ...]:
            """A gate that closes just what the mask does is the mask itself, and costs nothing."""
            found: list[Gate] = []
            for gate, mask, own in zip(gates, masks, on, strict=True):
                if not isinstance(gate, Tensor):
                    found.append(gate)
                elif mask is not None and gate.dtype == torch.bool and torch.equal(gate, mask):
                    found.append(own)
                else:
                    found.append(_to_device(gate, device))
            return tuple(found)

        update, passes = there(here.update), there(here.passes)
        return replace(here, update=update, passes=passes, on=tuple(on))

    def _group(
        self,
        members: Sequence[tuple[int, Sequence[Route]]],
        on: Tensor | None,
        positions: Tensor,
        device: torch.device,
    ) -> AdapterGroup:
        if on is not None:
            positions = positions[on]
        # Routes of labels that do not occur at these positions must not turn a number into a mask.
        here = set(positions.unique().tolist())
        update, passes = [], []
        for _, routes in members:
            known = [r for i, r in zip(self.present, routes, strict=True) if i in here]
            weights = [route.update for route in routes]
            update.append(self._gate(weights, {r.update for r in known}, positions, device))
            through = [float(route.passes) for route in routes]
            passes.append(self._gate(through, {r.passes for r in known}, positions, device))
        rows = None if on is None else _rows(on.nonzero().squeeze(1), device)
        indices = tuple(index for index, _ in members)
        return AdapterGroup(indices, rows, (1.0,) * len(indices), tuple(update), tuple(passes))

    def _gate(
        self, values: Sequence[float], known: set, positions: Tensor, device: torch.device
    ) -> Gate:
        """One value if all positions share it, else a tensor: bool where 0 and 1 are enough."""
        if len(known) == 1:
            return known.pop()
        gate = self._lookup(values, positions)
        return _to_device(gate > 0 if known <= {0.0, 1.0} else gate, device)

    def _lookup(self, values: Sequence[float], positions: Tensor) -> Float[Tensor, " n"]:
        """The value of each position's label; values are in the order of `present`."""
        # In float64, so that a weight is rounded once, to the dtype of the products.
        table = torch.zeros(len(self.policy.labels), dtype=torch.float64)
        table[self.present] = torch.tensor(values, dtype=torch.float64)
        return table[positions]


class AblatedScope:
    """Ablation modes: one for the whole batch, or one for each contiguous group of rows.

    Args:
        modes: One or several.
        rows: Rows of each mode's group; None for equal groups.

    Attributes:
        stack_cache: The stacked weights of the layers, for as long as the scope lives.
    """

    def __init__(self, modes: Sequence[AblationMode], rows: Sequence[int] | None = None):
        self.modes = tuple(modes)
        self.rows = None if rows is None else tuple(rows)
        self.stack_cache = StackCache()
        self._plans: dict[tuple, tuple[AdapterGroup, ...]] = {}

    def groups(
        self, shape: torch.Size, device: torch.device, adapters: Sequence[str]
    ) -> tuple[AdapterGroup, ...]:
        """The groups for a batch of positions of this shape.

        Raises:
            ConfigError: The rows are not those of the groups, or cannot be divided into equal ones.
        """
        key = (shape, tuple(adapters))
        if key not in self._plans:
            self._plans[key] = self._build(shape, adapters)
        return self._plans[key]

    def _build(self, shape: torch.Size, adapters: Sequence[str]) -> tuple[AdapterGroup, ...]:
        if len(self.modes) == 1 and self.rows is None:
            return _mode_groups(self.modes[0], adapters, None)
        rows = self.rows or (1,) * len(self.modes)
        # Some models flatten [batch, time] on the way; the order of positions is the same.
        if not shape or shape[0] % sum(rows):
            raise ConfigError(self._misfit(shape))
        unit = shape.numel() // sum(rows)
        groups: list[AdapterGroup] = []
        start = 0
        for mode, count in zip(self.modes, rows, strict=True):
            if count:
                groups += _mode_groups(mode, adapters, slice(start * unit, (start + count) * unit))
            start += count
        return tuple(groups)

    def _misfit(self, shape: torch.Size) -> str:
        given = f"{len(self.modes)} ablation modes were given for a batch of shape {tuple(shape)}"
        if self.rows is not None:
            return f"{given}; their groups have {', '.join(map(str, self.rows))} rows."
        return (
            f"{given}; the rows must divide into equal groups, first all rows of the first mode, "
            "then the next."
        )


Scope = RoutedScope | AblatedScope


class RoutingState:
    """The scope in force, shared by the layers of one model.

    Attributes:
        scope: What is in force; None outside of any scope.
        adapters: The adapters in the order in which they were attached.
        parts: How many A and B each had then.
        parents: The modules that held their layers then, by path.
        products: Dtype of the low-rank products, see `low_rank_products`; None for the usual.
        lower: The layers below the first adapted one, or why they cannot be run apart; None as
            long as nobody has asked, see `frozen_check.lower_layers`.
    """

    def __init__(self, adapters: Sequence[str]):
        self.adapters = tuple(adapters)
        self.parts: Counter[str] = Counter()
        self.parents: dict[str, nn.Module] = {}
        self.scope: Scope | None = None
        self.products: torch.dtype | None = None
        self.lower: LowerLayers | str | None = None

    def run(self, scope: Scope | None, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function with this scope in force."""
        before, self.scope = self.scope, scope
        try:
            return function(*args)
        finally:
            self.scope = before


class CapturingCheckpoint:
    """A checkpointing function under which the recomputation sees the scope of the forward pass.

    Without it, a backward pass under another batch's labels would be silently wrong.

    Args:
        checkpoint: The function it stands for, called as `checkpoint(function, *args)`.
        state: The model's state.
    """

    def __init__(self, checkpoint: Callable[..., Any], state: RoutingState):
        self.checkpoint = checkpoint
        self.state = state

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Checkpoint the function with the scope that is in force now."""
        return self.checkpoint(partial(self.state.run, self.state.scope, function), *args)


def _to_device(gate: Tensor, device: torch.device) -> Tensor:
    """A gate on a device; mps has no float64."""
    narrow = device.type == "mps" and gate.dtype == torch.float64
    return to_device(gate.float() if narrow else gate, device)


def _mode_groups(
    mode: AblationMode, adapters: Sequence[str], rows: Rows
) -> tuple[AdapterGroup, ...]:
    # Left out rather than multiplied by 0: 0 times NaN is NaN.
    on = [index for index, adapter in enumerate(adapters) if mode.scales[adapter] != 0.0]
    if not on:
        return ()
    scales = tuple(float(mode.scales[adapters[index]]) for index in on)
    return (AdapterGroup(tuple(on), rows, scales, (1.0,) * len(on), (True,) * len(on)),)


def _mark(gates: Float[Tensor, "n 3"], group: AdapterGroup, member: int) -> None:
    """Write, in place, the gates of one of a group's adapters at the group's positions."""
    rows = slice(None) if group.rows is None else group.rows
    rows = rows.cpu() if isinstance(rows, Tensor) else rows
    on = True if group.on is None else group.on[member]
    columns: tuple[Gate, ...] = (on, group.update[member], group.passes[member])
    for column, gate in enumerate(columns):
        value = gate.cpu().double() if isinstance(gate, Tensor) else float(gate)
        gates[rows, column] = value


def _rows(indices: Int[Tensor, " m"], device: torch.device) -> Rows:
    """The rows as a slice where they are contiguous: views instead of copies."""
    if len(indices) and int(indices[-1]) - int(indices[0]) + 1 == len(indices):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return to_device(indices, device)
