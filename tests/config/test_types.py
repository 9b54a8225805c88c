"""Names and texts of a configuration: what becomes a folder, and what may be written to a file."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradroute.config.run_config import RunConfig, dump_config, find_config, load_config
from gradroute.config.types import show
from gradroute.errors import ConfigError
from gradroute.prepare import prepare

DEVICES = ("con", "CON", "nul.txt", "Aux", "prn.", "com1", "COM9.tar.gz", "lpt3")
BAD_NAMES = (
    *("", " ", ".", "..", "../x", "a/../b", "/etc", "a/b", "a\\b", "C:x", "~", "-rf", "_x", ".x"),
    *("a b", "a\nb", "a\x00b", "a\u202eb", "café", "x" * 65, "x" * 300, "x.", "x..", "1."),
    *DEVICES,
)  # fmt: skip
BAD_ADAPTERS = ("a" * 33, "0a", "a.b", "a/b", "full", "base", "a\x00", "../a", "good-2")
TOKEN = "hf_" + "Canary" * 5


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_can_be_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="run_name"):
        load_config(None, [f"run_name={name}"])
    with pytest.raises(ValueError, match="run_name"):
        RunConfig.model_validate({"run_name": name})


@pytest.mark.parametrize("name", ["console", "nully", "com10x", "x.con", "a", "0.1_1.0", "x" * 64])
def test_names_like_those_that_are_refused_are_names(name: str) -> None:
    assert load_config(None, [f"run_name={name}"]).run_name == name


@given(st.text(max_size=80) | st.from_regex(r"\A[A-Za-z0-9._-]{1,70}\Z"))
@example("aux.")
def test_every_name_that_is_taken_is_one_part_of_a_path_on_every_system(name: str) -> None:
    try:
        taken = RunConfig.model_validate({"run_name": name}).run_name
    except ValueError:
        return
    assert taken == name and len(taken.encode()) <= 64
    assert set(taken) <= set(string.ascii_letters + string.digits + "._-")
    assert not taken.startswith((".", "-")) and not taken.endswith(".")
    assert not re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", taken.split(".")[0].lower())


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_an_adapters_name_is_short_and_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="an adapter's name is a letter, then up to 31"):
        load_config(None, [f'adapters={{good: {{rank: 4}}, "{name.encode("unicode_escape").decode()}": {{rank: 2}}}}'])  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("field", ["model", "behavior", "data.path", "data.eval_path"])
@pytest.mark.parametrize(
    ("secret", "word"),
    [
        (TOKEN, "a token of the hub"),
        (f"x/{TOKEN}/y", "a token of the hub"),
        ("https://me:s3cret-word@host/m", "an address with a user or password"),
        ("https://s3cret-word@host/m", "an address with a user or password"),
        ("https://me:s3cret/word@host/m", "an address with a user or password"),
    ],
)
def test_a_secret_in_a_configuration_is_refused_and_not_repeated(
    field: str, secret: str, word: str
) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(find_config("caps"), [f"{field}={secret}"])
    told = str(caught.value)
    assert field in told and "Canary" not in told and "s3cret" not in told


@pytest.mark.parametrize(
    "text", ["hf_transfer/x", "https://host/a@b", "me@host.org/x", "org/hf_model", "a://b"]
)
def test_what_only_looks_like_a_secret_is_a_text(text: str) -> None:
    assert load_config(None, [f"model={text}"]).model == text
    assert text in dump_config(load_config(None, [f"model={text}"]))


def test_a_path_in_the_home_folder_is_kept_without_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    given = [f"{key}={tmp_path}/somebody/x" for key in ("model", "data.path", "data.eval_path")]
    config = load_config(None, given)
    assert (config.model, config.data.path, config.data.eval_path) == ("~/x", "~/x", "~/x")
    assert "somebody" not in dump_config(config)
    for elsewhere in (f"{tmp_path}/somebody-else/x", f"{tmp_path}/x", "x", f"{tmp_path}/somebody"):
        assert load_config(None, [f"model={elsewhere}"]).model == elsewhere
    monkeypatch.setenv("HOME", "/")
    assert load_config(None, ["model=/x"]).model == "/x"


def test_data_in_the_home_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [f'{{"text": "once upon a time {i}", "label": "{"bad" if i % 3 else "good"}"}}\n'
            for i in range(40)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    config = load_config(find_config("caps"), [f"data.path={tmp_path}/rows.jsonl"])
    assert config.data.path == "~/rows.jsonl"
    assert len(prepare(config).train) > 20


def test_a_value_that_a_message_cuts_holds_no_half_of_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef")
    told = show("a" * 40 + "0123456789abcdef0123456789abcdef")
    assert "0123" not in told and len(told) <= 60
