"""What may not be in an exported folder is found, whatever file it is in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradroute.export.byte_search import windows_of
from gradroute.export.leaks import leak_checks, text_leak

ALLOWED = {"config.json", "tokenizer.json", "README.md", "model.safetensors"}
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
TOKEN = "hf_" + "a1" * 15


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "x", "list": [{"a": 1}]}')
    (out / "tokenizer.json").write_text('{"vocab": {"bad": 1, "/root": 2}}')
    (out / "README.md").write_text("# A card\n")
    save_file({"layers.0.weight": torch.ones(4)}, out / "model.safetensors")
    return out


def failed(folder, places=(Path("/root"), Path("/somewhere/of/mine"))):
    checks = leak_checks(
        folder,
        allowed=ALLOWED.__contains__,
        left_out=["bad"],
        windows=windows_of([{"w": WEIGHT}]),
        places=places,
    )
    assert [check.name for check in checks] == ["files", "bytes", "keys", "places", "secrets"]
    return {check.name: check.text for check in checks if not check.passed}


def test_a_clean_folder_passes(folder):
    assert failed(folder) == {}


def test_files_of_other_names_links_and_folders_are_found(folder):
    (folder / "optimizer.pt").write_text("")
    (folder / "bad").mkdir()
    (folder / "bad" / "config.json").write_text("{}")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder / "config.json")
    found = failed(folder)["files"]
    assert all(name in found for name in ("optimizer.pt", "bad/config.json", "README.md"))


@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_of_a_left_out_tensor_are_found_in_a_file_of_weights(folder, form):
    copied = torch.cat([torch.ones(3), WEIGHT[2:6].flatten()]).to(form)
    save_file({"w": copied}, folder / "model.safetensors")
    assert "found in model.safetensors from byte" in failed(folder)["bytes"]


@pytest.mark.parametrize("key", ["layers.0.lora_A.bad.weight", "layers.0.weight/exp_avg"])
def test_tensors_named_after_a_left_out_adapter_or_a_moment_are_found(folder, key):
    save_file({key: torch.ones(4)}, folder / "model.safetensors")
    assert failed(folder)["keys"] == f"found model.safetensors: {key}"


def test_settings_named_after_a_left_out_adapter_are_found(folder):
    (folder / "config.json").write_text('{"adapters": {"bad": {"r": 3}}}')
    assert failed(folder)["keys"] == "found config.json: bad"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md"])
def test_paths_of_this_machine_are_found_in_every_file(folder, name):
    (folder / name).write_text(json.dumps({"x": "see /somewhere/of/mine/run"}))
    assert "/somewhere/of/mine" in failed(folder)["places"]


def test_paths_of_this_machine_are_found_in_the_notes_of_weights(folder):
    save_file({"w": torch.ones(4)}, folder / "model.safetensors", {"from": "/somewhere/of/mine"})
    assert "model.safetensors: /somewhere/of/mine" in failed(folder)["places"]


@pytest.mark.parametrize("path", ["/data/other/model", "~/models/x/", "C:\\models\\x"])
def test_a_setting_that_is_a_path_of_any_machine_is_found(folder, path):
    (folder / "config.json").write_text(json.dumps({"name_or_path": path}))
    assert "name_or_path" in failed(folder)["places"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_tokens_are_found_in_every_file(folder, name):
    if name == "model.safetensors":
        save_file({"w": torch.ones(4)}, folder / name, {"token": TOKEN})
    else:
        (folder / name).write_text(json.dumps({"x": TOKEN}))
    assert failed(folder)["secrets"] == f"found {name}"


def test_secrets_of_the_environment_and_addresses_with_passwords_are_found(folder, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_KEY", "correct-horse-battery")
    (folder / "README.md").write_text("made with correct-horse-battery")
    (folder / "config.json").write_text('{"url": "https://me:pw12345678@host/x"}')
    assert failed(folder)["secrets"] == "found README.md; config.json"
    assert text_leak(folder / "README.md", []) == "README.md would hold a secret"
    (folder / "README.md").write_text("of /somewhere/of/mine")
    assert text_leak(folder / "README.md", [Path("/somewhere/of/mine")]) == (
        "README.md would hold a path of this machine, /somewhere/of/mine"
    )
    assert text_leak(folder / "README.md", []) == ""


def test_what_lies_across_two_blocks_of_a_file_is_found(folder, monkeypatch):
    from gradroute.export import leaks

    monkeypatch.setattr(leaks, "_BLOCK", 64)
    (folder / "tokenizer.json").write_text(json.dumps({"x": "y" * 50 + "/somewhere/of/mine"}))
    (folder / "README.md").write_text("z" * 50 + " " + TOKEN)
    assert set(failed(folder)) == {"places", "secrets"}
