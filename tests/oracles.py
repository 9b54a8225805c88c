"""Slow, obvious references: one example at a time, plain autograd, an explicit table.

Nothing here uses gradroute: the routed gradient is written down a second time, from its words.
Every label gets its own copy of each adapter, and each position takes the copies of its label. What
a copy receives from autograd is then what the examples with that label give to the adapter.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import subspace_angles
from torch import Tensor, nn

Table = Mapping[str, Mapping[str, str | Mapping[str, float]]]
Weights = dict[str, dict[str, tuple[Tensor, Tensor]]]  # adapter -> module -> (A, B)


@dataclass
class OracleResult:
    loss: Tensor
    logits: list[Tensor]  # per example [t, vocabulary]
    gradients: Weights  # adapter -> module -> (dA, dB)


class OracleLinear(nn.Module):
    """A base layer with copies of every adapter for every label, one position at a time."""

    def __init__(
        self,
        base: nn.Module,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        scalings: Mapping[str, float],
        table: Table,
    ):
        super().__init__()
        self.base = base
        self.scalings = scalings
        self.table = table
        self.labels: Sequence[str] = ()
        self.copies = {
            label: {
                name: tuple(w.detach().clone().requires_grad_() for w in factors[name])
                for name in row
            }
            for label, row in table.items()
        }

    @property
    def weight(self) -> Tensor:
        """The base's, for models that read it rather than run the layer."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's, likewise."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:  # some models flatten [batch, time] on the way, or put a 1 between
            y = self(x.reshape(1, -1, x.shape[-1]))
            return y.reshape(*x.shape[:-1], -1)
        assert x.shape[:2] == (1, len(self.labels))
        positions = []
        for t, label in enumerate(self.labels):
            now = x[:, t]
            y = self.base(now)
            for name, route in self.table[label].items():
                a, b = self.copies[label][name]
                s = self.scalings[name]
                if route == "ablate":
                    continue
                if route == "freeze":
                    y = y + s * (now @ a.detach().T @ b.detach().T)
                elif route == "detach":
                    y = y + (s * (now @ a.T @ b.T)).detach()
                else:  # update, whatever its weight
                    y = y + s * (now @ a.T @ b.T)
            positions.append(y)
        return torch.stack(positions, dim=1)

    def gradient(self, adapter: str) -> tuple[Tensor, Tensor]:
        totals = []
        for side in (0, 1):
            total = torch.zeros_like(next(iter(self.copies.values()))[adapter][side])
            for label, row in self.table.items():
                route = row[adapter]
                weight = route["update"] if isinstance(route, Mapping) else 1.0
                gradient = self.copies[label][adapter][side].grad
                if gradient is not None:
                    total = total + weight * gradient
            totals.append(total)
        return totals[0], totals[1]


def _adapted(
    base: nn.Module,
    weights: Weights,
    scalings: Mapping[str, float],
    table: Table,
    modules: Iterable[str],
) -> tuple[nn.Module, dict[str, OracleLinear]]:
    """A float64 copy of a base with adapters in these modules, and the modules by path."""
    model = copy.deepcopy(base).double()
    layers: dict[str, OracleLinear] = {}
    for path in modules:
        parent, _, child = path.rpartition(".")
        factors = {name: own[path] for name, own in weights.items()}
        layers[path] = OracleLinear(model.get_submodule(path), factors, scalings, table)
        setattr(model.get_submodule(parent), child, layers[path])
    return model, layers


def _gradients(layers: Mapping[str, OracleLinear], weights: Weights) -> Weights:
    """What every adapter received in every module."""
    return {
        name: {path: layer.gradient(name) for path, layer in layers.items()} for name in weights
    }


def routed_reference(
    base: nn.Module,
    weights: Weights,
    scalings: Mapping[str, float],
    table: Table,
    input_ids: Tensor,
    attention_mask: Tensor,
    targets: Tensor,
    labels: Sequence[Sequence[str]],
) -> OracleResult:
    """Loss, logits and gradients of one batch, example by example.

    Args:
        base: A float64 causal model without adapters, in the mode that it is run in.
        weights: A and B of every adapter in every adapted module.
        scalings: alpha / rank of every adapter.
        table: label -> adapter -> route, as a user writes it.
        input_ids: [b t].
        attention_mask: [b t].
        targets: [b t], already shifted; -100 is ignored.
        labels: The label of every position of every example.
    """
    model, layers = _adapted(base, weights, scalings, table, next(iter(weights.values())))
    count = (targets != -100).sum()
    total, logits = torch.zeros((), dtype=torch.float64), []
    for ids, mask, wanted, own in zip(input_ids, attention_mask, targets, labels, strict=True):
        for layer in layers.values():
            layer.labels = own
        out = model(input_ids=ids[None], attention_mask=mask[None], use_cache=False).logits[0]
        loss = F.cross_entropy(out, wanted, ignore_index=-100, reduction="sum") / count
        loss.backward()
        total += loss.detach()
        logits.append(out.detach())
    return OracleResult(total, logits, _gradients(layers, weights))


