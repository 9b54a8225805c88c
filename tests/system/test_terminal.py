"""What reaches a person's terminal: text, never a command to the terminal, and no secret."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.cli.main import main
from gradroute.system.terminal import first_line, printable, safe_text, say

SECRET = "0123456789abcdef0123456789abcdef"
STEERING = (
    "\x1b[2J\x1b[31m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\link",
    "\x9b2J",
    "\r\x08\x7f",
    "\u202eevil\u2066",
    "\u200b\u200e\u2028\ufeff",
    "\U000e0041",
    "\ud800",
)


@given(st.text())
def test_what_is_printable_is_one_line_without_control_or_direction(text: str) -> None:
    made = printable(text)
    kinds = {unicodedata.category(character) for character in made}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert made.isprintable()
    made.encode("utf-8")
    if text.isprintable():
        assert made == text


@pytest.mark.parametrize("text", STEERING)
def test_what_would_steer_a_terminal_is_shown_as_escapes(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"a {text} b\nc")
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and err.replace("\n", "").isprintable()
    assert "\\x" in err or "\\u" in err or "\\U" in err or "\\r" in err
    assert err.startswith("a ") and err.endswith(" b\nc\n")


def test_letters_of_every_script_stay(capsys: pytest.CaptureFixture[str]) -> None:
    say("naïve 漢字 \u05e9\u05dc\u05d5\u05dd é 😀")
    assert capsys.readouterr().err == "naïve 漢字 \u05e9\u05dc\u05d5\u05dd é 😀\n"


def test_a_secret_over_several_lines_is_taken_out_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEPLOY_KEY", "-----BEGIN\nabcdefgh\n-----END")
    assert safe_text("key: -----BEGIN\nabcdefgh\n-----END.") == "key: [secret]."


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "\x1b[2Jnobody"],
        ["train", "\x1b[2J.yaml"],
        ["train", "caps", "\x1b[2J=1"],
        ["train", "caps", "seed=\x1b[2J"],
        ["train", "caps", "data.path=\x1b[2J.jsonl"],
        ["train", "caps", "model=./\x1b[2J\u202e"],
        ["--debug", "train", "caps", "model=./\x1b[2J\u202e"],
    ],
)
def test_an_error_shows_what_was_given_and_does_not_send_it_to_the_terminal(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (2, 3)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\u202e" not in out + err
    assert "x1b[2J" in err


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_and_its_traceback_hold_no_secret(
    debug: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".env").write_text("HF_TOKEN=plainSecretOfTheFile\n")
    monkeypatch.chdir(tmp_path)
    given = f"{tmp_path}/{SECRET}/plainSecretOfTheFile/hf_{'Canary' * 5}"
    assert main([*debug, "eval", given]) == 2
    _, err = capsys.readouterr()
    assert "~/[secret]/[secret]/[token]" in err
    assert bool(debug) == ("Traceback" in err)
    for secret in (SECRET, "plainSecretOfTheFile", "Canary", str(tmp_path)):
        assert secret not in err


def test_names_of_variables_that_only_sound_like_secrets_hide_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TOKENIZERS_PARALLELISM", "KEYBOARD", "TOKENISED", "LOCATION"):
        monkeypatch.setenv(name, "an ordinary word")
    monkeypatch.setenv("SHORT_KEY", "word")
    assert safe_text("an ordinary word") == "an ordinary word"
    for name in ("MY_TOKEN", "api_key", "AWS_SECRET_ACCESS_KEY", "PASSWORD", "X_CREDENTIALS"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "an ordinary word")
            assert safe_text("an ordinary word") == "[secret]"


def test_a_line_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from gradroute.system.terminal import say\n"
        "while not os.path.exists('closed'): time.sleep(0.01)\n"
        "say('one'); say('two')\n"
        "open('done', 'w').close()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stderr is not None
    process.stderr.close()
    (tmp_path / "closed").touch()
    assert process.wait(timeout=600) == 0
    assert (tmp_path / "done").is_file()


def test_the_first_line_of_an_error_is_quoted_without_secrets_and_cut_behind_them() -> None:
    token = "hf_" + "q" * 30
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(MemoryError()) == "MemoryError"
    cut = first_line(OSError("x" * 185 + f" {token}\nmore"))
    assert "hf_q" not in cut and cut.startswith("x" * 185) and len(cut) <= 200
    assert len(first_line(OSError("x" * 999), limit=500)) == 500
