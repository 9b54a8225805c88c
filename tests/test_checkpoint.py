"""A checkpoint is complete and verified, or it is not used."""

import json
import os

import pytest
import torch
from small_llama import small_llama

from gradroute.checkpoint import (
    latest_checkpoint,
    load_adapters,
    load_optimizer_tensors,
    save_checkpoint,
)
from gradroute.errors import ConfigError, MachineError
from gradroute.routing.adapters import AdapterSpec, adapter_state, attach_adapters


def model(seed=0, rank=3):
    shape = AdapterSpec(rank=rank, alpha=6.0)
    return attach_adapters(small_llama(), {"good": shape, "bad": shape}, layers="all", seed=seed)


def save(folder, step, seed=0):
    moments = {"weight/exp_avg": torch.full((2, 2), float(step))}
    return save_checkpoint(
        folder, step, model(seed), moments, config_text="run_name: x\n", policy={"name": "absorb"}
    )


def files_of(checkpoint):
    return sorted(path for path in checkpoint.path.rglob("*") if path.is_file())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    saved = save(tmp_path, 12, seed=3)
    found = latest_checkpoint(tmp_path)
    assert found == saved and found is not None and found.step == 12
    other = model(seed=4)
    load_adapters(found, other)
    for adapter in ("good", "bad"):
        expected, loaded = adapter_state(model(seed=3), adapter), adapter_state(other, adapter)
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(expected[key], loaded[key]) for key in expected)
    assert torch.equal(load_optimizer_tensors(found)["weight/exp_avg"], torch.full((2, 2), 12.0))


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "checkpoints") is None


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
    with pytest.warns(UserWarning, match="step-000010 is passed over"):
        found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 5


def test_a_foreign_file_in_a_checkpoint_is_damage_too(tmp_path):
    (save(tmp_path, 5).path / "bad" / "extra.bin").write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match=r"extra\.bin does not belong"),
        pytest.raises(MachineError, match="every checkpoint"),
    ):
        latest_checkpoint(tmp_path)


def test_a_save_that_was_killed_leaves_nothing_that_counts_and_is_cleaned_up(tmp_path):
    save(tmp_path, 5)
    half = tmp_path / ".tmp-step-000010-1"
    half.mkdir()
    (half / "state.json").write_text("{}")
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 5
    save(tmp_path, 15)
    assert sorted(os.listdir(tmp_path)) == ["step-000005", "step-000015"]


def test_a_checkpoint_holds_no_pickle_and_no_path_of_the_machine(tmp_path):
    for path in files_of(save(tmp_path, 1)):
        assert path.suffix in {".json", ".yaml", ".safetensors"}
        assert str(tmp_path).encode() not in path.read_bytes()
        assert os.path.expanduser("~").encode() not in path.read_bytes()


def test_the_same_state_gives_the_same_bytes(tmp_path):
    one, two = save(tmp_path / "one", 3), save(tmp_path / "two", 3)
    assert [p.read_bytes() for p in files_of(one)] == [p.read_bytes() for p in files_of(two)]


def test_an_adapter_of_another_rank_is_refused_by_name(tmp_path):
    saved = save(tmp_path, 1)
    with pytest.raises(ConfigError, match="good"):
        load_adapters(saved, model(rank=4))


def test_the_adapter_config_is_what_peft_reads(tmp_path):
    described = json.loads((save(tmp_path, 1).path / "good" / "adapter_config.json").read_text())
    assert (described["peft_type"], described["r"], described["lora_alpha"]) == ("LORA", 3, 6.0)
    assert described["base_model_name_or_path"] is None
