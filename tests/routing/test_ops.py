from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gradroute.routing.adapter_groups import AdapterGroup
from gradroute.routing.gated_factors import gated_linear
from gradroute.routing.ops import routed_linear

INPUTS, OUTPUTS, SCALINGS = 5, 4, (2.0, 0.5, 1.25)


def factors(ranks: Sequence[int] = (2, 3, 1), dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    downs = [draw(r, INPUTS).requires_grad_() for r in ranks]
    ups = [draw(OUTPUTS, r).requires_grad_() for r in ranks]
    return draw(OUTPUTS, INPUTS), draw(OUTPUTS), downs, ups, draw(2, 3, INPUTS).requires_grad_()


def everywhere(count: int = 3) -> tuple[AdapterGroup, ...]:
    return (
        AdapterGroup(tuple(range(count)), None, (1.0,) * count, (1.0,) * count, (True,) * count),
    )


def written_out(x, weight, bias, downs, ups, f, u, p) -> tuple[Tensor, ...]:
    """The formulas of the module's docstring, position by position, for gates [adapter, n]."""
    x2 = x.detach().reshape(-1, INPUTS)
    y = x2 @ weight.T + bias
    dy = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin()
    dx = dy @ weight
    d_downs, d_ups = [], []
    for k, (a, b) in enumerate(zip(downs, ups, strict=True)):
        a, b, s = a.detach(), b.detach(), SCALINGS[k]
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        for n in range(len(x2)):
            y[n] += f[k][n] * s * b @ (a @ x2[n])
            db += u[k][n] * f[k][n] * s * torch.outer(dy[n], a @ x2[n])
            da += u[k][n] * f[k][n] * s * torch.outer(b.T @ dy[n], x2[n])
            dx[n] += p[k][n] * f[k][n] * s * a.T @ (b.T @ dy[n])
        d_downs.append(da)
        d_ups.append(db)
    return y, dx, *d_downs, *d_ups, dy


GATES = [
    # adapter 0 everywhere with mixed gates; 1 on some rows, apart or together; 2 frozen
    dict(f=[[1] * 6, [0, 1, 0, 1, 1, 0], [1] * 6], u=[[1, 0, 1, 1, 0, 1], [1] * 6, [0] * 6]),
    dict(f=[[1] * 6, [0, 1, 1, 1, 0, 0], [1] * 6], u=[[0.25, 2, 1, 0, 1, 1], [0.5] * 6, [1] * 6]),
    dict(f=[[0] * 6, [1] * 6, [1, 1, 0, 0, 0, 1]], u=[[1] * 6, [3.0] * 6, [0, 1, 1, 1, 1, 0.1]]),
]
PASSES = [
    [[1] * 6, [1] * 6, [1] * 6],
    [[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1], [0] * 6],
]


def terms_of(f, u, p) -> tuple[AdapterGroup, ...]:
    """One group per adapter, with every kind of rows and gates that fits."""
    groups = []
    for k in range(3):
        on = torch.tensor(f[k]).nonzero()[:, 0]
        if not len(on):
            continue
        rows: Tensor | slice | None = on
        if len(on) == 6:
            rows = None
        elif int(on[-1] - on[0]) + 1 == len(on):
            rows = slice(int(on[0]), int(on[-1]) + 1)
        gate: Tensor | float = torch.tensor(u[k], dtype=torch.float64)[on]
        if len(set(gate.tolist())) == 1:
            gate = float(gate[0])
        elif set(gate.tolist()) == {0.0, 1.0}:
            gate = gate > 0
        through: Tensor | bool = torch.tensor(p[k])[on] > 0
        if len(set(through.tolist())) == 1:
            through = bool(through[0])
        groups.append(AdapterGroup((k,), rows, (1.0,), (gate,), (through,)))
    return tuple(groups)


@pytest.mark.parametrize("base_ran_elsewhere", [False, True])
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("gates", GATES)
def test_output_and_gradients_are_the_formulas(gates, passes, base_ran_elsewhere):
    weight, bias, downs, ups, x = factors()
    expected = written_out(x, weight, bias, downs, ups, **gates, p=passes)
    groups = terms_of(**gates, p=passes)
    base = torch.nn.functional.linear(x, weight, bias) if base_ran_elsewhere else (weight, bias)
    y = routed_linear(x, base, downs, ups, SCALINGS, groups)
    y.backward(expected[-1].reshape(y.shape))
    assert x.grad is not None
    got = [y.detach().reshape(-1, OUTPUTS), x.grad.reshape(-1, INPUTS)]
    got += [w.grad for w in (*downs, *ups) if w.grad is not None]
    assert len(got) == len(expected) - 1
    for one, other in zip(got, expected[:-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_adapters_in_one_term_equal_adapters_in_terms_of_their_own():
    weight, bias, downs, ups, x = factors()
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    update, passes = (mask, 0.0, 0.5), (True, ~mask, mask)
    together = (AdapterGroup((0, 1, 2), None, (1.0, 2.0, 1.0), update, passes),)
    apart = [
        AdapterGroup((k,), None, (s,), (update[k],), (passes[k],))
        for k, s in enumerate((1.0, 2.0, 1.0))
    ]
    results = []
    for groups in (together, apart):
        y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, groups)
        leaves = (x, *downs, *ups)
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_a_term_may_come_twice_as_the_groups_of_several_modes_do():
    weight, bias, downs, ups, x = factors((2, 3))
    groups = (slice(0, 2), slice(4, 6))
    twice = [AdapterGroup((0, 1), rows, (1.0, 2.0), (1.0, 1.0), (True, True)) for rows in groups]
    y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, twice)
    x2 = x.reshape(-1, INPUTS)
    low = 2.0 * x2 @ downs[0].T @ ups[0].T + 2.0 * 0.5 * x2 @ downs[1].T @ ups[1].T
    on = torch.tensor([1, 1, 0, 0, 1, 1])[:, None]
    expected = (x2 @ weight.T + bias + on * low).view(2, 3, OUTPUTS)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    leaves = (x, *downs, *ups)
    for one, other in zip(
        torch.autograd.grad(y.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_an_adapter_reaches_no_row_that_it_is_ablated_at_whatever_it_holds(hole):
    weight, bias, downs, ups, x = factors((2, 3))
    with torch.no_grad():
        downs[1].fill_(hole)
        ups[1].fill_(hole)
    rows = torch.tensor([1, 4])
    groups = (
        AdapterGroup((0,), None, (1.0,), (1.0,), (True,)),
        AdapterGroup((1,), rows, (1.0,), (1.0,), (True,)),
    )
    y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, groups).reshape(-1, OUTPUTS)
    others = [0, 2, 3, 5]
    alone = routed_linear(x, (weight, bias), downs[:1], ups[:1], SCALINGS[:1], groups[:1])
    assert torch.equal(y[others], alone.reshape(-1, OUTPUTS)[others])
    assert not y[rows].isfinite().any()
    y[others].sum().backward()
    assert x.grad is not None
    assert x.grad.reshape(-1, INPUTS)[others].isfinite().all()


def test_an_input_without_gradient_gets_none_and_the_weights_theirs():
    weight, bias, downs, ups, x = factors()
    leaves = (*downs, *ups)
    wanted = torch.autograd.grad(
        routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere()).sum(), leaves
    )
    still = x.detach()
    y = routed_linear(still, (weight, bias), downs, ups, SCALINGS, everywhere())
    for one, other in zip(torch.autograd.grad(y.sum(), leaves), wanted, strict=True):
        assert torch.equal(one, other)
    assert still.grad is None


def test_frozen_adapters_get_no_gradient_and_unused_ones_zeros():
    weight, bias, downs, ups, x = factors()
    downs[0].requires_grad_(False)
    only_second = (AdapterGroup((1,), None, (1.0,), (1.0,), (True,)),)
    routed_linear(x, (weight, bias), downs, ups, SCALINGS, only_second).sum().backward()
    assert downs[0].grad is None
    assert ups[0].grad is not None and torch.equal(ups[0].grad, torch.zeros_like(ups[0]))
    assert downs[1].grad is not None and downs[1].grad.abs().max() > 0


def test_inputs_may_be_strided_and_of_any_number_of_dimensions():
    weight, bias, downs, ups, x = factors()
    across = x.detach().transpose(0, 1)
    y = routed_linear(across, (weight, bias), downs, ups, SCALINGS, everywhere())
    flat = routed_linear(
        across.reshape(-1, INPUTS), (weight, bias), downs, ups, SCALINGS, everywhere()
    )
    assert torch.equal(y.reshape(-1, OUTPUTS), flat)
    dy = torch.ones(3, 2, 1, dtype=y.dtype).expand(y.shape)  # as sum() hands it on
    y.backward(dy)


def test_a_base_output_that_came_from_elsewhere_is_not_changed():
    weight, bias, downs, ups, x = factors()
    base = torch.nn.functional.linear(x, weight, bias).detach()
    before = base.clone()
    for groups in ((), everywhere(), (AdapterGroup((0,), slice(0, 2), (1.0,), (1.0,), (True,)),)):
        routed_linear(x, base, downs, ups, SCALINGS, groups).add_(1.0)
        with torch.no_grad():
            routed_linear(x, base, downs, ups, SCALINGS, groups).add_(1.0)
        assert torch.equal(base, before)


def test_a_model_may_change_the_output_in_place():
    weight, bias, downs, ups, x = factors()
    leaves = (x, *downs, *ups)
    wanted = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere()) * 2.0
    y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere()).mul_(2.0)
    assert torch.equal(y, wanted)
    for one, other in zip(
        torch.autograd.grad(y.sum(), leaves),
        torch.autograd.grad(wanted.sum(), leaves),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_with_and_without_gradients_the_output_is_the_same():
    weight, bias, downs, ups, x = factors(dtype=torch.float32)
    y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere())
    with torch.no_grad():
        assert torch.equal(y, routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere()))


