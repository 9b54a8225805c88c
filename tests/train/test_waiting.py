"""A step waits for its device once, before the optimizer acts.

The device of these tests is "meta", which computes nothing: there every attempt to read a number
is an error. So whatever a step reads, it must read through `to_host`, which is replaced here.
"""

import math
from dataclasses import replace

import pytest
import torch
from routing.tiny import gradients_of, tiny_routed
from train.token_rows import POLICY, ROWS, example

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import micro_batches
from gradroute.errors import NumericError
from gradroute.routing.adapters import adapter_parameters
from gradroute.system.devices import to_device, to_host
from gradroute.train import step_report
from gradroute.train.model_checks import needs_no_mask
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import accumulate_gradients, train_step

SETTINGS = {name: AdapterConfig(clip=clip) for name, clip in (("good", 1.0), ("bad", None))}
PLAIN = [example(name, 7, label) for name, label in zip("abcd", POLICY.labels[:2] * 2, strict=True)]


def read(monkeypatch, number=1.0):
    """Let what is fetched be this number; what was, as counts of tensors."""
    waits: list[int] = []

    def answer(tensors):
        waits.append(len(tensors))
        return [[number] * one.numel() for one in tensors]

    monkeypatch.setattr(step_report, "to_host", answer)
    return waits


def step(model, batches, **more):
    optimizer = build_optimizer(model, SETTINGS, 1e-2)
    return train_step(model, optimizer, batches, POLICY, loss_mean="token", rate=1.0, **more)


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("rows", [PLAIN, ROWS], ids=["by example", "by token"])
def test_a_step_reads_its_numbers_at_once(monkeypatch, rows, size):
    waits = read(monkeypatch)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # knows no "meta"
    model = tiny_routed(dtype=torch.float32).to("meta")
    batches = micro_batches(rows, size, 0, packed_into=None)
    there = [replace(batch.to("meta"), bare=True) for batch in batches]
    report = step(model, there, check_after=False)
    assert len(waits) == 1
    assert report.updated == {"good", "bad"} and report.loss == len(batches)
    assert [row.id for row in report.rows] == [row.id for row in rows]
    assert sum(report.tokens.values()) == sum(row.target_count for row in rows)


def test_rows_without_padding_go_without_a_mask_and_others_only_where_it_is_known_to_be_right():
    alike, mixed = (micro_batches(rows, 9, 0, packed_into=None)[0] for rows in (PLAIN, ROWS))
    assert alike.inputs["attention_mask"] is not None  # on the CPU nothing is to be gained
    assert alike.to("meta").inputs["attention_mask"] is None
    assert mixed.to("meta").inputs["attention_mask"] is not None
    assert replace(mixed, bare=True).inputs["attention_mask"] is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_causal_model_computes_the_same_gradient_without_a_mask(kind):
    model = tiny_routed(kind=kind)
    assert needs_no_mask(model, ROWS, 0)
    found = []
    [batch] = micro_batches(ROWS, 9, 0, packed_into=None)
    for bare in (False, True):
        model.zero_grad(set_to_none=True)
        accumulate_gradients(model, [replace(batch, bare=bare)], POLICY, "token")
        found.append(gradients_of(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=0, atol=1e-12)


def test_a_model_that_looks_ahead_needs_its_mask():
    model = tiny_routed()

    def ahead(module, args, kwargs):
        if kwargs.get("attention_mask") is None:
            rows, width = kwargs["input_ids"].shape
            everything = torch.zeros(rows, 1, width, width, dtype=torch.float64)
            kwargs = kwargs | {"attention_mask": everything}
        return args, kwargs

    model.get_base_model().register_forward_pre_hook(ahead, with_kwargs=True)
    assert not needs_no_mask(model, ROWS, 0)


def test_a_model_that_insists_on_its_mask_gets_it():
    model = tiny_routed()

    def insists(module, args, kwargs):
        if kwargs.get("attention_mask") is None:
            raise ValueError("a mask is needed")

    model.get_base_model().register_forward_pre_hook(insists, with_kwargs=True)
    assert not needs_no_mask(model, ROWS, 0)
    assert model.training


def test_what_is_to_be_done_meanwhile_is_done_between_the_work_and_the_wait(monkeypatch):
    waits = read(monkeypatch)
    model = tiny_routed()
    seen = []
    [batch] = micro_batches(PLAIN, 4, 0, packed_into=None)
    step(model, [batch], while_waiting=lambda: seen.append((len(waits), len(gradients_of(model)))))
    assert seen == [(0, sum(map(len, adapter_parameters(model).values())))]
    assert len(waits) == 1


def test_numbers_that_are_fetched_together_are_those_that_were_there():
    tensors = [torch.tensor(1 / 3), torch.randn(2, 3).double(), torch.tensor([math.inf])]
    found = to_host(tensors)
    assert found == [one.flatten().tolist() for one in tensors]
    assert to_device(tensors[1], "cpu") is tensors[1]


def test_weights_that_a_step_broke_stop_the_next_one_before_it_acts():
    model = tiny_routed()
    optimizer = build_optimizer(model, SETTINGS, 1e-2)
    [batch] = micro_batches(PLAIN, 4, 0, packed_into=None)

    def once():
        train_step(
            model, optimizer, [batch], POLICY, loss_mean="token", rate=1.0, check_after=False
        )

    once()
    good = adapter_parameters(model)["good"]
    good[0].data[0, 0] = math.inf
    steps = [int(optimizer.state[p]["step"]) for p in good]
    with pytest.raises(NumericError, match="the update has made weights of adapter 'good'"):
        once()
    assert [int(optimizer.state[p]["step"]) for p in good] == steps
