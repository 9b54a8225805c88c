"""Gradient checkpointing recomputes layers in the backward pass; the routes must be the same."""

import threading

import pytest
import torch
from oracles import routed_reference
from peft import PeftModel
from routing.tiny import (
    TinyBatch,
    adapter_weights_of,
    gradients_of,
    largest_error,
    mean_loss,
    scalings_of,
    tiny_base,
    tiny_batch,
    tiny_routed,
    to_floor,
)
from torch.utils.checkpoint import checkpoint

from gradroute.errors import ConfigError
from gradroute.routing.adapters import ablated, routed
from gradroute.routing.policy import RoutingPolicy

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
POLICY = RoutingPolicy.parse("anchored", ["good", "bad"])
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]
OTHERS = ["good", "good", "bad", "bad", "unlabeled", "unlabeled"]
KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def checkpointed(reentrant: bool, kind: str = "llama") -> PeftModel:
    model = tiny_routed({"good": 2, "bad": 3}, kind=kind)
    base = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})  # pyright: ignore
    if reentrant:  # it sees no gradient to record below the frozen embeddings otherwise
        base.enable_input_require_grads()  # pyright: ignore
    return model


def recomputations(model: PeftModel) -> list[int]:
    """Counts the calls of the first adapted layer."""
    calls = [0]

    def count(module, args):
        calls[0] += 1

    model.get_submodule("base_model.model.lm_head")  # the path exists
    block = next(m for n, m in model.named_modules() if n.endswith(("layers.0.mlp", "h.0.mlp")))
    block.register_forward_pre_hook(count)
    return calls


@KINDS
@pytest.mark.parametrize("path", ["fast", "floor"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_gradient_is_the_oracles(kind, path, reentrant, record_testsuite_property):
    model = checkpointed(reentrant, kind)
    if path == "floor":
        to_floor(model)
    calls = recomputations(model)
    batch = tiny_batch()
    with routed(model, POLICY, LABELS):
        mean_loss(model, batch).backward()
    assert calls == [2]  # it did recompute
    reference = routed_reference(
        tiny_base(kind),
        adapter_weights_of(model),
        scalings_of(model),
        POLICY.to_plain(),
        batch.input_ids,
        batch.attention_mask,
        batch.targets,
        [[label] * batch.input_ids.shape[1] for label in LABELS],
    )
    error = largest_error(model, reference.gradients)
    record_testsuite_property(f"error {kind} {path} reentrant={reentrant}", error)
    assert error < 1e-10


def plain_gradients(labels: list[str]) -> dict[str, torch.Tensor]:
    model = tiny_routed({"good": 2, "bad": 3})
    with routed(model, POLICY, labels):
        mean_loss(model, tiny_batch()).backward()
    return gradients_of(model)


def assert_same(model: PeftModel, wanted: dict[str, torch.Tensor]) -> None:
    got = gradients_of(model)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-13)


@KINDS
@pytest.mark.parametrize("where", ["after the scope", "in another scope", "under an ablation"])
def test_a_late_backward_pass_recomputes_under_the_labels_of_its_forward(where, reentrant):
    model = checkpointed(reentrant)
    with routed(model, POLICY, LABELS):
        loss = mean_loss(model, tiny_batch())
    if where == "after the scope":
        loss.backward()
    elif where == "in another scope":
        with routed(model, POLICY, OTHERS):
            loss.backward()
    else:
        with ablated(model, "base"):
            loss.backward()
    assert_same(model, plain_gradients(LABELS))
    with pytest.raises(ConfigError, match="no routing is in force"):  # and nothing is left behind
        mean_loss(model, tiny_batch())


@KINDS
def test_two_forwards_with_other_labels_before_the_backward_passes_keep_apart(reentrant):
    model = checkpointed(reentrant)
    with routed(model, POLICY, LABELS):
        first = mean_loss(model, tiny_batch())
    with routed(model, POLICY, OTHERS):
        second = mean_loss(model, tiny_batch())
        (first + second).backward()
    one, other = plain_gradients(LABELS), plain_gradients(OTHERS)
    assert_same(model, {name: one[name] + other[name] for name in one})


@KINDS
def test_a_backward_pass_on_another_thread_sees_the_routes(reentrant):
    model = checkpointed(reentrant)
    with routed(model, POLICY, LABELS):
        loss = mean_loss(model, tiny_batch())
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert_same(model, plain_gradients(LABELS))


def by_hand(model: PeftModel, batch: TinyBatch) -> torch.Tensor:
    """Checkpointing that is not transformers' own: the whole model as one block."""
    return checkpoint(mean_loss, model, batch, use_reentrant=False)  # pyright: ignore


def test_checkpointing_by_hand_works_inside_the_scope_and_is_refused_outside():
    model = tiny_routed({"good": 2, "bad": 3})
    with routed(model, POLICY, LABELS):
        by_hand(model, tiny_batch()).backward()
    assert_same(model, plain_gradients(LABELS))
    with routed(model, POLICY, LABELS):
        loss = by_hand(model, tiny_batch())
    with pytest.raises(ConfigError, match="no routing is in force"):
        loss.backward()


def test_switching_checkpointing_on_again_inside_a_run_is_noticed():
    model = checkpointed(False)
    with routed(model, POLICY, LABELS):
        mean_loss(model, tiny_batch()).backward()
    model.zero_grad()
    base = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
    with routed(model, POLICY, LABELS):
        loss = mean_loss(model, tiny_batch())
    loss.backward()
    assert_same(model, plain_gradients(LABELS))
