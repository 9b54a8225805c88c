"""The output folder of a routed trainer as a run that is measured, exported and reported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from output_runs import (
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
from toy_rows import TABLE, base
from transformers import (
    PreTrainedModel,
)

from gradroute.cli.main import main
from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.integrations import (
    RoutedSFTTrainer,
)
from gradroute.integrations.output_rows import logged_steps
from gradroute.integrations.output_run import base_of, given
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import prepare, tokenize_examples
from gradroute.report.render.training_plot import plot_run
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.runs.resume import read_manifest
from gradroute.system.files import read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> RoutedSFTTrainer:
    """Two steps of supervised training, its output folder a run."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    trainer = sft(out, loaded(base_folder), words_of(base_folder))
    trainer.train()
    # A few tokens are enough: what a run is measured with may be changed in its config.
    shorten(RunFolder(out))
    return trainer


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


def test_what_the_trainer_logged_is_drawn(trained: RoutedSFTTrainer):
    folder = folder_of(trained)
    lines = list(read_lines(folder.metrics))
    logged = [line for line in trained.state.log_history if "loss" in line]
    assert [(line["step"], line["loss"]) for line in lines] == [
        (line["step"], line["loss"]) for line in logged
    ]
    for line, own in zip(lines, logged, strict=True):
        assert line["learning_rate"] == pytest.approx(
            dict.fromkeys(("good", "bad"), own["learning_rate"])
        )
        assert line["gradient_norm"] == {
            name: own[f"grad_norm_{name}"] for name in line["gradient_norm"]
        }
    assert plot_run(folder).read_bytes().startswith(b"\x89PNG")


def test_each_adapter_has_the_learning_rate_of_its_group():
    groups = [
        {"adapter": "good", "lr": 1e-3, "initial_lr": 2e-3},
        {"adapter": "bad", "lr": 2e-3, "initial_lr": 4e-3},
    ]
    history = [{"step": 1, "loss": -0.5, "learning_rate": 1e-3}, {"step": 1, "eval_loss": 2.0}]
    [line] = logged_steps(history, groups)
    assert line["learning_rate"] == {"good": 1e-3, "bad": 2e-3}
    assert (line["loss"], line["gradient_norm"]) == (-0.5, {})


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


def test_its_completions_become_logs_of_inspect(trained: RoutedSFTTrainer, tmp_path: Path):
    pytest.importorskip("inspect_ai.log", reason="the extra inspect is not installed")
    folder = folder_of(trained)
    command = ["eval", str(folder.path), "--mode", "full", "--mode", "bad_ablated"]
    assert main([*command, "--log", "inspect", "--out", str(tmp_path)]) == 0
    from inspect_ai.log import list_eval_logs, read_eval_log

    logs = [read_eval_log(one.name) for one in list_eval_logs(str(folder.logs))]
    assert {log.eval.model for log in logs} == {
        "gradroute/mine/full",
        "gradroute/mine/bad_ablated",
    }
    stored = folder.samples.read_text().splitlines()
    assert sum(len(log.samples or ()) for log in logs) == len(stored) > 0


def test_a_second_training_in_the_folder_replaces_the_run(base_folder: Path, tmp_path: Path):
    for steps in (3, 1):
        trainer = sft(tmp_path / "mine", loaded(base_folder), words_of(base_folder))
        trainer.args.max_steps = steps
        trainer.train()
    config = load_config(folder_of(trainer).config)
    assert config.train.max_steps == finished_checkpoint(folder_of(trainer), 1).step == 1


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
