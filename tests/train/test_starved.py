"""Training that runs out of memory goes on with the same examples in smaller parts."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from train import starved
from train.test_trainer import final_manifest, training

from gradroute.errors import MachineError
from gradroute.files import read_lines
from gradroute.folders import RunFolder
from gradroute.routing.adapters import adapter_state
from gradroute.train import trainer
from gradroute.train.trainer import train

ROOMS = [megabytes << 20 for megabytes in (96, 64, 48, 32, 24, 16)]


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


def test_a_real_limit_of_memory_changes_the_parts_of_a_step_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, starved.__file__, str(tmp_path), json.dumps(ROOMS)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed is no room for the next that asks
        },
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    short, free, parts, again = (
        RunFolder(tmp_path / name) for name in ("short", "free", "parts", "again")
    )
    said, measured, digest = told["short"]
    steps = starved.refused(short.path)
    # How often and when depends on where the allocator finds room: not the same in every process.
    assert steps and steps[0] == (1, 64, 32)
    assert all(after == before / 2 for _, before, after in steps)
    assert sum("memory ran out" in line for line in said) == len(steps)
    assert "memory ran out in an evaluation" in done.stderr

    for one, two in zip(read_lines(short.metrics), read_lines(free.metrics), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
        assert one["examples"] == two["examples"] and one["tokens"] == two["tokens"]
    _, unlimited, _ = told["free"]
    for mode, sums in unlimited.items():
        assert measured[mode] == pytest.approx(sums, rel=1e-6)

    # Exactly the run that was refused the same sizes in the same steps, by hand.
    assert starved.refused(parts.path) == steps
    assert told["parts"][2] == digest
    assert short.metrics.read_bytes() == parts.metrics.read_bytes()

    # And resumed where there is memory enough, it goes on in the same parts.
    assert told["again"][2] == digest
    assert short.metrics.read_bytes() == again.metrics.read_bytes()


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
    cut, _ = training(tmp_path / "cut")
    short_of(cut.model, 2)
    train(cut)
    shutil.rmtree(cut.folder.checkpoints / "step-000012")
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
    with pytest.raises(MachineError, match=r"x, step 6: .*optimizer .*that of step 4"):
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