@pytest.mark.parametrize("base_ran_elsewhere", [False, True])
def test_a_bfloat16_base_takes_float32_adapters(base_ran_elsewhere):
    weight, bias, downs, ups, x = factors(dtype=torch.float32)
    half = [v.detach().bfloat16() for v in (x, weight, bias)]
    half[0].requires_grad_()
    base = torch.nn.functional.linear(*half) if base_ran_elsewhere else (half[1], half[2])
    y = routed_linear(half[0], base, downs, ups, SCALINGS, everywhere())
    y.float().sum().backward()
    assert (y.dtype, downs[0].grad.dtype) == (torch.bfloat16, torch.float32)  # pyright: ignore
    assert half[0].grad is not None and half[0].grad.dtype == torch.bfloat16
    exact = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere())
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.2)


def test_under_autocast_the_products_run_in_its_dtype_and_gradients_keep_theirs():
    weight, bias, downs, ups, x = factors(dtype=torch.float32)
    exact = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere())
    leaves = (x, *downs, *ups)
    wanted = torch.autograd.grad(exact.sum(), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere())
        assert y.dtype == torch.bfloat16
        got = torch.autograd.grad(y.float().sum(), leaves)  # also a backward pass inside autocast
    for one, other in zip((y.float(), *got), (exact, *wanted), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_a_backward_pass_inside_autocast_keeps_the_dtypes_of_its_forward():
    weight, bias, downs, ups, x = factors(dtype=torch.float32)
    y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere())
    leaves = (x, *downs, *ups)
    wanted = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(y.sum(), leaves)
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


