"""A tracker shows what metrics.jsonl holds; whatever becomes of it, training is the same."""

import builtins
import json
import os
import subprocess
import sys
from typing import ClassVar

import pytest
from train.test_trainer import measured
from train.test_trainer import training as started

from gradroute.config.run_config import load_config
from gradroute.errors import MachineError
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines
from gradroute.train import tracking
from gradroute.train.tracking import tracked_config
from gradroute.train.trainer import train

SHORT = ("train.max_steps=4", "train.save_every=2", "train.gradient_accumulation=1")
EVERY_TWO = "train.measure_every=2"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")


class Recorder:
    """Stands for a tracker of accelerate; `told` outlives it."""

    told: ClassVar[list] = []
    breaks_at: int | None = None

    def __init__(self, project, **settings):
        self.settings = settings
        type(self).told.append(("start", project, settings))

    def start(self):
        pass

    def store_init_configuration(self, values):
        type(self).told.append(("config", values))

    def log(self, values, step=None):
        if step == type(self).breaks_at:
            raise OSError("No space left on device")
        type(self).told.append((step, values))

    def finish(self):
        type(self).told.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    """The tracker of wandb, which takes a helper process, replaced by a list."""
    monkeypatch.setattr("accelerate.tracking.WandBTracker", Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setattr(Recorder, "breaks_at", None)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return Recorder


def training(root, *overrides, measure=None):
    return started(root, *SHORT, *overrides, measure=measure)


def flat(row, prefix=""):
    for key, value in row.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def wanted(run):
    """step -> numbers, from the files of the run."""
    steps = {}
    for row in read_lines(run.folder.metrics):
        step = row.pop("step")
        steps[step] = dict(flat(row))
    for row in read_lines(run.folder.measures):
        step, mode = row.pop("step"), row.pop("mode")
        steps[step] |= dict(flat(row, f"during/{mode}/"))
    return steps


def test_a_tracker_is_told_the_numbers_of_the_metrics_and_changes_nothing(tmp_path, wandb):
    run, _ = training(tmp_path / "a", "train.report_to=wandb", EVERY_TWO, measure=measured)
    train(run)
    alone, _ = training(tmp_path / "b", EVERY_TWO, measure=measured)
    train(alone)
    told = {
        step: numbers for step, *rest in wandb.told if isinstance(step, int) for numbers in rest
    }
    assert told == wanted(run)
    assert "during/full/normal_loss" in told[2] and "during/full/normal_loss" not in told[3]
    assert run.folder.metrics.read_bytes() == alone.folder.metrics.read_bytes()
    assert weights(run) == weights(alone)
    assert not alone.folder.tracking.exists()


def weights(run):
    newest = max(run.folder.checkpoints.iterdir())
    files = json.loads((newest / "manifest.json").read_text())["sha256"]
    return {name: entry for name, entry in files.items() if name.endswith("safetensors")}


def test_wandb_is_offline_asks_nothing_and_writes_below_the_run(tmp_path, wandb, monkeypatch):
    run, _ = training(tmp_path, "train.report_to=wandb")
    train(run)
    (_, project, settings), *_ = wandb.told
    assert (project, settings["mode"], settings["name"]) == ("gradroute", "offline", "x")
    assert settings["dir"] == str(run.folder.tracking)
    assert settings["settings"].silent and settings["settings"].console == "off"
    assert not any(key.startswith("WANDB") for key in os.environ)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    again, _ = training(tmp_path / "b", "train.report_to=wandb")
    train(again)
    modes = [one[2]["mode"] for one in wandb.told if one[0] == "start"]
    assert modes == ["offline", "disabled"]


def test_a_resumed_run_goes_on_in_the_same_wandb_run_after_its_last_step(tmp_path, wandb):
    run, _ = training(tmp_path, "train.report_to=wandb")
    train(run)
    (run.folder.checkpoints / "step-000004").rename(tmp_path / "lost")
    wandb.told.clear()
    again, _ = training(tmp_path, "train.report_to=wandb")
    train(again)
    assert [one[0] for one in wandb.told] == ["start", 3, 4, "finish"]
    kept = (run.folder.tracking / "wandb-id.txt").read_text()
    assert wandb.told[0][2]["id"] == kept


@pytest.mark.parametrize("breaks_at", [1, 3])
def test_a_tracker_that_fails_is_said_once_and_switched_off(tmp_path, wandb, breaks_at):
    wandb.breaks_at = breaks_at
    run, said = training(tmp_path / "a", "train.report_to=wandb")
    train(run)
    alone, _ = training(tmp_path / "b")
    train(alone)
    assert sum("wandb failed and is switched off (No space left on device)" in s for s in said) == 1
    assert [one[0] for one in wandb.told if isinstance(one[0], int)] == list(range(1, breaks_at))
    assert run.folder.metrics.read_bytes() == alone.folder.metrics.read_bytes()


def test_a_tracker_that_cannot_be_imported_or_started_costs_no_training(tmp_path, monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "accelerate.tracking":
            raise ImportError("libfoo.so.3: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    run, said = training(tmp_path, "train.report_to=tensorboard")
    train(run)
    assert sum("tensorboard failed and is switched off (libfoo.so.3" in line for line in said) == 1
    assert len(list(read_lines(run.folder.metrics))) == 4


def test_what_is_not_installed_is_named_with_its_extra_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    run, _ = training(tmp_path, "train.report_to=tensorboard")
    with pytest.raises(MachineError, match=r"pip install 'gradroute\[tensorboard\]'"):
        train(run)
    assert not run.folder.metrics.exists()


def test_the_config_that_is_shown_has_no_text_that_somebody_wrote():
    config = load_config(
        None,
        [
            "model=/home/me/secret",
            "behavior=regex:hf_token",
            "data.path=/data/rows.jsonl",
            "targets=[q_proj]",
            "routing=absorb",
            "adapters.bad.rank=4",
        ],
    )
    shown = tracked_config(config.values_by_key)
    assert shown["adapters.bad.rank"] == 4 and shown["routing"] == "absorb"
    assert shown["train.max_steps"] == config.train.max_steps
    # Whatever decides a weight and is a number or a choice, and nothing else.
    assert shown["train.low_rank_dtype"] == "fp32" and shown["quantize"] == "none"
    assert not {"train.save_every", "evaluate.prompts", "data.label_seed", "run_name"} & set(shown)
    text = json.dumps(shown)
    assert not any(part in text for part in ("secret", "regex", "rows.jsonl", "q_proj", "/"))
    table = "{bad: {good: freeze, bad: update}, unlabeled: {good: update, bad: update}}"
    weighted = "{bad: {good: {update: 0.5}, bad: update}, unlabeled: {good: update, bad: update}}"
    for own in (table, weighted):
        shown = tracked_config(load_config(None, [f"routing={own}"]).values_by_key)
        assert not any(key.startswith("routing") for key in shown)


READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
tags = events.Tags()["scalars"]
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags}))
"""


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path):
    run, _ = training(tmp_path, "train.report_to=tensorboard", EVERY_TWO, measure=measured)
    train(run)
    (run.folder.checkpoints / "step-000004").rename(tmp_path / "lost")
    again, said = training(tmp_path, "train.report_to=tensorboard", EVERY_TWO, measure=measured)
    train(again)
    assert not any("failed" in line for line in said)
    # In a process of its own: reading warns of what this package does not use.
    command = [sys.executable, "-c", READ, str(run.folder.tracking / "tensorboard")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    scalars = json.loads(found.stdout.splitlines()[-1])
    for step, numbers in wanted(again).items():
        for tag, value in numbers.items():
            ((_, seen),) = [pair for pair in scalars[tag] if pair[0] == step]
            assert seen == pytest.approx(value, rel=1e-6), (tag, step)
    assert [step for step, _ in scalars["loss"]] == [1, 2, 3, 4]


def test_nothing_is_tracked_unless_it_is_asked_for(tmp_path):
    run, _ = training(tmp_path)
    train(run)
    assert not RunFolder(run.folder.path).tracking.exists()
