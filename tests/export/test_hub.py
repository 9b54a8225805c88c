"""To the hub: after the proof, into a new repository, with a token that stands nowhere."""

import pytest
from export.shipped import run
from huggingface_hub import HfApi

from gradroute.errors import ConfigError, MachineError
from gradroute.export import hub as hub_module
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.export.hub import check_push, push

TOKEN = "hf_" + "b2" * 15


class FakeApi:
    """A hub that remembers what it was asked."""

    def __init__(self, calls, error=None, more=()):
        self.calls, self.error, self.more = calls, error, more

    def __call__(self, token):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo, **settings):
        self.calls.append(("create", repo, settings))
        if self.error:
            raise self.error

    def upload_folder(self, *, repo_id, folder_path, **settings):
        self.held = [path.name for path in folder_path.iterdir()]
        self.calls.append(("upload", repo_id, sorted(self.held)))

    def list_repo_files(self, repo, **settings):
        return [".gitattributes", *self.held, *self.more]


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def hub(monkeypatch):
    calls = []
    monkeypatch.setattr(hub_module, "HfApi", FakeApi(calls))
    return calls


def test_the_fake_answers_to_names_that_the_hub_has():
    for name in ("create_repo", "upload_folder", "list_repo_files"):
        assert callable(getattr(HfApi, name))


def test_a_finished_export_is_pushed_as_a_private_repository(online, hub, tmp_path, capsys):
    folder = run(tmp_path)
    wanted = ExportRequest(("good",), "peft", tmp_path / "out", evaluate=False)
    export_run(folder, wanted, repo="me/stories", public=False)
    (_, token), (_, repo, settings), (_, _, sent) = hub
    assert (token, repo) == (TOKEN, "me/stories")
    assert settings == {"repo_type": "model", "private": True, "exist_ok": False}
    assert sent == sorted(path.name for path in (tmp_path / "out").iterdir())
    out, err = capsys.readouterr()
    assert "pushed: me/stories (private)" in out and TOKEN not in out + err
    assert all(TOKEN.encode() not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_public_repository_must_be_asked_for(hub, tmp_path):
    push(tmp_path, "me/x", public=True, token=TOKEN)
    assert hub[1][2]["private"] is False


@pytest.mark.parametrize("repo", ["stories", "a/b/c", "me/..", "me/a b"])
def test_a_name_that_is_none_is_refused_before_anything_is_built(online, repo):
    with pytest.raises(ConfigError, match=r"--push .*: (not the name of|an owner and a name)"):
        check_push(repo)


def test_without_a_token_or_a_network_nothing_is_built(monkeypatch):
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        check_push("me/x")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub_module, "hub_token", lambda: None)
    with pytest.raises(MachineError, match="no token was found in HF_TOKEN"):
        check_push("me/x")


def test_a_refusal_names_the_repository_and_no_secret(monkeypatch, tmp_path):
    error = RuntimeError(f"409 Conflict: {TOKEN}")
    monkeypatch.setattr(hub_module, "HfApi", FakeApi([], error))
    with pytest.raises(MachineError, match=r"could not be pushed to me/x \(409 Conflict") as found:
        push(tmp_path, "me/x", public=False, token=TOKEN)
    assert TOKEN not in str(found.value) and "hf upload me/x" in str(found.value)


def test_a_repository_with_other_files_afterwards_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_module, "HfApi", FakeApi([], more=["bad/adapter_model.safetensors"]))
    with pytest.raises(MachineError, match=r"holds other files than .*bad/adapter_model"):
        push(tmp_path, "me/x", public=False, token=TOKEN)