def test_a_second_derivative_is_refused():
    weight, bias, downs, ups, x = factors()
    y = routed_linear(x, (weight, bias), downs, ups, SCALINGS, everywhere())
    (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_two_gated_linears_make_the_routed_adapter():
    weight, _, downs, ups, x = factors()
    flat = x.detach().reshape(-1, INPUTS).requires_grad_()
    update = torch.tensor([1, 0, 2, 1, 0.5, 0], dtype=torch.float64)
    passes = torch.tensor([1, 1, 0, 1, 0, 0], dtype=torch.bool)
    low = gated_linear(gated_linear(flat, downs[0], update, passes), ups[0], update, True)
    group = AdapterGroup((0,), None, (1.0,), (update,), (passes,))
    zero = torch.zeros_like(weight)
    fused = routed_linear(flat, (zero, None), downs[:1], ups[:1], SCALINGS[:1], [group])
    leaves = (flat, downs[0], ups[0])
    for one, other in zip(
        torch.autograd.grad((low * SCALINGS[0]).sin().sum(), leaves),
        torch.autograd.grad(fused.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_a_gradient_that_overflowed_at_a_closed_gate_stays_out():
    _, _, downs, _, x = factors()
    flat = x.detach().reshape(-1, INPUTS).requires_grad_()
    is_open = torch.tensor([1, 0, 1, 1, 1, 1], dtype=torch.bool)
    for gate in (is_open, is_open.double() * 0.5):
        y = gated_linear(flat, downs[0], gate, is_open)
        dy = torch.ones_like(y)
        dy[1] = float("inf")
        for gradient in torch.autograd.grad(y, (flat, downs[0]), dy):
            assert gradient.isfinite().all()
