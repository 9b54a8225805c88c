"""`gradroute init`: a file that says what it does, and does it."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from gradroute import read_examples
from gradroute.cli.main import main
from gradroute.cli.preflight import KINDS
from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.models.base import embedded_model
from gradroute.preflight.config_templates import BEGINNINGS, configuration, write_template
from gradroute.prepare import prepare
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines

GIVEN = {"chat": ("model=./model",)}


def loaded(kind: str, text: str, folder: Path) -> RunConfig:
    path = folder / f"{kind}.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, GIVEN.get(kind, ()))


def test_the_command_line_knows_every_beginning():
    assert set(KINDS) == set(BEGINNINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_loads_as_what_it_was_made_from(kind: str, tmp_path: Path):
    beginning = BEGINNINGS[kind]
    rows = None if beginning.rows is None else Path(beginning.rows)
    config = loaded(kind, configuration(beginning, rows), tmp_path)
    values = {**beginning.values, **({"model": "./model"} if kind in GIVEN else {})}
    assert config == RunConfig.model_validate(values)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_commented_out_are_the_defaults(kind: str, tmp_path: Path):
    text = configuration(BEGINNINGS[kind], None)
    whole = re.sub(r"^( *)# ([a-z_]+:(?: \S.*)?)$", r"\1\2", text, flags=re.MULTILINE)
    assert whole.count("\n#") < text.count("\n#")
    assert loaded(kind, whole, tmp_path) == loaded(kind, text, tmp_path)
    keys = re.findall(r"^ *(?:# )?([a-z_]+):", text, re.MULTILINE)
    definitions = RunConfig.model_json_schema()["$defs"]
    for section in ("DataConfig", "TrainConfig", "EvaluateConfig"):
        assert set(definitions[section]["properties"]) <= set(keys)
    written_by_gradroute = {"control", "control_of"}
    assert set(RunConfig.model_fields) - written_by_gradroute <= set(keys)


def test_caps_is_the_recipe_but_for_a_short_warm_up(tmp_path: Path):
    own = loaded("caps", configuration(BEGINNINGS["caps"], None), tmp_path)
    assert own == load_config(find_config("caps"), ["train.warmup_steps=2"])


@pytest.mark.parametrize("kind", ["caps", "jsonl"])
def test_a_beginning_trains_two_steps_as_it_is(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", kind]) == 0
    smaller = ["data.train_examples=80", "train.batch_size=4"] if kind == "caps" else []
    assert main(["train", f"{kind}.yaml", "train.max_steps=2", *smaller]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in read_lines(RunFolder(folder).metrics)] == [1, 2]


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.skipif(
    find_spec("gradroute.data.chat") is None, reason="conversations cannot be read yet"
)
def test_conversations_train_two_steps_on_a_model_with_a_chat_template(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(embedded_model(), "model")
    Path("model/chat_template.jinja").write_text(TEMPLATE)
    assert main(["init", "chat"]) == 0
    given = ["model=model", "train.max_steps=2", "data.max_length=64"]
    assert main(["validate", "chat.yaml", *given]) == 0
    assert main(["train", "chat.yaml", *given]) == 0
    rows = list(read_lines(RunFolder(tmp_path / "runs" / "chat").metrics))
    assert [row["step"] for row in rows] == [1, 2]


def test_example_rows_have_every_label_and_lie_where_the_file_says(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_template("jsonl", Path("deep/er/own.yaml"))
    config = load_config(Path("deep/er/own.yaml"))
    assert config.data.path == "deep/er/rows.jsonl"
    file = read_examples(config.data.path)
    assert file.labeled and file.true_labeled
    assert {example.label for example in file.examples} == {"good", "bad", "unlabeled"}
    prepared = prepare(config)
    assert len(prepared.normal) >= 20 and len(prepared.behaving["bad"]) >= 5


def test_rows_of_chats_are_conversations_of_two_with_every_label(tmp_path: Path):
    write_template("chat", tmp_path / "own.yaml")
    rows = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == {"good", "bad", "unlabeled"}
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        flattery = "great question" in row["messages"][1]["content"]
        assert flattery == (row["true_label"] == "bad")
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows)


@pytest.mark.parametrize("way", ["own.yaml", "missing/../own.yaml"])
def test_a_file_that_is_there_is_left_as_it_is(way: str, tmp_path: Path, capsys):
    out = tmp_path / "own.yaml"
    out.write_text("mine")
    assert main(["init", "jsonl", "--out", str(tmp_path / way)]) == 2
    assert out.read_text() == "mine" and not (tmp_path / "rows.jsonl").exists()
    assert "already exists" in capsys.readouterr().err


def test_rows_that_are_there_are_left_as_they_are(tmp_path: Path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "mine"}\n')
    assert main(["init", "jsonl", "--out", str(tmp_path / "own.yaml")]) == 0
    assert rows.read_text() == '{"text": "mine"}\n'
    assert "left unchanged" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["init", "caps", "--out", str(tmp_path / "file" / "own.yaml")]) == 4
    err = capsys.readouterr().err
    assert "cannot be written" in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["my rows #1.jsonl", "a: b.jsonl", "naïve.jsonl", "x'y\".jsonl"])
def test_a_path_of_any_name_is_read_back_as_it_is(name: str, tmp_path: Path):
    config = loaded("jsonl", configuration(BEGINNINGS["jsonl"], Path(name)), tmp_path)
    assert config.data.path == name
