"""Routes of rows in random layouts; the long form is `python -m torture layouts`."""

import random

import pytest
import torch
from oracles import Weights, routed_reference
from routing.tiny import PREFIX

from gradroute.config.run_config import AdapterConfig
from gradroute.routing.layers import adapter_weights, lora_layers
from torture.drawn_layouts import draw_layout, tokens_of
from torture.layouts import BOUNDS, FAR, trials
from torture.reference import reference
from torture.routings import telling_llama, tiny_routed


def test_every_row_keeps_its_route_in_every_layout(tmp_path):
    found = trials(12, seed=1, folder=tmp_path)
    assert found["failures"] == []
    assert found["misaligned"] == 0 and found["rows"] > 125
    assert found["largest_relative_error"] <= BOUNDS[torch.float32]
    assert found["largest_relative_error_float64"] <= BOUNDS[torch.float64]
    assert found["swaps"] > 10
    assert found["smallest_swapped_error"] >= FAR * BOUNDS[torch.float32]
    assert found["drawn"]["memory runs out: yes"] > 2


@pytest.mark.parametrize("mean", ["token", "example"])
def test_the_second_computation_is_the_oracles(tmp_path, mean):
    """`torture.reference` goes row by row, the oracle position by position."""
    draw = random.Random(3)
    layout = draw_layout(draw, tmp_path / "layout")
    rows = list(tokens_of(layout).values())[:5]
    adapters = {"x": AdapterConfig(rank=2), "y": AdapterConfig(rank=3, alpha=1.0)}
    table = {
        "a": {"x": "update", "y": "freeze"},
        "b": {"x": "detach", "y": {"update": 0.5}},
        "c": {"x": "ablate", "y": "update"},
    }
    labels = list("abcab")
    base = telling_llama(2048, torch.float64)
    layers = lora_layers(tiny_routed(adapters, seed=0, vocabulary=2048))
    factors = {
        path.removeprefix(PREFIX): {name: adapter_weights(layer, name) for name in adapters}
        for path, layer in layers.items()
    }
    weights: Weights = {
        name: {
            path: (pairs[name][0].double(), pairs[name][1].double())
            for path, pairs in factors.items()
        }
        for name in adapters
    }
    scalings = {"x": 2.0, "y": 1 / 3}
    found = reference(base, factors, scalings).gradient(rows, labels, table, mean)
    expected = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
    total = sum(row.targets for row in rows)
    for row, label in zip(rows, labels, strict=True):
        ids = torch.tensor([row.tokens])
        targets = torch.cat([ids[:, 1:], torch.tensor([[-100]])], dim=1)
        targets[:, : row.context - 1] = -100
        alone = routed_reference(
            base,
            weights,
            scalings,
            {label: table[label]},
            ids,
            torch.ones_like(ids),
            targets,
            [[label] * len(row.tokens)],
        )
        # The oracle takes the mean over the row's own tokens.
        weight = row.targets / total if mean == "token" else 1 / len(rows)
        for name, gradients in alone.gradients.items():
            parts = [part.flatten() for pair in gradients.values() for part in pair]
            expected[name] += weight * torch.cat(parts)
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() < 1e-6 * expected[name].norm()
