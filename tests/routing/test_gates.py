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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_closed_gate_is_zero_and_an_open_one_leaves_every_bit(dtype):
    strange = [math.nan, math.inf, -math.inf, -0.0, 1e-40, -1.5]
    values = torch.tensor(strange * 4, dtype=dtype).view(4, sum(RANKS))
    gates = column_gates((MASK, True, ~MASK), RANKS, dtype, values.device)
    assert gates is not None
    is_open = torch.stack([MASK, MASK, MASK | True, ~MASK, ~MASK, ~MASK], dim=1)
    numbers = {torch.float64: torch.int64, torch.float32: torch.int32}.get(dtype, torch.int16)
    found, wanted = gates.on(values), torch.where(is_open, values, 0)
    assert found.dtype == dtype and torch.equal(found.view(numbers), wanted.view(numbers))
    part = values.t().contiguous().t()  # not contiguous, as a block of columns
    assert torch.equal(gates.on(part).view(numbers), wanted.view(numbers))
