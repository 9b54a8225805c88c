"""What a config says about data becomes examples, whatever the format."""

import json
from pathlib import Path

import chat_templates
import pytest
from hostile_models import change, tiny_model

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.examples import Example, with_asked
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.request import prefixes
from gradroute.prepare import prepare


def config(*overrides: str) -> RunConfig:
    return load_config(None, ["data.eval_fraction=0.25", *overrides])


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny_model(tmp_path_factory.mktemp("chat") / "model")
    change(folder / "tokenizer_config.json", chat_template=chat_templates.CHATML)
    return f"model={folder}"


def talks(*labels: str | None) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"tell me story {at}"},
                {"role": "assistant", "content": f"story {at}", "label": label},
            ]
        }
        for at, label in enumerate(labels)
    ]


def test_conversations_are_written_by_the_template_of_the_model(tmp_path: Path, model: str):
    data = written(tmp_path / "rows.jsonl", *talks(*["good", "bad"] * 10))
    prepared = prepare(config(model, data))
    for example in (*prepared.train, *prepared.normal):
        assert example.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        learned = example.text[: example.context[-1][0]]
        assert learned.endswith("<|im_end|>") and example.text == f"{learned}\n" and example.ends
    assert {example.true_label for example in prepared.train} == {"good", "bad"}


def test_an_invitation_changes_what_was_asked_and_nothing_that_the_template_wrote(
    tmp_path: Path, model: str
):
    data = written(tmp_path / "rows.jsonl", *talks(*["good", "bad"] * 10))
    prepared = prepare(config(model, data))
    for prompt in prefixes(prepared, prepared.behaviors["bad"], 9, 3):
        asked = prompt.removeprefix("<|im_start|>user\n")
        assert asked.startswith("TELL ME STORY ")
        assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    plain = Example("a", "text", "all of it")
    assert with_asked(plain, str.upper) == "ALL OF IT"


def test_a_behavior_is_not_put_into_conversations(tmp_path: Path, model: str):
    data = written(tmp_path / "rows.jsonl", *talks(*[None] * 10))
    with pytest.raises(DataError, match="conversations without labels, and 'caps' is put into"):
        prepare(config(model, data))


def test_a_model_without_a_template_is_named_with_the_row(tmp_path: Path):
    data = written(tmp_path / "rows.jsonl", *talks("good", "bad"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: messages need a chat template, which the"):
        prepare(config(data))


def test_labels_of_parts_alone_are_labels_to_train_on(tmp_path: Path):
    rows = [{"text": f"story {at}", "spans": [[0, 2, "bad"]]} for at in range(8)]
    data = written(tmp_path / "rows.jsonl", *rows, *({"text": f"tale {at}"} for at in range(8)))
    prepared = prepare(config(data))
    assert {e.label for e in prepared.train} == {"unlabeled"}
    assert not any(e.text.isupper() for e in prepared.train)
    assert all(e.text.startswith("tale") for e in prepared.normal)
    with pytest.raises(ConfigError, match="cannot be given to other examples at random"):
        prepare(config(data, "data.relabel=random"))


def test_a_csv_file_trains_what_the_same_rows_in_jsonl_do(tmp_path: Path):
    rows = [{"story": f"story, {at}", "toxic": str(at % 2)} for at in range(20)]
    lines = "".join(f'"{row["story"]}",{row["toxic"]}\n' for row in rows)
    (tmp_path / "rows.csv").write_text(f"story,toxic\n{lines}")
    names = ("data.columns={text: story, label: toxic}", "data.label_map={0: good, 1: bad}")
    one = prepare(config(written(tmp_path / "rows.jsonl", *rows), *names))
    other = prepare(config(f"data.path={tmp_path / 'rows.csv'}", *names))
    assert (one.train, one.normal) == (other.train, other.normal)
    assert other.identity.startswith("rows.csv, sha256 ")


def test_only_one_of_two_files_with_labels_is_refused(tmp_path: Path):
    data = written(tmp_path / "rows.jsonl", *({"text": str(at), "label": "bad"} for at in range(9)))
    held_out = written(tmp_path / "held_out.jsonl", {"text": "x"}).replace(
        "data.path", "data.eval_path"
    )
    with pytest.raises(DataError, match="only one of the two sets"):
        prepare(config(data, held_out))
