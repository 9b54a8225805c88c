"""One run of two behaviors from its config to its report: every verb works, or says what to do."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.data.behaviors import get_behaviors
from gradroute.errors import ConfigError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest, requested_prompts
from gradroute.evaluate.side_by_side import sample_run
from gradroute.experiments.controls import control_configs
from gradroute.probes.geometry import geometry_runs
from gradroute.probes.recovery import recover_run
from gradroute.probes.relearning import relearn_runs
from gradroute.report.judge.comparison import compare
from gradroute.report.render.training_plot import plot_run
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results
from gradroute.system.files import read_lines

SMALL = (
    *TINY,
    "data.behavior_fraction=0.3",
    "adapters.caps.rank=2",
    "adapters.signature.rank=1",
    "train.measure_every=3",
    "train.measure_prompts=2",
)
ATTACK: dict[str, Any] = {"examples": 6, "max_steps": 1, "every": 1, "prompts": 2}
MODES = ("full", "caps_ablated", "signature_ablated", "good_alone")


def config_of(*overrides: str) -> RunConfig:
    return load_config(find_config("two_behaviors"), [*SMALL, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("runs")
    return train_run(config_of("run_name=two"), root, if_exists="fail", bar=False)


def test_every_behavior_is_measured_under_every_mode(run: RunFolder) -> None:
    evaluate_run(run, EvaluationRequest(prompts=("prefix", "plain"), modes=MODES))
    rows, _ = read_results(run.results)
    rated = Counter((r.label, r.dataset, r.mode) for r in rows if r.metric == "behavior_rate")
    labels, kinds = ("caps", "signature"), ("prefix", "plain")
    assert rated == Counter(
        dict.fromkeys(
            ((label, kind, mode) for label in labels for kind in kinds for mode in MODES), 1
        )
    )
    lost = {(r.label, r.dataset) for r in rows if r.metric == "held_out_loss"}
    assert lost == {("all", "normal"), ("caps", "behavior"), ("signature", "behavior")}
    lines = Counter((line["label"], line["prompts"]) for line in read_lines(run.samples))
    assert lines == Counter({(label, kind): 3 * len(MODES) for label in labels for kind in kinds})


def test_what_is_measured_of_one_behavior_is_kept_when_more_is_asked(run: RunFolder) -> None:
    evaluate_run(run, EvaluationRequest(prompts=("prefix",), modes=MODES))
    before = {line["completion"] for line in read_lines(run.samples)}
    rows, _ = read_results(run.results)
    evaluate_run(run, EvaluationRequest(prompts=("prefix",), modes=(*MODES, "caps_alone")))
    again, _ = read_results(run.results)
    assert again[: len(rows)] == rows
    assert {(r.mode, r.label) for r in again[len(rows) :] if r.metric == "behavior_rate"} == {
        ("caps_alone", "caps"),
        ("caps_alone", "signature"),
    }
    assert before <= {line["completion"] for line in read_lines(run.samples)}


def test_the_scales_of_a_mode_are_measured_under_its_name(run: RunFolder) -> None:
    evaluate_run(run, EvaluationRequest(prompts=("prefix",), modes=("good_alone",)))
    size = run.results.stat().st_size
    evaluate_run(run, EvaluationRequest(prompts=("prefix",), modes=("good=1,caps=0,signature=0",)))
    assert run.results.stat().st_size == size


def test_every_behavior_has_a_line_per_measurement_during_training(run: RunFolder) -> None:
    found = [(line["step"], line["label"], line["mode"]) for line in read_lines(run.measures)]
    assert found == [
        (3, label, mode) for label in ("caps", "signature") for mode in ("full", "good_alone")
    ]
    assert plot_run(run).is_file()


def test_samples_say_which_behavior_their_prompts_invite(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_run(run, EvaluationRequest(modes=("full",)), texts=("Once",), count=1)
    heads = [line for line in capsys.readouterr().out.splitlines() if "…" in line]
    # A prompt that was given and no kind: that one alone.
    assert heads == ["Once …"]
    sample_run(run, EvaluationRequest(modes=("full",)), texts=(), count=1)
    heads = [line for line in capsys.readouterr().out.splitlines() if "…" in line]
    assert [head.rpartition(" … ")[2] for head in heads] == ["[caps]", "[signature]"]


def test_a_file_of_prompts_is_asked_of_every_behavior(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Once upon a time\n")
    asked = requested_prompts(
        get_behaviors(config_of().behaviors), (str(tmp_path / "mine.txt"), "plain"), ()
    )
    assert [(one.label, one.kind) for one in asked] == [
        ("caps", "file:mine.txt"),
        ("caps", "plain"),
        ("signature", "file:mine.txt"),
        ("signature", "plain"),
    ]


def test_relearning_takes_each_behavior_in_turn_or_the_one_that_is_named(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    relearn_runs([run], **ATTACK, behavior="signature")
    assert json.loads(run.relearn.read_text())["behaviors"].keys() == {"signature"}
    relearn_runs([run], **ATTACK)
    document = json.loads(run.relearn.read_text())["behaviors"]
    assert document.keys() == {"signature", "caps"}
    assert {one["kept_mode"] for one in document.values()} == {"good_alone"}
    assert "two (caps)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no behavior with the label 'bad'; its labels are caps"):
        relearn_runs([run], **ATTACK, behavior="bad")


def test_recovery_leaves_the_adapters_of_all_behaviors_out(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    recover_run(run, steps=1, learning_rate=None, examples=4)
    document = json.loads((run.recovery / "recover.json").read_text())["behaviors"]
    assert {one["mode"] for one in document.values()} == {"good_alone"}
    assert document["caps"]["before"]["full"]["rate"]["n"] == 3
    assert document["caps"]["before"]["full"] != document["signature"]["before"]["full"]
    assert "good_alone" in capsys.readouterr().out


def test_geometry_needs_to_be_told_which_two(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say which two: --adapters good,NAME"):
        geometry_runs([run], tmp_path)
    with pytest.raises(ConfigError, match="names good and bad; two of its adapters, good, caps"):
        geometry_runs([run], tmp_path, ("good", "bad"))
    geometry_runs([run], tmp_path, ("caps", "signature"))
    assert json.loads(run.geometry.read_text())["adapters"] == ["caps", "signature"]


def test_what_was_measured_beside_stands_in_the_comparison_by_behavior(run: RunFolder) -> None:
    relearn_runs([run], **ATTACK)
    recover_run(run, steps=1, learning_rate=None, examples=4)
    comparison = compare([run])
    names = {"two (caps)", "two (signature)"}
    assert {one.run for one in comparison.relearning} == names
    assert {one.run for one in comparison.recovered} == names


@pytest.mark.parametrize(
    ("name", "adapters"),
    [
        ("none", ["good", "caps", "signature"]),
        ("filter", ["good"]),
        ("oracle", ["good"]),
        ("random_labels", ["good", "caps", "signature"]),
        ("anchors_only", ["good", "caps", "signature"]),
    ],
)
def test_controls_keep_the_behaviors_and_their_rows(name: str, adapters: Sequence[str]) -> None:
    (control,) = control_configs(config_of(f"controls=[{name}]"))
    assert list(control.adapters) == adapters
    assert control.policy.labels == ("caps", "signature", "unlabeled", "good")
    assert control.behaviors == config_of().behaviors