def reference_of_rows(
    base: nn.Module,
    weights: Weights,
    scalings: Mapping[str, float],
    table: Table,
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[str]],
    loss: Callable[[list[Tensor]], Tensor],
) -> OracleResult:
    """Loss and gradients where the loss is a function of all rows' log-probabilities.

    Args:
        base: As for `routed_reference`, and so are the next three.
        weights: See there.
        scalings: See there.
        table: See there.
        rows: The tokens of every row.
        labels: The label of every position of every row.
        loss: Log-probability of each token after the first, a row each -> a number.
    """
    model, layers = _adapted(base, weights, scalings, table, next(iter(weights.values())))
    found = []
    for ids, own in zip(rows, labels, strict=True):
        for layer in layers.values():
            layer.labels = own
        tokens = torch.tensor([list(ids)])
        said = model(input_ids=tokens, use_cache=False).logits[0, :-1].log_softmax(-1)
        found.append(said.gather(1, tokens[0, 1:, None])[:, 0])
    total = loss(found)
    total.backward()
    return OracleResult(total.detach(), [], _gradients(layers, weights))


def pulled_reference(
    base: nn.Module,
    weights: Weights,
    scalings: Mapping[str, float],
    table: Table,
    rows: Sequence[tuple[Sequence[int], Sequence[int], Sequence[str]]],
    *,
    teacher: tuple[Weights, Mapping[str, float]],
    asked: Sequence[str],
    factor: float,
    alone: bool,
    loss_mean: str,
) -> OracleResult:
    """Loss and gradients of examples that are pulled to what a teacher says, one at a time.

    Args:
        base: As for `routed_reference`, and so are the next three.
        weights: See there.
        scalings: See there.
        table: See there.
        rows: Tokens, targets (-100 is ignored) and labels of every position, of every example.
        teacher: Adapters and scales of the reference, all of them on; none for the base.
        asked: The labels at whose targets it is asked.
        factor: On its mean divergence.
        alone: Whether that is the whole loss.
        loss_mean: "token" or "example".
    """
    modules = next(iter(weights.values()))
    model, layers = _adapted(base, weights, scalings, table, modules)
    whole = {"all": dict.fromkeys(teacher[0], "update")}
    other, others = _adapted(base, *teacher, whole, modules)
    count_hard = sum(target != -100 for _, targets, _ in rows for target in targets)
    pulled = [
        [t for t, target in enumerate(targets) if target != -100 and labels[t] in asked]
        for _, targets, labels in rows
    ]
    total = torch.zeros((), dtype=torch.float64)
    for (ids, targets, labels), places in zip(rows, pulled, strict=True):
        for layer in layers.values():
            layer.labels = labels
        for layer in others.values():
            layer.labels = ["all"] * len(ids)
        tokens = torch.tensor([list(ids)])
        q = model(input_ids=tokens, use_cache=False).logits[0].softmax(-1)
        p = other(input_ids=tokens, use_cache=False).logits[0].softmax(-1).detach()
        loss = torch.zeros((), dtype=torch.float64)
        hard = [t for t, target in enumerate(targets) if target != -100]
        share = count_hard if loss_mean == "token" else len(rows) * len(hard)
        for t in [] if alone else hard:
            loss = loss - q[t, targets[t]].log() / share
        asking = sum(bool(own) for own in pulled)
        share = sum(map(len, pulled)) if loss_mean == "token" else asking * len(places)
        for t in places:
            for v in range(q.shape[1]):
                loss = loss + factor * p[t, v] * (p[t, v].log() - q[t, v].log()) / share
        if loss.requires_grad:
            loss.backward()
        total += loss.detach()
    return OracleResult(total, [], _gradients(layers, weights))


@dataclass
class OracleGeometry:
    cosine: float | None
    angles_A: list[float]  # ascending, radians
    angles_B: list[float]


def geometry_reference(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> OracleGeometry:
    """How two updates B A of one weight lie to each other, from the whole matrices in float64.

    Args:
        first: A [rank inputs] and B [outputs rank].
        second: The same of the other update.
    """
    (a1, b1), (a2, b2) = (tuple(part.double().numpy() for part in one) for one in (first, second))
    one, two = b1 @ a1, b2 @ a2
    norms = np.linalg.norm(one) * np.linalg.norm(two)
    return OracleGeometry(
        float((one * two).sum() / norms) if norms > 0 else None,
        sorted(subspace_angles(a1.T, a2.T).tolist()),
        sorted(subspace_angles(b1, b2).tolist()) if norms > 0 else [],
    )
