import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from gradroute.cli.main import main
from gradroute.system.secrets import hub_token, redact, redact_tree, token_places, under_home

CANARY = "hf_CanaryCanaryCanaryCanary1234"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without settings, and nobody logged in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return tmp_path


def test_no_token_is_no_error() -> None:
    assert hub_token() is None


def test_the_environment_comes_before_the_file_and_the_file_before_the_login(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "from login")
    assert hub_token() == "from login"
    (nowhere / ".env").write_text("HF_TOKEN=from_file\n")
    assert hub_token() == "from_file"
    monkeypatch.setenv("HF_TOKEN", "from_environment")
    assert hub_token() == "from_environment"
    monkeypatch.setenv("HF_TOKEN", " ")
    assert hub_token() == "from_file"


def test_of_the_file_only_the_token_is_read_and_nothing_enters_the_environment(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "secret")
    (nowhere / ".env").write_text("OTHER=1\nexport HF_TOKEN='${SECRET}x'\n")
    before = dict(os.environ)
    assert hub_token() == "${SECRET}x"
    assert dict(os.environ) == before


@pytest.mark.parametrize("content", [b"", b"HF_TOKEN", b"HF_TOKEN=", b"HF_TOKEN=caf\xe9\xff"])
def test_a_file_without_a_readable_token_gives_none(nowhere: Path, content: bytes) -> None:
    (nowhere / ".env").write_bytes(content)
    assert hub_token() is None


def test_a_folder_called_dot_env_is_passed_over(nowhere: Path) -> None:
    (nowhere / ".env").mkdir()
    assert hub_token() is None


def test_messages_can_say_where_a_token_was_looked_for() -> None:
    assert "HF_TOKEN" in token_places()
    assert ".env" in token_places()


def test_tokens_passwords_and_the_home_folder_are_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a token of another form")
    text = f"{CANARY} https://me:pass@host/x a token of another form {Path.home()}/data"
    clean = redact(text)
    assert clean == "[token] https://[credentials]@host/x [secret] ~/data"
    assert redact(clean) == clean


def test_the_values_of_variables_named_like_secrets_are_taken_out_longest_first(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_SECRET", "abcdefgh-and-more")
    monkeypatch.setenv("C_KEY", "short")
    (nowhere / ".env").write_text("HF_TOKEN='of the file'\nOTHER_SECRET=never-read\n")
    tree = {
        "a": ["abcdefgh-and-more", {"b": "xabcdefghx short"}],
        "n": 1,
        "f": "of the file never-read",
    }
    assert redact_tree(tree) == {
        "a": ["[secret]", {"b": "x[secret]x short"}],
        "n": 1,
        "f": "[secret] never-read",
    }


@pytest.mark.parametrize("hidden", ["a@b", "a:b@c:d@e", "u:p/w", "u:@"])
def test_whatever_stands_before_the_host_of_an_address_is_taken_out(hidden: str) -> None:
    assert redact(f"see https://{hidden}@host/x.") == "see https://[credentials]@host/x."


def test_a_user_without_a_home_has_nothing_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert redact("/home/x/y") == "/home/x/y" and under_home("/home/x") == "/home/x"


def test_a_long_text_without_end_is_looked_through_in_time() -> None:
    for piece in ("://", "://a:", "hf_", "://a", "@", "hf_a://b:c"):
        assert len(redact(piece * 200_000)) > 100_000


def test_the_command_takes_no_code_from_the_hub(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a package called kernels, libraries fetch code and run it; to them it is not there."""
    (nowhere / "kernels.py").write_text("raise SystemExit('fetched')")
    monkeypatch.syspath_prepend(nowhere)
    monkeypatch.setitem(sys.modules, "kernels", sys)  # put back, or taken away, afterwards
    monkeypatch.delitem(sys.modules, "kernels")
    assert find_spec("kernels") is not None
    assert main(["schema"]) == 0 and capsys.readouterr().out
    assert find_spec("kernels") is None
    with pytest.raises(ImportError):
        import_module("kernels")
