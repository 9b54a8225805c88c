"""A finished run as the teacher of another one: what it says, and what is refused."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_runs import ONE, TINY, TWO, tiny_run

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, MachineError
from gradroute.models.base import load_base_of
from gradroute.models.checkpoint import latest_checkpoint
from gradroute.models.trained import attach, finished_checkpoint, restore
from gradroute.routing.adapters import ablated
from gradroute.routing.stand_in import standing_in
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines
from gradroute.train.reference import open_reference

RANK = ("adapters.good.rank=5", "train.max_steps=4", "train.save_every=2")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A routed run `routed`, and `student`, which it has taught."""
    root = tmp_path_factory.mktemp("taught")
    tiny_run(root, "routed", *TWO, "adapters.bad.alpha=3")
    tiny_run(root, "student", *ONE, *RANK, f"train.teacher={root}/routed@bad_ablated")
    return root


def weights(folder: RunFolder) -> bytes:
    checkpoint = latest_checkpoint(folder.checkpoints)
    assert checkpoint is not None
    return (checkpoint.path / "good" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("mode", ["bad_ablated", "full", "good=0.5,bad=2", "base"])
def test_a_teacher_says_what_the_run_says_under_its_mode(taught: Path, mode: str):
    """In one adapter of another rank and scale, beside which the student's own weights stay."""
    folder = RunFolder(taught / "routed")
    config = load_config(folder.config)
    _, run = restore(config, finished_checkpoint(folder, config.train.max_steps))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), ablated(run, mode):
        wanted = run(input_ids=ids).logits
    student = load_config(
        RunFolder(taught / "student").config, [f"train.teacher={folder.path}@{mode}"]
    )
    base, model = restore(student, finished_checkpoint(RunFolder(taught / "student"), 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reference, facts = open_reference(student, model, student.policy, base.identity)
    assert reference is not None and reference.alone and facts["teacher"].startswith(mode)
    inside = standing_in(model, "good", reference.weights) if reference.weights else nullcontext()
    with torch.no_grad(), inside, ablated(model, reference.mode):
        said = model(input_ids=ids).logits
    torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_student_learns_from_the_teacher_alone(taught: Path):
    folder = RunFolder(taught / "student")
    lines = list(read_lines(folder.metrics))
    assert all(line["loss"] == line["divergence"] for line in lines)
    assert lines[-1]["divergence"] < lines[0]["divergence"]
    labels = set().union(*(line["examples"] for line in lines))
    assert "bad" not in labels
    assert "bad_ablated, checkpoint " in json.loads(folder.manifest.read_text())["teacher"]


def test_a_resumed_student_ends_bit_identical(taught: Path, tmp_path: Path):
    cut = RunFolder(Path(shutil.copytree(taught / "student", tmp_path / "student")))
    shutil.rmtree(cut.checkpoints / "step-000004")
    place = f"train.teacher={taught}/routed@bad_ablated"
    tiny_run(tmp_path, "student", *ONE, *RANK, place)
    assert weights(cut) == weights(RunFolder(taught / "student"))


def test_a_teacher_that_was_trained_anew_is_another_one(tmp_path: Path):
    place = f"train.teacher={tmp_path}/routed@bad_ablated"
    tiny_run(tmp_path, "routed", *TWO)
    tiny_run(tmp_path, "student", *ONE, *RANK, place)
    shutil.rmtree(tmp_path / "student" / "checkpoints" / "step-000004")
    shutil.rmtree(tmp_path / "routed")
    tiny_run(tmp_path, "routed", *TWO, "train.learning_rate=1e-3")
    with pytest.raises(ConfigError, match=r"identity\.teacher"):
        tiny_run(tmp_path, "student", *ONE, *RANK, place)


def test_a_teacher_that_cannot_teach_is_refused_in_a_sentence(taught: Path, tmp_path: Path):
    def opened(place: str, *overrides: str, identity: str = "") -> None:
        own = load_config(None, [*TINY, *ONE, *overrides, f"train.teacher={place}"])
        base = load_base_of(own)
        open_reference(own, attach(base.model, own), own.policy, identity or base.identity)

    run = taught / "routed"
    with pytest.raises(ConfigError, match="adapts other modules"):
        opened(f"{run}@bad_ablated", "targets=mlp")
    with pytest.raises(ConfigError, match="'worse_ablated' names the adapter 'worse'"):
        opened(f"{run}@worse_ablated")
    with pytest.raises(ConfigError, match="was trained on another base"):
        opened(f"{run}@full", identity="sha256 0")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "checkpoints")
    with pytest.raises(MachineError, match="unfinished has 0 of 3 steps"):
        opened(f"{unfinished}@full")
    with pytest.raises(ConfigError, match=r"FOLDER@MODE is needed, as in runs/caps@bad_ablated"):
        load_config(None, ["train.teacher=runs/caps"])
    with pytest.raises(ConfigError, match=r"set train\.kl_good=0"):
        load_config(None, [f"train.teacher={run}@full", "train.kl_good=1"])
