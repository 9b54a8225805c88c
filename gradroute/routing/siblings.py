"""Layers that read the same input: the first of them that runs computes the outputs of all.

The projections of attention to queries, keys and values are such, and gate and up of an MLP. One
product with every A, one gate and one product for dx take the place of one each
(`ops.routed_linears`). docs/design/009-siblings.md has what it saves, and by how much its sums
differ from those of layers that are computed one by one.

Models call these layers one by one. So the first keeps the outputs of the others until they are
called with the very tensor, unchanged, that it was given itself. A layer that is called with
another one computes its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

READERS_OF_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of such layers under one parent, in the order in which models call them."""


@dataclass(frozen=True)
class _Kept:
    """An output that was computed ahead, and what of."""

    x: Tensor
    version: int
    scope: object
    y: Tensor


class Siblings:
    """Layers that read the same input.

    Args:
        layers: In the order in which they are called.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers = tuple(layers)
        self._kept: dict[nn.Module, _Kept] = {}

    def keep(self, x: Tensor, scope: object, outputs: Mapping[nn.Module, Tensor]) -> None:
        """Keep the outputs of these layers for the input x; whatever is still kept is dropped."""
        self._kept = {own: _Kept(x, x._version, scope, y) for own, y in outputs.items()}

    def take(self, layer: nn.Module, x: Tensor, scope: object) -> Tensor | None:
        """The output of the layer, which is kept no longer; None if there is none of this input."""
        kept = self._kept.pop(layer, None)
        if kept is None or kept.x is not x or kept.scope is not scope:
            return None
        return kept.y if kept.version == x._version else None


def sibling_layers(paths: Mapping[str, Any]) -> Iterator[Siblings]:
    """Those among some layers of a model that read the same input, by their names.

    Args:
        paths: The layers by their path in the model.
    """
    parents = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    for parent in parents:
        start = f"{parent}." if parent else ""
        for names in READERS_OF_ONE_INPUT:
            found = [paths[start + name] for name in names if start + name in paths]
            if len(found) > 1:
                yield Siblings(found)
