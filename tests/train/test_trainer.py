"""The loop: its result depends on the config alone, wherever it was interrupted."""

import json
import os
import shutil
import signal

import pytest
import torch
from small_llama import small_llama

from gradroute.config.run_config import dump_config, load_config
from gradroute.data.batches import DataOrder, TokenizedExample
from gradroute.errors import DataError, Interrupted, NumericError
from gradroute.evaluate.losses import held_out_losses
from gradroute.models.checkpoint import latest_checkpoint
from gradroute.routing.adapters import adapter_state, attach_adapters
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.system.files import append_line, read_lines
from gradroute.train import trainer
from gradroute.train.optimizer import build_optimizer
from gradroute.train.tracking import tracked_config
from gradroute.train.trainer import Training, train

OVERRIDES = (
    "run_name=x",
    "train.max_steps=12",
    "train.batch_size=3",
    "train.gradient_accumulation=2",
    "train.learning_rate=0.01",
    "train.save_every=4",
    "train.log_gradients_every=5",
    "adapters.bad.dropout=0.2",
    "adapters.good.rank=3",
    "adapters.bad.rank=2",
)


def rows(policy):
    draw = torch.Generator().manual_seed(1)
    labels = ["bad", "unlabeled", "good", "unlabeled", "bad"] * 3
    return [
        TokenizedExample(
            id=f"r{i}",
            input_ids=tuple(torch.randint(3, 40, (5 + i % 3,), generator=draw).tolist()),
            target_start=0,
            label_id=policy.label_ids([label])[0],
            true_label="bad" if label == "bad" else "good",
        )
        for i, label in enumerate(labels)
    ]


def training(root, *overrides, measure=None):
    """A run, and what it says; `measure(run, step)` is called as the run's measurement."""
    config = load_config(None, [*OVERRIDES, *overrides])
    policy = RoutingPolicy.parse("anchored", tuple(config.adapters))
    folder = RunFolder(root / "x")
    folder.path.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    examples = rows(policy)
    model = attach_adapters(small_llama(), config.adapters, layers="all")
    run = Training(
        settings=config.train,
        seed=config.seed,
        config_text=dump_config(config),
        told=tracked_config(config.values_by_key),
        folder=folder,
        model=model,
        optimizer=build_optimizer(model, config.adapters, config.train.learning_rate),
        rows=examples,
        order=DataOrder(config.seed, len(examples), tuple(range(len(examples)))),
        policy=policy,
        pad_id=0,
        packed_into=config.data.max_length if config.train.packing else None,
        say=said.append,
        measure=None if measure is None else lambda step: measure(run, step),
    )
    return run, said


