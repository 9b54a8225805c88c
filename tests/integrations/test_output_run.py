"""The output folder of a routed trainer as a run that is measured, exported and reported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import processors
from torch import Tensor
from toy_rows import TABLE, base, settings, tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from gradroute.cli.main import main
from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.integrations import (
    RoutedDPOTrainer,
    RoutedGRPOTrainer,
    RoutedSFTTrainer,
    RoutedTrainer,
)
from gradroute.integrations.labels import LabelColumns
from gradroute.integrations.output_rows import RowReader
from gradroute.integrations.output_run import base_of, given
from gradroute.integrations.routing import RoutedTraining
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import prepare, tokenize_examples
from gradroute.routing.adapters import AdapterSpec
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results
from gradroute.runs.resume import read_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

ROUTED: dict[str, Any] = {
    "policy": "anchored",
    "adapters": {"good": AdapterSpec(rank=3), "bad": AdapterSpec(rank=2, dropout=0.1)},
    "layers": "all",
}
TRAIN = {
    "text": ["aa b", "OH NO OH NO", "ccc d", "NO WAY", "xx y"],
    "label": ["good", "bad", "unlabeled", "bad", None],
}
HELD_OUT = {
    "text": ["zz tt", "MY OH MY OH", "hello x", "BAD ONE"],
    "label": ["good", "bad", None, "bad"],
}

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with 256 positions and a tokenizer that puts nothing behind a text."""
    folder = tmp_path_factory.mktemp("base")
    model, words = base(torch.float32), tokenizer()
    model.config.max_position_embeddings = 256
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def words_of(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def rows(columns: Mapping[str, Any]) -> Dataset:
    return Dataset.from_dict(dict(columns))


def sft(out: Path, model: PreTrainedModel, words: Any, **others: Any) -> RoutedSFTTrainer:
    usual = {"train_dataset": rows(TRAIN), "eval_dataset": rows(HELD_OUT), "behavior": "caps"}
    options = {"assistant_only_loss": others.pop("assistant_only_loss", False), "max_length": 64}
    arguments = settings(out, max_steps=2, per_device_eval_batch_size=8, **options)
    return RoutedSFTTrainer(
        model, SFTConfig(**arguments), processing_class=words, **ROUTED, **usual | others
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> RoutedSFTTrainer:
    """Two steps of supervised training, its output folder a run."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    trainer = sft(out, loaded(base_folder), words_of(base_folder))
    trainer.train()
    # A few tokens are enough: what a run is measured with may be changed in its config.
    shorten(RunFolder(out))
    return trainer


def shorten(folder: RunFolder) -> None:
    text = folder.config.read_text().replace("max_new_tokens: 64", "max_new_tokens: 12")
    folder.config.write_text(text)


def folder_of(trainer: RoutedTraining) -> RunFolder:
    return RunFolder(Path(str(trainer.args.output_dir)))


def losses(folder: RunFolder, mode: str) -> float:
    """Loss per token over all held-out rows, bad ones too."""
    lines = [json.loads(line) for line in folder.losses.read_text().splitlines()]
    own = [line for line in lines if line["mode"] == mode]
    return sum(line["nll"] for line in own) / sum(line["tokens"] for line in own)


def measured(folder: RunFolder, metric: str) -> dict[tuple[str, str], float]:
    found, _ = read_results(folder.results)
    return {(r.mode, r.dataset): r.value for r in found if r.metric == metric}  # pyright: ignore


def test_the_output_folder_is_a_run_of_what_was_trained(
    trained: RoutedSFTTrainer, base_folder: Path
):
    folder = folder_of(trained)
    config = load_config(folder.config)
    assert (config.run_name, config.model, config.seed) == ("mine", str(base_folder), 42)
    assert (config.routing, config.behavior, config.layers) == ("anchored", "caps", "all")
    adapters = {n: (a.rank, a.dropout, a.clip) for n, a in config.adapters.items()}
    assert adapters == {"good": (3, 0.0, 1.0), "bad": (2, 0.1, 1.0)}
    assert (config.train.max_steps, config.train.learning_rate) == (2, 1e-2)
    prepared = prepare(config)
    assert [(e.text, e.label) for e in prepared.train] == [
        (text, label or "unlabeled") for text, label in zip(*TRAIN.values(), strict=True)
    ]
    assert sorted(e.text for e in prepared.behaving["bad"]) == ["BAD ONE", "MY OH MY OH"]
    manifest = read_manifest(folder)
    assert manifest["trainer"] == "RoutedSFTTrainer"
    assert manifest["examples"]["bad labeled bad"] == 2
    stored = finished_checkpoint(folder, 2).path
    assert (stored / "optimizer.safetensors").stat().st_size < 100


def test_eval_measures_what_the_trainer_measures_and_ablation_is_deletion(
    trained: RoutedSFTTrainer,
):
    folder = folder_of(trained)
    evaluate_run(folder, EvaluationRequest(modes=("full", "bad_ablated")))
    theirs = trained.evaluate()
    # float32; batches of other shapes sum in another order.
    assert losses(folder, "full") == pytest.approx(theirs["eval_loss"], abs=1e-5)
    assert losses(folder, "bad_ablated") == pytest.approx(theirs["eval_loss_bad_ablated"], abs=1e-5)
    rates = measured(folder, "behavior_rate")
    assert set(rates) == {("full", "prefix"), ("bad_ablated", "prefix")}
    config = load_config(folder.config)
    restored, model = restore(config, finished_checkpoint(folder, 2))
    model.delete_adapter("bad")
    model.base_model.set_adapter(["good"])  # pyright: ignore
    prepared = prepare(config)
    examples = [*prepared.normal, *prepared.behaving["bad"]]
    tokens, _ = tokenize_examples(examples, None, restored, 32)
    summed = count = 0.0
    with torch.no_grad():
        for row in tokens:
            ids = torch.tensor([row.input_ids])
            said: Tensor = model(ids).logits[0, :-1].log_softmax(-1)
            summed -= float(said.gather(-1, ids[0, 1:, None]).sum())
            count += len(row.input_ids) - 1
    assert losses(folder, "bad_ablated") == pytest.approx(summed / count, abs=1e-5)
    assert abs(losses(folder, "bad_ablated") - losses(folder, "full")) > 1e-3


def test_the_verbs_of_a_run_take_the_folder(
    trained: RoutedSFTTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = str(folder_of(trained).path.parent)
    shipped = tmp_path / "shipped"
    assert main(["eval", "mine", "--runs", root, "--mode", "full", "--mode", "bad_ablated"]) == 0
    assert main(["report", "mine", "--runs", root, "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "report.html").is_file()
    export = ["export", "mine", "--runs", root, "--keep", "good", "--format", "peft"]
    assert main([*export, "--out", str(shipped)]) == 0
    told = capsys.readouterr().out
    assert "0 bytes of bad" in told
    proof = json.loads((shipped / "proof.json").read_text())
    assert proof["left_out"] == ["bad"]
    assert all(check["passed"] for check in proof["checks"])


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


def test_a_second_training_in_the_folder_replaces_the_run(base_folder: Path, tmp_path: Path):
    for steps in (3, 1):
        trainer = sft(tmp_path / "mine", loaded(base_folder), words_of(base_folder))
        trainer.args.max_steps = steps
        trainer.train()
    config = load_config(folder_of(trainer).config)
    assert config.train.max_steps == finished_checkpoint(folder_of(trainer), 1).step == 1


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


def test_a_run_without_a_behavior_is_measured_by_losses_alone(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer = sft(tmp_path / "mine", loaded(base_folder), words_of(base_folder), behavior=None)
    trainer.train()
    folder = folder_of(trainer)
    assert "no behavior was named" in capsys.readouterr().err
    shorten(folder)
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    assert ("full", "behavior") in measured(folder, "held_out_loss")
    assert measured(folder, "behavior_rate") == {}
    results = json.loads(folder.results.read_text())
    assert "names no behavior" in json.dumps(results["provenance"]["unasked"])
    with pytest.raises(ConfigError, match="names no behavior"):
        evaluate_run(folder, EvaluationRequest(prompts=("plain",)))
    assert main(["sample", str(folder.path), "--count", "1", "--mode", "full"]) == 0
    # Named afterwards, it is measured.
    text = folder.config.read_text()
    folder.config.write_text(text.replace("behavior: none", "behavior: caps"))
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    assert ("full", "prefix") in measured(folder, "behavior_rate")


@pytest.mark.parametrize("changed", [False, True])
def test_a_base_that_no_folder_holds_is_said_after_training_and_before_measuring(
    base_folder: Path, tmp_path: Path, changed: bool, capsys: pytest.CaptureFixture[str]
):
    model: PreTrainedModel = base(torch.float32)
    if changed:
        model = loaded(base_folder)
        with torch.no_grad():
            model.get_input_embeddings().weight[0, 3] += 0.5  # pyright: ignore
    trainer = sft(tmp_path / "mine", model, words_of(base_folder))
    trainer.train()
    told = capsys.readouterr().err
    assert told.count("save it with its tokenizer") == 1
    assert ("differs from the files" in told) == changed
    with pytest.raises(ConfigError, match="there is no folder"):
        evaluate_run(folder_of(trainer), EvaluationRequest(modes=("full",)))


def test_a_base_of_the_hub_is_named_with_its_revision(tmp_path: Path):
    model = base()
    model.config._name_or_path, model.config._commit_hash = "me/base", "a" * 40  # pyright: ignore
    assert base_of(model, tmp_path) == ("me/base", f"hub revision {'a' * 40}", "")


def test_each_adapter_of_a_behavior_has_a_label_where_none_is_named():
    def behavior_of(table: Any, adapters: list[str]) -> Any:
        others = [name for name in adapters if name != "good"]
        return given(None, RoutingPolicy.parse(table, adapters, others), {}).behavior

    assert behavior_of("anchored", ["good", "bad"]) == "none"
    assert behavior_of("anchored", ["good", "rude", "loud"]) == {"rude": "none", "loud": "none"}
    assert behavior_of(TABLE, ["good", "bad"]) == "none"  # its label `odd` has no adapter


def test_rows_that_are_other_tokens_to_a_run_are_counted(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # This one puts a second end token behind every text that TRL has ended already.
    sft(tmp_path / "mine", loaded(base_folder), tokenizer()).train()
    assert "in 5 of the first 5 rows" in capsys.readouterr().err


def test_without_held_out_rows_training_says_that_nothing_can_be_measured_on(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer = sft(tmp_path / "mine", loaded(base_folder), words_of(base_folder), eval_dataset=None)
    trainer.train()
    assert "no eval_dataset was given" in capsys.readouterr().err
    with pytest.raises(DataError, match="held_out"):
        evaluate_run(folder_of(trainer), EvaluationRequest(modes=("full",)))
    command = ["export", "mine", "--runs", str(tmp_path), "--keep", "good", "--format", "peft"]
    assert main([*command, "--out", str(tmp_path / "out"), "--no-eval"]) == 0


def test_what_cannot_be_used_is_refused_before_training_and_said_after_it(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, words = loaded(base_folder), words_of(base_folder)
    with pytest.raises(ConfigError, match="Did you mean 'caps'"):
        sft(tmp_path / "a", model, words, behavior="cap")
    with pytest.raises(ConfigError, match="names the label 'odd'"):
        sft(tmp_path / "a", model, words, behavior={"odd": "caps"})
    with pytest.raises(DataError, match="no column 'label'"):
        sft(tmp_path / "a", model, words, eval_dataset=rows({"text": ["no label"]}))
    # A config that no trainer wrote stays as it is; the weights are trained all the same.
    there = tmp_path / "there"
    there.mkdir()
    (there / "config.yaml").write_text("run_name: other\n")
    trainer = sft(there, model, words)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "was not written by a trainer" in capsys.readouterr().err
    assert (there / "config.yaml").read_text() == "run_name: other\n"
