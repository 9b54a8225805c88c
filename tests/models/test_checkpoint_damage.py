"""Whatever is done to a checkpoint's files: it is seen, said, and the one before is taken."""

import json
import os
import shutil

import pytest
from tiny_checkpoints import save, signed

from gradroute.errors import MachineError
from gradroute.models.checkpoint import latest_checkpoint

FILES = [
    "manifest.json",
    "state.json",
    "policy.json",
    "config.yaml",
    "optimizer.safetensors",
    "good/adapter_model.safetensors",
    "bad/adapter_config.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_sends_the_reader_to_the_checkpoint_before(tmp_path, name, damage):
    save(tmp_path, 5)
    path = save(tmp_path, 10).path / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="step-000010 is skipped"):
        found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 5


def test_a_foreign_file_in_a_checkpoint_is_damage_too(tmp_path):
    (save(tmp_path, 5).path / "bad" / "extra.bin").write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match=r"extra\.bin does not belong"),
        pytest.raises(MachineError, match="every checkpoint"),
    ):
        latest_checkpoint(tmp_path)


MANIFESTS = {
    "a list": "[]",
    "a number": "7",
    "nothing": "",
    "half": '{"format": 1, "st',
    "no format": '{"step": 10, "sha256": {}}',
    "a later format": '{"format": 2, "step": 10, "sha256": {}}',
    "another step": '{"format": 1, "step": 11, "sha256": {}}',
    "no step": '{"format": 1, "step": NaN}',
    "a list of files": '{"format": 1, "step": 10, "sha256": ["state.json"]}',
    "nested files": '{"format": 1, "step": 10, "sha256": {"state.json": {"state.json": {}}}}',
    "a path outside": '{"format": 1, "step": 10, "sha256": {"../../../etc/passwd": "0"}}',
    "deep": "[" * 100_000,
    "a long number": '{"format": ' + "1" * 5000 + "}",
    "huge": '{"format": 1, "pad": "' + "x" * (2 << 20) + '"}',
    "not UTF-8": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_was_tampered_with_is_damage(tmp_path, name):
    save(tmp_path, 5)
    content = MANIFESTS[name]
    path = save(tmp_path, 10).path / "manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match="step-000010 is skipped"):
        found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 5


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", True, [1]])
def test_a_state_that_makes_no_sense_is_damage(tmp_path, size):
    saved = save(tmp_path, 10)
    (saved.path / "state.json").write_text(json.dumps({"step": 10, "micro_batch": size}))
    signed(saved)
    with (
        pytest.warns(UserWarning, match="its micro_batch is"),
        pytest.raises(MachineError, match="every checkpoint"),
    ):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_under_the_name_of_another_step_is_damage(tmp_path):
    save(tmp_path, 5).path.rename(tmp_path / "step-000050")
    save(tmp_path, 10)
    with pytest.warns(UserWarning, match="step-000050 is skipped: it is of step 5"):
        found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 10


def plant_link(folder, away):
    path = folder / "optimizer.safetensors"
    shutil.copy(path, away)
    path.unlink()
    path.symlink_to(away)


def plant_folder_link(folder, away):
    (folder / "bad").rename(away)
    (folder / "bad").symlink_to(away)


def plant_pipe(folder, away):
    os.mkfifo(folder / "pipe")


def plant_manifest_pipe(folder, away):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def plant_empty_folder(folder, away):
    (folder / "ugly").mkdir()


def plant_deep_folder(folder, away):
    (folder / "bad" / "deeper").mkdir()
    (folder / "bad" / "deeper" / "x").write_text("x")


def plant_itself(folder, away):
    folder.rename(away)
    folder.symlink_to(away)


def plant_file(folder, away):
    shutil.rmtree(folder)
    folder.write_text("no folder")


PLANTED = (
    plant_link,
    plant_folder_link,
    plant_pipe,
    plant_manifest_pipe,
    plant_empty_folder,
    plant_deep_folder,
    plant_itself,
    plant_file,
)


@pytest.mark.parametrize("plant", PLANTED)
def test_what_no_checkpoint_has_in_it_is_damage_and_stops_nothing(tmp_path, plant):
    folder = tmp_path / "checkpoints"
    save(folder, 5)
    plant(save(folder, 10).path, tmp_path / "away")
    with pytest.warns(UserWarning, match="step-000010 is skipped"):
        found = latest_checkpoint(folder)
    assert found is not None and found.step == 5
    # The step is done again, and then there is one more.
    save(folder, 10)
    save(folder, 15)
    found = latest_checkpoint(folder)
    assert found is not None and found.step == 15
    assert sorted(os.listdir(folder)) == ["step-000010", "step-000015"]


@pytest.mark.parametrize("name", ["step-", "step-x", "step-5", "step-0000007", "step-٠٠٠٠٠٩"])
def test_other_names_are_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert (tmp_path / name).is_dir()
