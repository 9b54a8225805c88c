"""A checkpoint is complete and verified, or it is not used."""

import json
import math
import os
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import files_of, model, save, signed

from gradroute.errors import ConfigError, MachineError, NumericError
from gradroute.models import checkpoint as module
from gradroute.models.checkpoint import (
    KEPT,
    latest_checkpoint,
    load_adapters,
    load_optimizer_tensors,
)
from gradroute.routing.adapters import adapter_state
from gradroute.system.files import clear_unfinished


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


def test_the_adapter_config_is_what_peft_reads(tmp_path):
    described = json.loads((save(tmp_path, 1).path / "good" / "adapter_config.json").read_text())
    assert (described["peft_type"], described["r"], described["lora_alpha"]) == ("LORA", 3, 6.0)
    assert described["base_model_name_or_path"] is None


def test_how_many_examples_fitted_is_kept_with_it(tmp_path):
    assert save(tmp_path, 1, micro_batch=3).micro_batch == 3
    plain = save(tmp_path, 2)
    assert plain.micro_batch is None
    (plain.path / "state.json").write_text('{"step": 2}')  # as it was before this was kept
    found = latest_checkpoint(signed(plain).path.parent)
    assert found is not None and found == plain and found.micro_batch is None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_never_written(tmp_path, where, number):
    save(tmp_path, 5)
    broken = model()
    state = adapter_state(broken, "bad")
    if where == "weight":
        list(state.values())[-1].view(-1)[-1] = number
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(NumericError, match="bad, base" if where == "weight" else "optimizer, wei"):
        save(tmp_path, 10, of=broken, moment=number if where == "moment" else 1.0)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_checkpoint_with_a_nan_in_it_is_not_loaded(tmp_path):
    saved = save(tmp_path, 5)
    for name in ("bad/adapter_model.safetensors", "optimizer.safetensors"):
        path = saved.path / name
        tensors = load_file(path)
        next(iter(tensors.values())).view(-1)[0] = math.nan
        save_file(tensors, path)
    found = latest_checkpoint(signed(saved).path.parent)
    assert found is not None
    into = model(seed=1)
    before = {k: v.clone() for k, v in adapter_state(into, "good").items()}
    with pytest.raises(NumericError, match=r"bad/adapter_model.* not finite"):
        load_adapters(found, into)
    with pytest.raises(NumericError, match=r"optimizer.* not finite"):
        load_optimizer_tensors(found)
    assert all(torch.equal(v, before[k]) for k, v in adapter_state(into, "good").items())


def test_an_unreadable_file_under_a_right_hash_is_one_sentence(tmp_path):
    saved = save(tmp_path, 5)
    (saved.path / "optimizer.safetensors").write_bytes(b"\xff" * 64)
    (saved.path / "good" / "adapter_model.safetensors").write_bytes(b"")
    signed(saved)
    with pytest.raises(MachineError, match=r"optimizer\.safetensors cannot be read"):
        load_optimizer_tensors(saved)
    with pytest.raises(MachineError, match=r"adapter_model\.safetensors cannot be read"):
        load_adapters(saved, model())


