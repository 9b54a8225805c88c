import json
import os
import subprocess
from pathlib import Path

import pytest

from gradroute.runs import provenance as module
from gradroute.runs.provenance import commit, provenance

CANARY = "hf_CanaryCanaryCanaryCanary1234"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without settings, and nobody logged in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return tmp_path


def test_provenance_is_plain_data_without_paths_or_tokens(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / ".env").write_text(f"HF_TOKEN={CANARY}\n")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    facts = provenance()
    text = json.dumps(facts)
    assert CANARY not in text
    assert str(Path.home()) not in text
    assert str(Path(module.__file__).parent) not in text
    assert str(nowhere) not in text
    assert facts["versions"]["torch"]
    assert facts["hardware"]["cores"] >= 1


def make_checkout(root: Path) -> Path:
    package = root / "gradroute" / "runs"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *options, *arguments], cwd=root, check=True)
    return package / "provenance.py"


def test_the_commit_of_a_checkout_is_named_and_marked_when_files_changed(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_checkout(nowhere)
    monkeypatch.setattr(module, "__file__", str(file))
    head = commit()
    assert head is not None
    assert len(head) == 40
    file.write_text("changed")
    assert commit() == head + "+"


def test_a_package_inside_somebody_elses_repository_has_no_commit(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkout(nowhere)
    installed = nowhere / "venv" / "site-packages" / "gradroute" / "runs"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(installed / "provenance.py"))
    assert commit() is None


def test_git_is_told_no_secret_and_no_other_repository(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "__file__", str(make_checkout(nowhere)))
    (nowhere / "bin").mkdir()
    (nowhere / "bin" / "git").write_text("#!/bin/sh\nexport -p > told\n")
    (nowhere / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(nowhere / "bin"))
    for name in ("HF_TOKEN", "WANDB_API_KEY", "GIT_DIR", "LD_PRELOAD_OF_MINE"):
        monkeypatch.setenv(name, CANARY)
    commit()
    told = (nowhere / "told").read_text()
    assert "PATH=" in told and CANARY not in told


def test_a_machine_without_git_has_no_commit(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "__file__", str(make_checkout(nowhere)))
    monkeypatch.setenv("PATH", str(nowhere / "nothing"))
    assert commit() is None


def test_the_index_of_a_checkout_is_not_written(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_checkout(nowhere)
    monkeypatch.setattr(module, "__file__", str(file))
    os.utime(file, (1, 1))  # git would note that the content is as it was
    before = (nowhere / ".git" / "index").read_bytes()
    assert commit() is not None
    assert (nowhere / ".git" / "index").read_bytes() == before
    subprocess.run(["git", "status"], cwd=nowhere, check=True, capture_output=True)
    assert (nowhere / ".git" / "index").read_bytes() != before  # which this would
