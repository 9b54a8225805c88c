"""What still holds the bad adapter is listed, by name and by content, and deleted on request."""

import shutil

import pytest
from export.shipped import checkpoint_of, copied, export, run

from gradroute.errors import ConfigError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.export.audit_adapter import audit_adapter
from gradroute.export.purge import holders, purge_run
from gradroute.runs.folder import RunFolder

LISTED = {
    "checkpoints/step-000003/bad/adapter_config.json",
    "checkpoints/step-000003/bad/adapter_model.safetensors",
    "checkpoints/step-000003/optimizer.safetensors",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = run(tmp_path_factory.mktemp("runs"))
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return copied(trained, tmp_path)


def names(found, root):
    return {holder.path.relative_to(root.path).as_posix() for holder in found}


def purge(folder, keep=None, delete=False, sure=False):
    return purge_run(folder, keep=keep, delete=delete, confirmed=sure)


def test_checkpoints_and_optimizer_states_are_listed_and_nothing_else(folder, tmp_path, capsys):
    export(folder, tmp_path / "shipped", "peft")
    export(folder, folder.path / "inside", "merged")
    capsys.readouterr()
    found = purge(folder)
    assert names(found, folder) == LISTED and all(holder.own for holder in found)
    out, err = capsys.readouterr()
    assert f"{folder.name}: 3 files (" in out and "hold bad" in out
    assert "copies of the run in other places" in err
    assert all((folder.path / name).is_file() for name in LISTED)


def test_bytes_are_found_under_any_name_and_also_where_a_run_was_moved_aside(folder, tmp_path):
    weights = checkpoint_of(folder).path / "bad" / "adapter_model.safetensors"
    text = b"#" * 5 + weights.read_bytes()[-81:-9]
    (folder.path / "notes.txt").write_bytes(text)
    aside = RunFolder(shutil.copytree(folder.path, tmp_path / f"{folder.name}.old-1"))
    found = holders(folder, ["bad"])
    own = [holder for holder in found if holder.path.is_relative_to(folder.path)]
    assert names(own, folder) == LISTED | {"notes.txt"}
    others = [holder for holder in found if holder not in own]
    assert names(others, aside) == LISTED | {"notes.txt"}
    (note,) = [holder.why for holder in own if holder.path.name == "notes.txt"]
    assert note.startswith("bytes of bad, from byte")


def test_the_optimizer_of_a_routed_trainer_is_listed_without_being_opened(folder):
    for name in ("checkpoint-3", "other"):
        (folder.path / name).mkdir()
        (folder.path / name / "optimizer.pt").write_bytes(b"no pickle")
    (folder.path / "checkpoint-3" / "gradroute").mkdir()
    assert names(holders(folder, ["bad"]), folder) == LISTED | {"checkpoint-3/optimizer.pt"}


def test_an_audit_adapter_is_listed_and_never_deleted_from_here(folder, tmp_path, capsys):
    audit_adapter(folder, tmp_path / "audit")
    found = purge(folder, delete=True, sure=True)
    (audit,) = [holder for holder in found if not holder.own]
    assert audit.path.name == "adapter_model.safetensors" and audit.path.is_file()
    assert "(elsewhere, never deleted from here)" in capsys.readouterr().out


def test_deleting_needs_a_yes_and_leaves_results_and_what_is_kept(folder, capsys):
    with pytest.raises(ConfigError, match=r"--delete would delete 3 files.*--delete --yes"):
        purge(folder, delete=True)
    assert all((folder.path / name).is_file() for name in LISTED)
    purge(folder, delete=True, sure=True)
    out, err = capsys.readouterr()
    assert "deleted: 3 files of bad" in out and "the run has no recorded export" in err
    step = folder.path / "checkpoints" / "step-000003"
    assert not (step / "bad").exists() and not (step / "optimizer.safetensors").exists()
    assert (step / "good" / "adapter_model.safetensors").is_file()
    assert folder.results.is_file() and folder.samples.is_file() and folder.metrics.is_file()
    assert purge(folder) == []
    assert f"{folder.name}: no file here holds bad" in capsys.readouterr().out


def test_other_adapters_may_be_named_and_unknown_ones_not(folder):
    found = purge(folder, keep=["bad"])
    assert "checkpoints/step-000003/good/adapter_model.safetensors" in names(found, folder)
    with pytest.raises(ConfigError, match="no adapter 'goof'"):
        purge(folder, keep=["goof"])


def test_links_are_not_followed(folder, tmp_path):
    weights = checkpoint_of(folder).path / "bad" / "adapter_model.safetensors"
    other = shutil.copy(weights, tmp_path / "elsewhere.bin")
    (folder.path / "link.bin").symlink_to(other)
    assert "link.bin" not in names(holders(folder, ["bad"]), folder)
