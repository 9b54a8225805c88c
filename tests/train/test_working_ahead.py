"""The loop as on a GPU, tried on the CPU: batches made ahead, weights looked at later."""

import shutil
from dataclasses import replace

import pytest
import torch
from train.test_packed_training import weights
from train.test_trainer import training

from gradroute.errors import NumericError
from gradroute.routing.adapters import adapter_parameters
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines
from gradroute.train import trainer
from gradroute.train.audit import Audit
from gradroute.train.trainer import train

SHORT = ("train.max_steps=4", "train.save_every=2", "train.log_gradients_every=3")


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(trainer, "_is_asynchronous", lambda run: True)


def audited(root, *overrides):
    run, said = training(root, *SHORT, *overrides)
    labels = {row.id: run.policy.labels[row.label_id] for row in run.rows}
    return replace(run, audit=Audit(run.folder.audit, run.rows, labels, run.policy)), said


def test_what_is_made_ahead_is_what_a_resumed_and_a_starved_run_train_on(apart, tmp_path):
    whole, said = audited(tmp_path / "whole")
    train(whole)
    assert said[-1] == "x: audit: 24 rows in 4 steps, every route as the table says."
    cut = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "cut" / "x"))
    (cut.checkpoints / "step-000004").rename(tmp_path / "lost")
    again, _ = audited(tmp_path / "cut")
    train(again)
    assert all(torch.equal(weights(again)[name], one) for name, one in weights(whole).items())
    starved, said = audited(tmp_path / "starved", "train.max_steps=3")
    calls = []

    def refuse_once(module, args):
        calls.append(1)
        if len(calls) == 8:  # two of the check, two of each step: when the next batches are made
            raise torch.OutOfMemoryError("no memory for a moment")

    starved.model.get_base_model().register_forward_pre_hook(refuse_once)
    train(starved)
    assert any("it goes on with 2" in line for line in said)
    assert [
        sorted(place for place, *_ in line["rows"]) for line in read_lines(starved.folder.audit)
    ] == [sorted(place for place, *_ in line["rows"]) for line in read_lines(whole.folder.audit)][
        :3
    ]


def test_weights_that_the_last_step_broke_are_never_saved(apart, tmp_path, monkeypatch):
    run, _ = training(tmp_path, *SHORT)
    act = trainer.train_step

    def breaks(model, optimizer, *args, **more):
        report = act(model, optimizer, *args, **more)
        if int(optimizer.state[adapter_parameters(model)["good"][0]]["step"]) == 4:
            adapter_parameters(model)["good"][0].data[0, 0] = float("nan")
        return report

    monkeypatch.setattr(trainer, "train_step", breaks)
    with pytest.raises(NumericError):
        train(run)
    assert [path.name for path in run.folder.checkpoints.glob("step-*")] == ["step-000002"]
