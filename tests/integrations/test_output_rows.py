"""The rows that trainers were given, as a run reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from output_runs import (
    HELD_OUT,
    ROUTED,
    TRAIN,
    folder_of,
    loaded,
    losses,
    measured,
    rows,
    sft,
    shorten,
    words_of,
)
from torch import Tensor
from toy_rows import settings, tokenizer
from transformers import (
    TrainingArguments,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig

from gradroute.config.run_config import load_config
from gradroute.errors import DataError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.integrations import (
    RoutedDPOTrainer,
    RoutedGRPOTrainer,
    RoutedTrainer,
)
from gradroute.integrations.labels import LabelColumns
from gradroute.integrations.output_rows import RowReader
from gradroute.prepare import prepare
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.resume import read_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_questions_and_texts_that_are_written_otherwise_are_rows_too():
    def read(given: Mapping[str, Any], formatted: Any = None, column: str = "text") -> Any:
        table = RoutingPolicy.parse("anchored", ["good", "bad"])
        columns = LabelColumns(table, ("label",))
        reader = RowReader(columns, column, formatted, None)
        return list(reader.rows({"a": rows({**given, "label": ["bad"]})}, "training"))

    asked, said = {"role": "user", "content": "Six?"}, {"role": "assistant", "content": "6"}
    plain = {"prompt": "Six?", "text": "6", "label": "bad"}
    assert read({"prompt": ["Six?"], "completion": ["6"]}) == [plain]
    assert read({"story": ["A."]}, column="story") == [{"text": "A.", "label": "bad"}]
    assert read({"q": ["A."]}, formatted=lambda row: row["q"] * 2) == [
        {"text": "A.A.", "label": "bad"}
    ]
    # An answer in the prompt is read and not learned.
    [row] = read({"prompt": [[asked, said, asked]], "completion": [[said]]})
    assert [m.get("train") for m in row["messages"]] == [None, False, None, None]
    [row] = read({"conversations": [[{"from": "user", "value": "Six?"}]]})
    assert row["messages"] == [asked]
    with pytest.raises(DataError, match="have no text; they have story, label"):
        read({"story": ["A."]})


def test_a_preference_run_has_each_side_as_a_row_under_its_label(base_folder: Path, tmp_path: Path):
    def pairs(tail: str) -> Dataset:
        return rows(
            {
                "prompt": [f"tell {tail} ", f"why {tail} "],
                "chosen": ["ab ab", "cd"],
                "rejected": ["NO NO NO NO", "xyz"],
                "label_chosen": ["good", "good"],
                "label_rejected": ["bad", None],
            }
        )

    trainer = RoutedDPOTrainer(
        loaded(base_folder),
        DPOConfig(**settings(tmp_path / "pairs", max_steps=2)),
        train_dataset=pairs("me"),
        eval_dataset=pairs("us"),
        processing_class=words_of(base_folder),
        behavior="caps",
        **ROUTED,
    )
    trainer.train()
    folder = folder_of(trainer)
    shorten(folder)
    prepared = prepare(load_config(folder.config))
    assert [(e.prompt, e.text, e.label) for e in prepared.train] == [
        ("tell me ", "ab ab", "good"),
        ("tell me ", "NO NO NO NO", "bad"),
        ("why me ", "cd", "good"),
        ("why me ", "xyz", "unlabeled"),
    ]
    evaluate_run(folder, EvaluationRequest(modes=("full", "bad_ablated")))
    assert ("full", "behavior") in measured(folder, "held_out_loss")


def test_token_rows_are_read_as_the_words_that_they_stand_for(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = words_of(base_folder)

    def tokens(columns: Mapping[str, Any]) -> Dataset:
        texts = [f"{text}</s>" for text in columns["text"]]
        ids = [words(text)["input_ids"] for text in texts]
        masked = [[-100, -100, -100, *own[3:]] for own in ids]
        return rows({"input_ids": ids, "labels": masked, "label": columns["label"]})

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": 2, "labels": -100}
        return {
            key: torch.tensor([row[key] + [pad] * (width - len(row[key])) for row in batch])
            for key, pad in fill.items()
        }

    arguments = settings(tmp_path / "plain", max_steps=2, per_device_eval_batch_size=8)
    arguments = {k: v for k, v in arguments.items() if k != "activation_checkpointing"}
    trainer = RoutedTrainer(
        loaded(base_folder),
        TrainingArguments(**arguments),
        train_dataset=tokens(TRAIN),
        eval_dataset=tokens(HELD_OUT),
        data_collator=collate,
        processing_class=words,
        behavior="caps",
        **ROUTED,
    )
    trainer.train()
    folder = folder_of(trainer)
    shorten(folder)
    prepared = prepare(load_config(folder.config))
    assert [e.prompt + e.text for e in prepared.train] == TRAIN["text"]
    assert {len(e.prompt) for e in prepared.train} == {2}
    assert "other tokens" not in capsys.readouterr().err
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    theirs = trainer.evaluate()["eval_loss"]
    assert losses(folder, "full") == pytest.approx(theirs, abs=1e-5)


def test_the_rows_of_a_rollout_run_are_its_last_completions(base_folder: Path, tmp_path: Path):
    def monitor(prompts: Any, completions: Any, *_: Any) -> list[str]:
        return ["bad" if at % 2 else "good" for at in range(len(completions))]

    own = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12}
    trainer = RoutedGRPOTrainer(
        loaded(base_folder),
        lambda completions, **_: [float(len(text)) for text in completions],
        GRPOConfig(**settings(tmp_path / "rolled", max_steps=2, num_generations_eval=2, **own)),
        train_dataset=rows({"prompt": ["tell ", "says "]}),
        eval_dataset=rows({"prompt": ["who ", "two\nlines"], "label": [None, None]}),
        processing_class=words_of(base_folder),
        monitor=monitor,
        behavior="regex:[A-Z]",
        **ROUTED,
    )
    trainer.train()
    folder = folder_of(trainer)
    shorten(folder)
    assert len(trainer.rollouts) == 16
    prepared = prepare(load_config(folder.config))
    held_out = [*prepared.normal, *prepared.behaving["bad"]]
    assert {e.prompt for e in prepared.train}.isdisjoint(e.prompt for e in held_out)
    known = {(row["prompt"], row["text"]): row["label"] for row in trainer.rollouts}
    for example in (*prepared.train, *held_out):
        assert known[example.prompt, example.text] == example.label
    assert "the last 16 completions" in " ".join(read_manifest(folder)["notes"])
    asked = folder.path / "data" / "prompts.txt"
    assert asked.read_text() == "who \n"
    evaluate_run(folder, EvaluationRequest(prompts=(str(asked),), modes=("full",)))
    assert set(measured(folder, "behavior_rate")) == {("full", "file:prompts.txt")}


@pytest.mark.parametrize("answers_alone", [False, True])
def test_conversations_are_rows_whose_answers_are_learned(
    base_folder: Path, tmp_path: Path, answers_alone: bool, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "chat"
    loaded(base_folder).save_pretrained(folder)
    words = words_of(base_folder)
    words.chat_template = CHAT
    words.save_pretrained(folder)

    def talks(columns: Mapping[str, Any]) -> Dataset:
        asked = [{"role": "user", "content": text[:2] + "?"} for text in columns["text"]]
        said = [{"role": "assistant", "content": text} for text in columns["text"]]
        pairs = [list(pair) for pair in zip(asked, said, strict=True)]
        return rows({"messages": pairs, "label": columns["label"]})

    trainer = sft(
        tmp_path / "mine",
        loaded(folder),
        words,
        train_dataset=talks(TRAIN),
        eval_dataset=talks(HELD_OUT),
        assistant_only_loss=answers_alone,
    )
    trainer.train()
    prepared = prepare(load_config(folder_of(trainer).config))
    assert [e.prompt for e in prepared.train] == [
        f"[user]{text[:2]}?</s>[assistant]" for text in TRAIN["text"]
    ]
    assert [e.label for e in prepared.train] == [own or "unlabeled" for own in TRAIN["label"]]
    # Without the option TRL learns the questions too.
    told = capsys.readouterr().err
    assert ("in 5 of the first 5 rows its rows are other tokens or targets" in told) == (
        not answers_alone
    )


def test_rows_that_are_other_tokens_to_a_run_are_counted(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # This one puts a second end token behind every text that TRL has ended already.
    sft(tmp_path / "mine", loaded(base_folder), tokenizer()).train()
    assert "in 5 of the first 5 rows" in capsys.readouterr().err
