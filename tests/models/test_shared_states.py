"""Hidden states of whole batches that runs share: the same bits as without, whatever happens."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import TINY, TWO

from gradroute.config.run_config import find_config, load_config
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.models.shared_states import _digest, _name
from gradroute.preflight.validation import validate
from gradroute.probes.finder import find_rows
from gradroute.probes.recovery import recover_run
from gradroute.probes.relearning import relearn_runs
from gradroute.routing.frozen_layers import LowerLayers
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.states import FOLDER, FRESH, begin_sharing
from gradroute.system.files import UNFINISHED

SETTINGS = (*TINY, *TWO, "layers=last-half", "train.log_gradients_every=2")
KINDS = {
    "in parts, measured meanwhile, pulled to the base": (
        "train.gradient_accumulation=2",
        "train.measure_every=2",
        "train.measure_prompts=2",
        "train.kl_good=0.5",
        "data.good_labeled_fraction=0.5",
    ),
    "packed": ("train.packing=true",),
}


def go(root: Path, name: str, *overrides: str) -> RunFolder:
    config = load_config(find_config("caps"), [*SETTINGS, *overrides, f"run_name={name}"])
    folder = train_run(config, root, if_exists="resume", bar=False)
    evaluate_run(folder)
    return folder


def computed(folder: RunFolder) -> dict[str, bytes]:
    """All that a run computed: weights, moments, lines of steps, completions and losses."""
    paths = [*folder.path.rglob("*.safetensors"), folder.metrics, *folder.path.rglob("*.jsonl")]
    names = {str(path.relative_to(folder.path)): path for path in paths}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if path.name not in ("timings.jsonl", "sessions.jsonl")
    }


def test_training_takes_no_more_room_than_was_estimated(tmp_path: Path):
    settings = (*SETTINGS, "train.log_gradients_every=0", "controls=[filter]", "run_name=one")
    config = load_config(find_config("caps"), settings)
    estimate = validate(config, tmp_path).facts["estimate"]
    begin_sharing(tmp_path)
    train_run(config, tmp_path, if_exists="fail", bar=False)
    taken = sum(path.stat().st_size for path in kept(tmp_path))
    assert 0 < taken <= estimate["shared"] + 500 * len(kept(tmp_path))  # a header for each file
    frozen = config.train.model_copy(update={"reuse_frozen": True})
    other = validate(config.model_copy(update={"train": frozen}), tmp_path).facts["estimate"]
    assert other["shared"] == 0 < other["states"]


def kept(root: Path) -> list[Path]:
    return sorted((root / FOLDER).rglob("*.safetensors"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that shares nothing."""
    return go(tmp_path_factory.mktemp("alone"), "x")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run where states are shared, the first one there."""
    root = tmp_path_factory.mktemp("shared")
    begin_sharing(root)
    return go(root, "x")


def copy_of(shared: RunFolder, root: Path) -> Path:
    """A place with the states that a run left."""
    shutil.copytree(shared.path.parent / FOLDER, root / FOLDER)
    return root


def test_without_the_folder_nothing_is_shared(alone: RunFolder) -> None:
    assert not (alone.path.parent / FOLDER).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_shares_states_computes_the_bits_of_one_that_does_not(
    tmp_path: Path, kind: str
) -> None:
    begin_sharing(tmp_path / "shared")
    go(tmp_path / "shared", "first", *KINDS[kind], "data.labeled_fraction=1.0")
    assert kept(tmp_path / "shared")
    second = computed(go(tmp_path / "shared", "x", *KINDS[kind]))
    for name, content in computed(go(tmp_path / "plain", "x", *KINDS[kind])).items():
        assert second[name] == content, name


def test_the_lower_layers_run_no_more_for_what_another_run_has_kept(
    shared: RunFolder, alone: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ran = copy_of(shared, tmp_path), []
    states = LowerLayers.states

    def counted(lower, model, inputs):
        ran.append(inputs)
        return states(lower, model, inputs)

    before = kept(root)
    monkeypatch.setattr(LowerLayers, "states", counted)
    folder = go(root, "y", "train.log_gradients_every=0", "data.labeled_fraction=1.0")
    monkeypatch.undo()
    # Of each of the two models: three to look at it, and one to compare what is found.
    assert len(ran) == 2 * 4
    assert kept(root) == before
    assert computed(folder).keys() == computed(alone).keys()


def test_states_of_another_run_are_those_of_their_batch_and_mode_alone() -> None:
    ids = torch.tensor([[1, 2], [3, 0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    given = {"input_ids": ids, "attention_mask": mask}
    changed = [
        {**given, "input_ids": ids.flip(0)},
        {**given, "input_ids": ids.reshape(1, 4), "attention_mask": mask.reshape(1, 4)},
        {**given, "attention_mask": torch.ones_like(mask)},
        {**given, "attention_mask": None},
        {**given, "position_ids": ids},
    ]
    found = {_name(inputs, False) for inputs in (given, *changed)} | {_name(given, True)}
    assert len(found) == 7
    assert _name({**given, "use_cache": False}, False) == _name(given, False)


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_file_is_said_and_its_states_are_computed_again(
    shared: RunFolder,
    alone: RunFolder,
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copy_of(shared, tmp_path)
    path = kept(root)[0]
    content = path.read_bytes()
    changed = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    damaged = {"changed": changed, "cut": content[:-40]}
    path.write_bytes(damaged[damage])
    assert computed(go(root, "x")) == computed(alone)
    assert capsys.readouterr().err.count("is damaged; its states are computed again") == 1
    assert path.read_bytes() == content


def test_whole_states_of_other_bits_are_not_used_and_that_is_said(
    shared: RunFolder, alone: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(shared, tmp_path)
    for path in kept(root):
        states = load_file(path)["states"] * 1.0000001
        digest = torch.tensor(list(_digest(states)), dtype=torch.uint8)
        save_file({"states": states, "sha256": digest}, path)
    assert computed(go(root, "x")) == computed(alone)
    assert capsys.readouterr().err.count("are other bits than this process computes") == 2


@pytest.mark.parametrize("after", [0, 3])
def test_a_disk_that_becomes_full_stops_no_run_and_is_said(
    alone: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
) -> None:
    write, left = Path.write_bytes, [after]

    def refuse(path: Path, content: bytes) -> int:
        if path.suffix == ".safetensors" and path.parent.parent.name == FOLDER:
            if not left[0]:
                write(path, content[:10])
                raise OSError(28, "No space left on device")
            left[0] -= 1
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    begin_sharing(tmp_path)
    assert computed(go(tmp_path, "x")) == computed(alone)
    assert len(kept(tmp_path)) == after
    assert not list((tmp_path / FOLDER).rglob(f"{UNFINISHED}*"))
    # Training and measuring, each once.
    assert capsys.readouterr().err.count("not kept for other runs any more") == 2


@pytest.mark.parametrize(
    ("gib", "told"), [("0", 0), ("0.000001", 2)], ids=["switched off", "too little"]
)
def test_what_would_take_more_than_the_limit_is_not_shared(
    alone: RunFolder,
    tmp_path: Path,
    gib: str,
    told: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin_sharing(tmp_path)
    assert computed(go(tmp_path, "x", f"train.reuse_gib={gib}")) == computed(alone)
    assert kept(tmp_path) == []
    assert capsys.readouterr().err.count("are not shared with other runs") == told


def test_a_full_folder_keeps_what_the_other_runs_of_a_grid_use_now(
    shared: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(shared, tmp_path)
    before = kept(root)
    for path in before:
        path.touch()
    size = sum(path.stat().st_size for path in before)
    go(root, "y", "seed=5", f"train.reuse_gib={size / 2**30}")
    assert kept(root) == before
    assert f"{FOLDER} is full" in capsys.readouterr().err
    for path in before:
        os.utime(path, (0, path.stat().st_mtime - 2 * FRESH))
    go(root, "z", "seed=6", f"train.reuse_gib={size / 2**30}")
    assert set(kept(root)) != set(before)
    assert sum(path.stat().st_size for path in kept(root)) <= size


def test_a_model_without_frozen_layers_shares_nothing_and_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_sharing(tmp_path)
    go(tmp_path, "x", "layers=all")
    assert kept(tmp_path) == []
    assert "shared" not in capsys.readouterr().err


def probed(trained: RunFolder, root: Path) -> dict[str, bytes]:
    """What the probes compute of a copy of a run."""
    folder = RunFolder(root / trained.name)
    shutil.rmtree(folder.path, ignore_errors=True)
    shutil.copytree(trained.path, folder.path)
    find_rows(folder, by="adapter", fdr=0.5)
    recover_run(folder, steps=1, learning_rate=None, examples=8)
    relearn_runs([folder], examples=4, max_steps=1, every=1, prompts=3)
    return computed(folder)


def test_find_recover_and_relearn_compute_the_same_bits_from_shared_states(
    tmp_path: Path,
) -> None:
    labels = ("data.good_labeled_fraction=0.9", "data.null_fraction=0.9")
    trained = go(tmp_path, "x", *labels)
    plain = probed(trained, tmp_path / "plain")
    begin_sharing(tmp_path / "shared")
    probed(trained, tmp_path / "shared")
    written = kept(tmp_path / "shared")
    assert len(written) == 6  # of every batch that one of them runs
    found = probed(trained, tmp_path / "shared")
    assert kept(tmp_path / "shared") == written
    assert found.keys() == plain.keys()
    for name, content in plain.items():
        assert found[name] == content, name