FOREIGN = {
    "another rank": ({"rank": 4}, r"'good' does not fit .*lora_A.* \[3, 16\].* \[4, 16\]"),
    "other targets": ({"targets": ["q_proj"]}, "unknown, such as .*proj"),
    "an adapter too many": ({"names": ("good",)}, "the model has no adapter bad"),
    "an adapter too few": ({"names": ("good", "bad", "ugly")}, "holds no adapter 'ugly'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_adapter_that_does_not_fit_is_refused_by_its_names(tmp_path, name):
    shape, words = FOREIGN[name]
    saved = save(tmp_path, 1)
    with pytest.raises((ConfigError, MachineError), match=words):
        load_adapters(saved, model(**shape))


def test_as_many_as_are_kept_can_be_used(tmp_path):
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / "step-000010" / "state.json").write_text("{}")
    save(tmp_path, 15)  # 5 is the only one to fall back on
    assert sorted(os.listdir(tmp_path)) == ["step-000005", "step-000010", "step-000015"]
    save(tmp_path, 20)
    assert sorted(os.listdir(tmp_path)) == ["step-000015", "step-000020"]
    assert KEPT == 2


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 5, seed=1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    before = found.identity
    save(tmp_path, 5, seed=2)
    assert os.listdir(tmp_path) == ["step-000005"]
    assert found.identity != before


def test_one_that_was_being_replaced_when_its_writer_died_is_put_back(tmp_path):
    saved = save(tmp_path, 5)
    identity = saved.identity
    saved.path.rename(tmp_path / ".tmp-was-step-000005")  # between its two renames
    half = tmp_path / ".tmp-step-000005-1"
    half.mkdir()
    (half / "state.json").write_text("{}")
    (tmp_path / ".tmp-file").write_text("")
    (tmp_path / ".tmp-link").symlink_to(tmp_path / "elsewhere")
    clear_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["step-000005"] and saved.identity == identity


def test_the_older_one_goes_only_when_the_new_one_reads_back(tmp_path, monkeypatch):
    for step in (5, 10):
        save(tmp_path, step)

    def written_wrongly(path):  # as by a disk that takes what it does not keep
        for file in path.rglob("optimizer.safetensors"):
            file.write_bytes(b"\0" * file.stat().st_size)

    monkeypatch.setattr(module, "_sync_tree", written_wrongly)
    with pytest.raises(MachineError, match="step-000015 does not read back"):
        save(tmp_path, 15)
    with pytest.warns(UserWarning, match="step-000015 is skipped"):
        found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 10
    assert (tmp_path / "step-000005").is_dir()


def test_every_byte_is_on_the_disk_before_the_name_and_the_older_one_goes_last(
    tmp_path, monkeypatch
):
    for step in (5, 10):
        save(tmp_path, step)
    done = []
    synced, replaced, removed = os.fsync, os.replace, shutil.rmtree

    def sync(handle):
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        synced(handle)

    def replace(source, target):
        done.append(("rename", str(source)))
        replaced(source, target)

    def remove(path, **more):
        done.append(("remove", str(path)))
        removed(path, **more)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(shutil, "rmtree", remove)
    saved = save(tmp_path, 15)
    temporary = tmp_path / f".tmp-{saved.path.name}-{os.getpid()}"
    renamed = done.index(("rename", str(temporary)))
    files = {str(temporary / path.relative_to(saved.path)) for path in files_of(saved)}
    folders = {str(temporary), str(temporary / "good"), str(temporary / "bad")}
    assert {path for kind, path in done[:renamed] if kind == "sync"} == files | folders
    assert done[renamed + 1] == ("sync", str(tmp_path))
    assert [kind for kind, _ in done[renamed + 2 :]] == ["rename", "remove"]
    assert all("step-000005" in path for _, path in done[renamed + 2 :])


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 5)
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000)
    with pytest.raises(MachineError, match=r"too little room \(0\.1 MB needed, .* free\)"):
        save(tmp_path, 10)
    assert os.listdir(tmp_path) == ["step-000005"]


def test_the_room_asked_for_is_enough_and_not_much_more(tmp_path):
    big = model(rank=64)
    saved = save(tmp_path, 5, of=big)
    used = sum(file.stat().st_size for file in files_of(saved))
    needed = module._size(saved.path, {name: adapter_state(big, name) for name in big.peft_config})
    assert used <= needed <= used + 100_000


@pytest.mark.parametrize("limit", [100, 2000, 6000])
def test_a_write_that_the_system_refuses_leaves_the_older_one_and_no_rubbish(tmp_path, limit):
    save(tmp_path, 5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(MachineError, match="File too large"):
            save(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["step-000005"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 5


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(MachineError, match=r"written: [^ ]*/x is not there any more"):
        save(tmp_path / "x" / "checkpoints", 5)
    assert os.listdir(tmp_path) == []