def final_manifest(run):
    return json.loads((run.folder.checkpoints / "step-000012" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from its first step to its last."""
    run, _ = training(tmp_path_factory.mktemp("whole"))
    train(run)
    return run


@pytest.mark.parametrize("kept", [0, 8])
def test_a_run_that_lost_its_later_steps_ends_bit_identical_to_one_that_did_not(
    tmp_path, whole, kept
):
    cut = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "cut" / "x"))
    for later in (8, 12):
        if later > kept:
            step = cut.checkpoints / f"step-{later:06d}"
            for path in sorted(step.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            step.rmdir()
    again, said = training(tmp_path / "cut")
    train(again)
    assert any("goes on after step 8" in line for line in said) == (kept == 8)
    assert final_manifest(again) == final_manifest(whole)
    assert again.folder.metrics.read_bytes() == whole.folder.metrics.read_bytes()


def test_the_two_newest_checkpoints_are_kept(whole):
    kept = sorted(path.name for path in whole.folder.checkpoints.iterdir())
    assert kept == ["step-000008", "step-000012"]


def test_metrics_name_every_step_and_gradients_per_adapter_and_label_now_and_then(whole):
    lines = [json.loads(line) for line in whole.folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "gradient_norm_per_label" in line] == [5, 10]
    for line in lines:
        assert sum(line["examples"].values()) == 6
        assert set(line["loss_per_label"]) == set(line["examples"])
        assert set(line["learning_rate"]) == {"good", "bad"}


def test_measuring_gradients_changes_nothing_in_the_result(tmp_path):
    often, _ = training(tmp_path / "often", "train.log_gradients_every=1")
    never, _ = training(tmp_path / "never", "train.log_gradients_every=0")
    train(often)
    train(never)
    for adapter in ("good", "bad"):
        one, two = (adapter_state(run.model, adapter) for run in (often, never))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_training_changes_both_adapters_and_never_the_base(tmp_path):
    run, _ = training(tmp_path)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    train(run)
    for name, parameter in run.model.named_parameters():
        moved = not torch.equal(before[name], parameter)
        assert moved == (".good." in name or ".bad." in name), name


def test_a_step_that_is_not_finite_names_run_step_and_examples_and_keeps_checkpoints(tmp_path):
    run, _ = training(tmp_path, "train.learning_rate=1e30", "adapters.good.clip=null")
    with pytest.raises(NumericError, match=r"x, step \d+: .*r\d+"):
        train(run)
    assert not list(run.folder.checkpoints.glob("step-000012"))


def test_a_stop_that_is_asked_after_a_step_was_not_saved_is_met_by_the_next(tmp_path, monkeypatch):
    def due(step, every):
        if (step, every) == (1, 4):  # whether step 1 is saved
            os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(trainer, "_due", due)
    run, _ = training(tmp_path)
    with pytest.raises(Interrupted, match=r"stopped after step 2 of 12 and saved"):
        train(run)
    newest = latest_checkpoint(run.folder.checkpoints)
    assert newest is not None and newest.step == len([*read_lines(run.folder.metrics)])


EVERY_FIVE = "train.measure_every=5"


def measured(run, step):
    """What a measurement does: it runs the model under modes, draws noise, and writes a line."""
    losses = held_out_losses(
        run.model, run.rows, modes_of(run), pad_id=run.pad_id, rows_per_batch=64
    )
    torch.rand(7)
    run.folder.measures.parent.mkdir(exist_ok=True)
    for mode, (sums, _) in losses.items():
        append_line(run.folder.measures, {"step": step, "mode": mode, "normal_loss": sum(sums)})


def modes_of(run):
    return [AblationMode.parse(name, tuple(run.policy.adapters)) for name in ("full", "base")]


def test_a_measurement_comes_every_so_many_steps_and_after_the_last(tmp_path):
    steps: list[int] = []
    run, _ = training(tmp_path, EVERY_FIVE, measure=lambda _, step: steps.append(step))
    train(run)
    assert steps == [5, 10, 12]


def test_measuring_during_training_changes_no_bit_of_the_result(tmp_path):
    watched, _ = training(tmp_path / "watched", EVERY_FIVE, measure=measured)
    alone, _ = training(tmp_path / "alone", EVERY_FIVE)
    train(watched)
    train(alone)
    assert final_manifest(watched) == final_manifest(alone)
    assert watched.folder.metrics.read_bytes() == alone.folder.metrics.read_bytes()


def test_a_resumed_run_measures_what_an_uninterrupted_one_does(tmp_path):
    whole, _ = training(tmp_path / "whole", EVERY_FIVE, measure=measured)
    train(whole)
    cut = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "cut" / "x"))
    (cut.checkpoints / "step-000012").rename(tmp_path / "lost")
    again, _ = training(tmp_path / "cut", EVERY_FIVE, measure=measured)
    train(again)
    assert [row["step"] for row in read_lines(again.folder.measures)] == [5, 5, 10, 10, 12, 12]
    assert again.folder.measures.read_bytes() == whole.folder.measures.read_bytes()
    assert final_manifest(again) == final_manifest(whole)


def test_a_measurement_that_fails_costs_no_training(tmp_path):
    def fails(run, step):
        if step == 10:
            raise DataError("the detector raised.")

    run, _ = training(tmp_path, EVERY_FIVE, measure=fails)
    with pytest.raises(DataError, match="the detector raised"):
        train(run)
    again, said = training(tmp_path, EVERY_FIVE, measure=measured)
    train(again)
    assert any("goes on after step 10" in line for line in said)
