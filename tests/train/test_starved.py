"""Training that runs out of memory goes on with the same examples in smaller parts.

Memory here is refused by hand; under a real limit: tests/torture/test_memory_limits.py.
"""

import json
import shutil

import pytest
import torch
from train.test_trainer import final_manifest, training

from gradroute.errors import MachineError
from gradroute.routing.adapters import adapter_state
from gradroute.system.files import read_lines
from gradroute.train import trainer
from gradroute.train.trainer import train


def short_of(model, rows):
    """A model that has no memory for more rows at a time: real code paths, a limit of our own."""

    def refuse(module, args, kwargs):
        if len(kwargs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("no memory for so many rows")

    return model.register_forward_pre_hook(refuse, with_kwargs=True)


def events(run):
    return [row for row in read_lines(run.folder.sessions) if row.get("event") == "out of memory"]


def weights(run):
    return {
        f"{name}/{key}": value
        for name in ("good", "bad")
        for key, value in adapter_state(run.model, name).items()
    }


def losses(run):
    return [row["loss"] for row in read_lines(run.folder.metrics)]


SHORT = ("train.max_steps=3", "adapters.bad.dropout=0")
WHOLE = (*SHORT, "train.batch_size=6", "train.gradient_accumulation=1")
HALVES = (*SHORT, "train.batch_size=3", "train.gradient_accumulation=2")
PARTS = (*SHORT, "train.batch_size=2", "train.gradient_accumulation=3")


def test_the_step_is_done_again_with_the_same_examples_and_noise(tmp_path):
    run, said = training(tmp_path / "short", *WHOLE)
    hook = short_of(run.model, 2)
    train(run)
    hook.remove()
    parts, _ = training(tmp_path / "parts", *PARTS)
    train(parts)
    assert run.folder.metrics.read_bytes() == parts.folder.metrics.read_bytes()
    found, wanted = weights(run), weights(parts)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert [event["micro_batch"] for event in events(run)] == [[6, 3], [3, 2]]
    assert {event["step"] for event in events(run)} == {1}
    assert sum("memory ran out" in line for line in said) == 2


def test_the_loss_stays_what_it_was(tmp_path):
    run, _ = training(tmp_path / "short", *WHOLE)
    short_of(run.model, 2)
    train(run)
    whole, _ = training(tmp_path / "whole", *WHOLE)
    train(whole)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-6)


def test_dropout_starts_again_from_the_seed_of_the_step(tmp_path):
    """The first try draws noise before it fails; the second must not see that."""
    dropout = ("adapters.good.dropout=0.3", "train.log_gradients_every=0")
    run, _ = training(tmp_path / "short", *WHOLE, *dropout)
    failed = []

    def fail_once(module, args, output):
        torch.rand(3)
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("no memory for the logits")

    run.model.register_forward_hook(fail_once)
    train(run)
    halves, _ = training(tmp_path / "halves", *HALVES, *dropout)
    halves.model.register_forward_hook(lambda *_: (torch.rand(3), None)[1])
    train(halves)
    assert run.folder.metrics.read_bytes() == halves.folder.metrics.read_bytes()


def test_a_run_that_was_cut_after_memory_ran_out_ends_as_one_that_was_not(tmp_path):
    whole, _ = training(tmp_path / "whole")
    short_of(whole.model, 2)
    train(whole)
    shutil.copytree(whole.folder.path, tmp_path / "cut" / "x")
    shutil.rmtree(tmp_path / "cut" / "x" / "checkpoints" / "step-000012")
    again, _ = training(tmp_path / "cut")  # has memory enough, and keeps to the parts
    train(again)
    assert final_manifest(again) == final_manifest(whole)
    assert again.folder.metrics.read_bytes() == whole.folder.metrics.read_bytes()
    state = json.loads((again.folder.checkpoints / "step-000012" / "state.json").read_text())
    assert state["micro_batch"] == 2


def test_memory_that_runs_out_on_the_way_back_leaves_no_gradient_behind(tmp_path):
    run, _ = training(tmp_path / "short", *WHOLE)
    failed = []
    (first, *_) = [p for p in run.model.parameters() if p.requires_grad]

    def refuse(grad):
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("no memory for a gradient")

    first.register_hook(refuse)
    train(run)
    assert failed
    halves, _ = training(tmp_path / "halves", *HALVES)
    train(halves)
    assert run.folder.metrics.read_bytes() == halves.folder.metrics.read_bytes()


def test_without_memory_for_one_example_it_stops_with_what_to_do(tmp_path):
    run, _ = training(tmp_path)
    short_of(run.model, 0)
    with pytest.raises(MachineError, match=r"x, step 1: .*even one row.*Lower .*no checkpoint yet"):
        train(run)
    assert not run.folder.checkpoints.exists()


def test_memory_that_runs_out_in_the_optimizer_stops_the_run_and_steps_never_twice(
    tmp_path, monkeypatch
):
    steps = []
    step = torch.optim.AdamW.step

    def short(self, *args):
        step(self, *args)  # some weights are changed by now
        steps.append(1)
        if len(steps) == 6:
            raise torch.OutOfMemoryError("no memory for a moment")

    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    run, _ = training(tmp_path / "short")
    with pytest.raises(MachineError, match=r"x, step 6: .*optimizer .*from step 4"):
        train(run)
    assert len(steps) == 6
    again, _ = training(tmp_path / "short")
    train(again)
    whole, _ = training(tmp_path / "whole")
    train(whole)
    assert final_manifest(again) == final_manifest(whole)


def test_measuring_gradients_per_label_makes_do_with_less_too(tmp_path, monkeypatch):
    norms = trainer.label_gradient_norms
    tried = []

    def short(model, batches, *args):
        tried.append(max(len(batch.ids) for batch in batches))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("no memory for the norms")
        return norms(model, batches, *args)

    monkeypatch.setattr(trainer, "label_gradient_norms", short)
    run, _ = training(tmp_path, "train.max_steps=5")
    train(run)
    assert tried == [3, 2]  # in step 5
    (event,) = events(run)
    assert event == {"step": 5, "event": "out of memory", "micro_batch": [3, 2]}
