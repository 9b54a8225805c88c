"""Layers that read one input and are computed together: the same results, and when not."""

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from routing.test_ops import GATES, PASSES, SCALINGS, terms_of, written_out
from routing.tiny import gradients_of, mean_loss, tiny_batch, tiny_routed
from torch import nn

from gradroute.routing import layers as routed_layers
from gradroute.routing import siblings
from gradroute.routing.adapters import route_adapters, routed
from gradroute.routing.ops import Operands, routed_linears
from gradroute.routing.policy import RoutingPolicy

POLICY = RoutingPolicy.parse("anchored", ("good", "bad"))
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]
ATTENTION = "base_model.model.model.layers.0.self_attn"


def learned(model, labels=LABELS):
    """The loss, its gradients, and how many layers each call of `routed_linears` computed."""
    counts = []

    def counted(x, own, *args):
        counts.append(len(own))
        return routed_linears(x, own, *args)

    with patch.object(routed_layers, "routed_linears", counted), routed(model, POLICY, labels):
        loss = mean_loss(model, tiny_batch())
        loss.backward()
    return loss.detach(), gradients_of(model), counts


def one_by_one(**settings):
    with patch.object(siblings, "READERS_OF_ONE_INPUT", ()):
        return tiny_routed(**settings)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("gates", GATES)
def test_layers_of_other_widths_and_ranks_each_have_the_formulas(gates, passes):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(2, 3, 5).requires_grad_()
    shapes = [(4, (2, 3, 1)), (7, (1, 1, 2)), (2, (3, 2, 2))]  # outputs, ranks
    made = []
    for outputs, ranks in shapes:
        downs = [draw(rank, 5).requires_grad_() for rank in ranks]
        ups = [draw(outputs, rank).requires_grad_() for rank in ranks]
        made.append(Operands((draw(outputs, 5), draw(outputs)), downs, ups, SCALINGS))
    ys = routed_linears(x, made, terms_of(**gates, p=passes))
    wanted = []
    for own in made:
        weight, bias = own.base
        wanted.append(written_out(x, weight, bias, own.downs, own.ups, **gates, p=passes))
    torch.autograd.backward(ys, [dy[-1].reshape(y.shape) for y, dy in zip(ys, wanted, strict=True)])
    assert x.grad is not None
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-13)
    close(x.grad.view(6, 5), sum(of[1] for of in wanted))
    for y, own, (output, _, *gradients, _) in zip(ys, made, wanted, strict=True):
        close(y.detach().reshape(output.shape), output)
        for factor, gradient in zip((*own.downs, *own.ups), gradients, strict=True):
            close(factor.grad, gradient)


@pytest.mark.parametrize("settings", [{}, {"ranks": {"good": 2, "bad": 5}}])
def test_a_model_learns_the_same_with_its_siblings_computed_together(settings):
    loss, gradients, counts = learned(tiny_routed(**settings))
    assert counts == [3, 2, 3, 2]
    alone, wanted, none = learned(one_by_one(**settings))
    assert not none and gradients.keys() == wanted.keys()
    torch.testing.assert_close(loss, alone, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-12)


def test_in_float32_both_are_as_near_to_float64():
    exact = learned(tiny_routed())[1]

    def off(model):
        own = learned(model)[1]
        return sum(float((own[name].double() - exact[name]).norm()) for name in exact)

    together = off(tiny_routed(dtype=torch.float32))
    alone = off(one_by_one(dtype=torch.float32))
    assert 0 < together < 2 * alone < 1e-3


def test_nothing_is_kept_after_a_step_and_a_step_repeats_bit_for_bit():
    model = tiny_routed()
    first = learned(model)[1]
    for name in "qkv":
        layer: Any = model.get_submodule(f"{ATTENTION}.{name}_proj")
        assert layer.siblings is not None and not layer.siblings._kept
    model.zero_grad(set_to_none=True)
    again = learned(model)[1]
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("given", ["another", "changed", "another scope"])
def test_a_layer_that_is_called_with_something_else_computes_its_own(given):
    model = tiny_routed()
    first, second = (model.get_submodule(f"{ATTENTION}.{name}_proj") for name in "qk")
    x = torch.randn(6, 4, 16, dtype=torch.float64)
    labels = LABELS[::-1] if given == "another scope" else LABELS
    with routed(model, POLICY, LABELS):
        first(x)
        if given == "another":
            x = x + 1
        elif given == "changed":
            x.add_(1)
        with nullcontext() if labels is LABELS else routed(model, POLICY, labels):
            y = second(x)
    with routed(model, POLICY, labels):
        wanted = second(x)
    assert torch.equal(y, wanted)


def _hook(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: None)


def _train_the_base(layer) -> None:
    layer.base_layer.weight.requires_grad_()


@pytest.mark.parametrize("change", [_hook, _train_the_base])
def test_what_must_be_called_by_itself_is_left_out(change):
    model = tiny_routed()
    change(model.get_submodule(f"{ATTENTION}.k_proj"))
    loss, gradients, counts = learned(model)
    assert counts == [2, 2, 3, 2]
    alone, wanted, _ = learned(one_by_one())
    torch.testing.assert_close(loss, alone, rtol=0, atol=1e-12)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12)


def test_an_adapter_that_one_of_them_lacks_leaves_it_out():
    model = tiny_routed()
    layer: Any = model.get_submodule(f"{ATTENTION}.v_proj")
    layer.delete_adapter("bad")
    route_adapters(model)
    assert learned(model)[2] == [2, 2, 3, 2]


def test_without_gradients_layers_are_computed_one_by_one():
    model = tiny_routed()
    with torch.no_grad(), routed(model, POLICY, LABELS):
        counts = []
        with patch.object(routed_layers, "routed_linears", lambda *args: counts.append(args)):
            mean_loss(model, tiny_batch())
    assert not counts
