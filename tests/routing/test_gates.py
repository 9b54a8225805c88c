"""Gates of adapters side by side are those of each adapter by itself."""

import math

import pytest
import torch

from gradroute.routing.gates import column_gates, gated

RANKS = (2, 1, 3)
MASK = torch.tensor([True, False, True, False])
WEIGHTS = torch.tensor([0.0, 0.25, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "gates",
    [(MASK, True, ~MASK), (WEIGHTS, MASK, 1.0), (0.5, WEIGHTS, False), (True, 0.0, 2.0)],
    ids=["masks", "weights", "numbers and weights", "numbers"],
)
def test_all_columns_at_once_are_gated_as_each_adapters_own_even_where_they_are_no_numbers(gates):
    values = torch.randn(4, sum(RANKS), generator=torch.Generator().manual_seed(1))
    for row, gate in enumerate(WEIGHTS):
        if gate == 0.0 or not MASK[row]:
            values[row] = math.nan
    together = column_gates(gates, RANKS, values.dtype, values.device)
    assert together is not None
    blocks = values.split(list(RANKS), dim=1)
    alone = torch.cat([gated(block, gate) for block, gate in zip(blocks, gates, strict=True)], 1)
    torch.testing.assert_close(together.on(values), alone, rtol=0, atol=0, equal_nan=True)


def test_gates_that_are_open_everywhere_are_no_work():
    assert column_gates((True, 1.0, 1.0), RANKS, torch.float32, torch.device("cpu")) is None
