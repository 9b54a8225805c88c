"""The routed gradient written down a second time: one row after the other, plain autograd.

Nothing here uses gradroute. Each row runs alone, in float64 and without padding, through a model
whose linear layers add every adapter as the row's routes say; what autograd gives to A and B is
what that row gives to the adapter.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Routes = Mapping[str, str | Mapping[str, float]]
Factors = Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]
"""module -> adapter -> (A, B)."""


@dataclass(frozen=True)
class Row:
    """One row of a step.

    Attributes:
        name: its id.
        tokens: what the model reads.
        context: tokens at the beginning that no loss is taken on; at least 1.
    """

    name: str
    tokens: tuple[int, ...]
    context: int

    @property
    def targets(self) -> int:
        """Tokens that a loss is taken on."""
        return len(self.tokens) - self.context


def weights_of(rows: Sequence[Row], loss_mean: str) -> list[Tensor]:
    """By which each row's summed loss is multiplied; float64, as the model is."""
    total = sum(row.targets for row in rows)
    shares = [total if loss_mean == "token" else len(rows) * row.targets for row in rows]
    return [torch.tensor(1.0 / share, dtype=torch.float64) for share in shares]


@dataclass
class Reference:
    """A base model with adapters, row by row.

    Attributes:
        model: the base, in float64, its adapted layers replaced.
        layers: the replaced layers.
    """

    model: nn.Module
    layers: dict[str, "_RowLinear"]
    known: dict[tuple[str, str, float], dict[str, Tensor]] = field(default_factory=dict)

    def gradient(
        self, rows: Sequence[Row], labels: Sequence[str], table: Mapping[str, Routes], mean: str
    ) -> dict[str, Tensor]:
        """Adapter -> gradient of a step of these rows, all modules in one vector."""
        total: dict[str, Tensor] = {}
        for row, label, weight in zip(rows, labels, weights_of(rows, mean), strict=True):
            key = (row.name, label, float(weight))
            if key not in self.known:
                self.known[key] = self._of_row(row, table[label], weight)
            for name, gradient in self.known[key].items():
                total[name] = total[name] + gradient if name in total else gradient
        return total

    def _of_row(self, row: Row, routes: Routes, weight: Tensor) -> dict[str, Tensor]:
        for layer in self.layers.values():
            layer.routes = routes
        logits = self.model(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0]
        wanted = torch.tensor(row.tokens[row.context :])
        losses = F.cross_entropy(logits[row.context - 1 : -1], wanted, reduction="none")
        parts = {
            name: [w for layer in self.layers.values() for w in layer.factors[name]]
            for name in routes
        }
        flat = [w for own in parts.values() for w in own]
        loss = losses.sum() * weight
        if loss.requires_grad:
            given = iter(torch.autograd.grad(loss, flat, materialize_grads=True))
        else:  # no adapter learns from such a row
            given = map(torch.zeros_like, flat)
        gradient = {n: torch.cat([next(given).flatten() for _ in own]) for n, own in parts.items()}
        return {name: gradient[name] * _weight(route) for name, route in routes.items()}


def reference(base: nn.Module, factors: Factors, scalings: Mapping[str, float]) -> Reference:
    """Put adapters on a copy of a base model.

    Args:
        base: the model without adapters.
        factors: A and B of every adapter in every adapted module, in the model's order.
        scalings: alpha / rank of every adapter.
    """
    model = copy.deepcopy(base)
    nn.Module.to(model, torch.float64)
    model.requires_grad_(False)
    layers = {}
    for path, adapters in factors.items():
        parent, _, child = path.rpartition(".")
        layer = _RowLinear(model.get_submodule(path), adapters, scalings)
        setattr(model.get_submodule(parent), child, layer)
        layers[path] = layer
    return Reference(model, layers)


class _RowLinear(nn.Module):
    """A base layer and what the adapters add to it, under the routes of one row."""

    def __init__(
        self,
        base: nn.Module,
        adapters: Mapping[str, tuple[Tensor, Tensor]],
        scalings: Mapping[str, float],
    ):
        super().__init__()
        self.base = base
        self.scalings = scalings
        self.routes: Routes = {}
        self.factors = {
            name: tuple(w.detach().double().clone().requires_grad_() for w in pair)
            for name, pair in adapters.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for name, route in self.routes.items():
            if route == "ablate":
                continue
            a, b = self.factors[name]
            if route == "freeze":
                a, b = a.detach(), b.detach()
            added = self.scalings[name] * (x @ a.T @ b.T)
            y = y + (added.detach() if route == "detach" else added)
        return y


def _weight(route: str | Mapping[str, float]) -> float:
    return float(route == "update") if isinstance(route, str) else route["update"]
