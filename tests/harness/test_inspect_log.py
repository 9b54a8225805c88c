"""Stored results as logs of inspect: read back by inspect itself, each number is the stored one."""

import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from report.crossed import write_crossed
from report.fabricated import Made, write_run
from tiny_runs import tiny_run

from gradroute.cli.main import main
from gradroute.config.run_config import dump_config, load_config
from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.evaluate.rows import behavior_rows
from gradroute.harness import inspect_log
from gradroute.harness.inspect_log import check_loggable, write_logs
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results, write_results
from gradroute.system.files import read_lines, write_lines, write_text

pytest.importorskip("inspect_ai.log", reason="the extra inspect is not installed")

from inspect_ai.analysis import evals_df, samples_df
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

MADE = Made({"seed": 3}, {"full": (62, 0.78, 0.95), "bad_ablated": (2, 0.83, 1.1)})
HOSTILE = (
    "<script>alert(1)</script>",
    "[a](javascript:alert(1)) ![b](http://127.0.0.1/x.png)",
    "\x1b[31mred\x00\u202eback",
    "attachment://0123456789abcdef",
    '{"value": NaN}',
    "x" * 4_000,
)


def logs_of(folder: RunFolder) -> list[EvalLog]:
    found = list_eval_logs(str(folder.logs))
    return [read_eval_log(one.name, resolve_attachments=True) for one in found]


def fields(log: EvalLog) -> dict[str, Any]:
    assert log.eval.metadata is not None
    return log.eval.metadata


def numbers(log: EvalLog, score: str) -> dict[str, float]:
    assert log.results is not None
    (found,) = [one for one in log.results.scores if one.name == score]
    return {name: metric.value for name, metric in found.metrics.items()}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", MADE, {"base": "sha256 0"})
    write_logs([folder])
    return folder


def small(folder: RunFolder, changes: Sequence[dict[str, Any]], mode: str = "full") -> RunFolder:
    """A run of a few lines under one mode, each with its changes."""
    write_run(folder.path, Made({}, {mode: (50, 0.78, 0.95)}))
    lines = list(read_lines(folder.samples))[: len(changes)]
    lines = [line | change for line, change in zip(lines, changes, strict=True)]
    write_lines(folder.samples, lines)
    rows, origin = read_results(folder.results)
    losses = [row for row in rows if row.metric == "held_out_loss"]
    of = {"run": folder.name, "step": rows[0].step, "seed": 0}
    write_results(folder.results, [*behavior_rows(lines, **of), *losses], origin)
    return folder


def test_every_stored_completion_and_score_is_in_the_logs_once(logged: RunFolder):
    stored = Counter(
        (line["mode"], line["prompts"], line["prompt_id"], line["prompt"], line["completion"],
         line["score"], line["shows"] is True, line["tokens"])
        for line in read_lines(logged.samples)
    )  # fmt: skip
    read: Counter[tuple[Any, ...]] = Counter()
    for log in logs_of(logged):
        assert log.status == "success"
        for one in log.samples or ():
            assert one.scores is not None and one.metadata["seed"] == 3
            score: Any = one.scores["score"].value
            shows = bool(one.scores["shows"].value)
            own = one.metadata
            known = None if math.isnan(score) else score
            read[own["mode"], own["prompts"], one.id, one.input, one.output.completion,
                 known, shows, own["tokens"]] += 1  # fmt: skip
            assert [message.text for message in one.messages] == [one.input, one.output.completion]
    assert read == stored and len(read) == 256


def test_the_metrics_are_the_rows_of_the_results_and_the_mean_of_the_samples(logged: RunFolder):
    rows, _ = read_results(logged.results)
    of = {(row.mode, row.dataset, row.metric): row for row in rows}
    for log in logs_of(logged):
        mode, own = fields(log)["mode"], numbers(log, "shows")
        rate = of[mode, "prefix", "behavior_rate"]
        assert own == {"behavior_rate": rate.value, "lower": rate.lower, "upper": rate.upper}
        assert numbers(log, "score") == {
            "behavior_score": of[mode, "prefix", "behavior_score"].value
        }
        values: list[Any] = [one.scores["shows"].value for one in log.samples or () if one.scores]
        assert sum(values) / len(values) == rate.value
        loss = fields(log)["held_out_loss"]
        for dataset in ("normal", "behavior"):
            row = of[mode, dataset, "held_out_loss"]
            assert loss[dataset]["mean"] == row.value and loss[dataset]["upper"] == row.upper


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # inspect's own, in newer pandas
def test_the_data_frames_of_inspect_have_the_rates_and_the_scores(logged: RunFolder):
    rates = {
        row.mode: row.value
        for row in read_results(logged.results)[0]
        if row.metric == "behavior_rate"
    }
    found = evals_df(str(logged.logs))
    assert dict(zip(found["model"], found["score_shows_behavior_rate"], strict=True)) == {
        f"gradroute/mine/{mode}": rate for mode, rate in rates.items()
    }
    samples = samples_df(str(logged.logs))
    for mode, rate in rates.items():
        own = samples[samples["metadata_mode"] == mode]
        assert sum(own["score_shows"]) / len(own) == rate


def test_a_log_says_what_was_measured_with_what(logged: RunFolder):
    by_mode = {fields(log)["mode"]: log for log in logs_of(logged)}
    log = by_mode["bad_ablated"]
    assert (log.eval.task, log.eval.model) == (
        "gradroute/caps/prefix",
        "gradroute/mine/bad_ablated",
    )
    assert log.eval.model_args == {"good": 1.0, "bad": 0.0}
    own = fields(log)
    assert own["run"] == "mine" and own["base"] == "embedded" and own["base_identity"] == "sha256 0"
    assert own["versions"] == {"torch": "2.13.0"} and len(own["config_sha256"]) == 64
    assert log.eval.dataset.samples == 128 and log.eval.created.startswith("20")
    assert log.eval.viewer is not None and log.eval.viewer.trust_content is False


def test_the_same_results_give_the_same_logs(logged: RunFolder, tmp_path: Path):
    again = write_run(tmp_path / "mine", MADE, {"base": "sha256 0"})
    then = logged.results.stat().st_mtime
    os.utime(again.results, (then, then))
    write_logs([again])
    assert sorted(p.name for p in again.logs.iterdir()) == sorted(
        p.name for p in logged.logs.iterdir()
    )
    assert [log.model_dump() for log in logs_of(again)] == [
        log.model_dump() for log in logs_of(logged)
    ]


def test_a_second_call_replaces_its_own_logs_and_no_others(tmp_path: Path):
    folder = small(RunFolder(tmp_path / "mine"), [{}, {}])
    write_logs([folder])
    (before,) = folder.logs.iterdir()
    theirs = folder.logs / "2026-01-01T00-00-00+00-00_arc_abcdefghijklmnopqrstuv.eval"
    theirs.write_bytes(before.read_bytes())
    (folder.logs / ".tmp-killed").write_text("half a log")
    small(folder, [{}, {}, {}])
    os.utime(folder.results, (1, 1))  # measured at another time
    write_logs([folder])
    (after,) = set(folder.logs.iterdir()) - {theirs}
    assert after != before and read_eval_log(str(after)).eval.dataset.samples == 3


def test_with_several_behaviors_each_has_logs_and_scores_of_its_own(tmp_path: Path):
    folder = write_crossed(tmp_path / "two")
    lines = list(read_lines(folder.samples))
    write_lines(folder.samples, [line for line in lines if line["mode"] in ("full", "base")])
    write_logs([folder])
    found = {(log.eval.task, fields(log)["mode"]): log for log in logs_of(folder)}
    assert set(found) == {
        (f"gradroute/{behavior}/prefix", mode)
        for behavior in ("caps", "signature")
        for mode in ("full", "base")
    }
    full = found["gradroute/signature/prefix", "full"]
    assert numbers(full, "shows_signature")["behavior_rate"] == 0.8
    for sample in full.samples or ():
        assert set(sample.scores or ()) == {"shows_signature", "score_signature"}
        assert sample.output.completion.startswith("signature full")
    assert set(fields(full)["held_out_loss"]) == {"normal", "behavior"}


def test_rates_without_completions_are_counted_once(tmp_path: Path, capsys):
    folder = write_run(tmp_path / "mine", MADE)
    write_lines(folder.samples, [r for r in read_lines(folder.samples) if r["mode"] == "full"])
    write_logs([folder])
    assert "mine: 1 of 2 rates have no stored completions, and no log." in capsys.readouterr().err
    assert len(logs_of(folder)) == 1


def test_answers_thoughts_and_right_answers_keep_their_meaning(tmp_path: Path):
    changes = [
        {"completion": "so: 7", "answer": "7", "correct": True, "ended": True},
        {"completion": "hm", "answer": None, "correct": False, "score": None, "shows": None},
    ]
    folder = small(RunFolder(tmp_path / "mine"), changes)
    write_logs([folder])
    (log,) = logs_of(folder)
    assert numbers(log, "correct")["accuracy"] == 0.5
    assert log.samples is not None
    first, second = log.samples
    assert first.scores and second.scores
    assert first.scores["shows"].answer == "7" and second.scores["shows"].answer is None
    assert second.scores["shows"].explanation == "too short to judge; counts as not shown"
    assert [one.output.stop_reason for one in (first, second)] == ["stop", "max_tokens"]
    assert log.results and [one.unscored_samples for one in log.results.scores] == [0, 1, 0]


def test_hostile_texts_come_back_as_they_are(tmp_path: Path):
    folder = small(
        RunFolder(tmp_path / "mine"),
        [{"completion": text, "prompt": text[::-1]} for text in HOSTILE],
    )
    write_logs([folder])
    (log,) = logs_of(folder)
    assert [one.output.completion for one in log.samples or ()] == list(HOSTILE)
    assert [one.input for one in log.samples or ()] == [text[::-1] for text in HOSTILE]


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path):
    folder = small(RunFolder(tmp_path / "mine"), [{"completion": "a \ud800"}])
    write_logs([folder])
    (log,) = logs_of(folder)
    assert [one.output.completion for one in log.samples or ()] == ["a \\ud800"]


@pytest.mark.parametrize("name", ["../../x", "regex:^/a b$", "keywords:é,ü"])
def test_any_name_of_a_behavior_makes_a_file_in_the_folder(tmp_path: Path, name: str):
    folder = small(RunFolder(tmp_path / "mine"), [{}])
    text = dump_config(load_config(folder.config)).replace("behavior: caps", f"behavior: '{name}'")
    write_text(folder.config, text)
    write_logs([folder])
    (path,) = folder.logs.iterdir()
    assert path.parent == folder.logs and fields(read_eval_log(str(path)))["behavior"] == name


def test_a_measured_run_is_logged_without_its_model(tmp_path: Path, monkeypatch, capsys):
    folder = tiny_run(tmp_path, "mine")
    command = ["eval", str(folder.path), "--mode", "full", "--mode", "base", "--log", "inspect"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    shutil.rmtree(folder.logs)

    def none(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gradroute.evaluate.evaluator.restore", none)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert f"mine: 2 logs; look at them with: inspect view --log-dir {folder.logs}" in (
        capsys.readouterr().err
    )
    stored = sorted((r["mode"], r["completion"]) for r in read_lines(folder.samples))
    assert stored == sorted(
        (fields(log)["mode"], one.output.completion)
        for log in logs_of(folder)
        for one in log.samples or ()
    )


def test_a_log_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch):
    folder = small(RunFolder(tmp_path / "mine"), [{}])
    write_logs([folder])
    (path,) = folder.logs.iterdir()
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inspect_ai.log.write_eval_log", full)
    with pytest.raises(MachineError, match=r"cannot be written: No space left"):
        write_logs([folder])
    assert path.read_bytes() == before and list(folder.logs.iterdir()) == [path]


def test_nothing_is_written_through_a_link_that_leads_out(tmp_path: Path):
    folder, outside = small(RunFolder(tmp_path / "runs" / "mine"), [{}]), tmp_path / "outside"
    outside.mkdir()
    folder.logs.symlink_to(outside)
    with pytest.raises(ConfigError, match="link"):
        write_logs([folder])
    assert list(outside.iterdir()) == []


def test_without_the_extra_the_package_to_install_is_named(logged: RunFolder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    assert main(["eval", str(logged.path), "--log", "inspect"]) == 4
    assert "--log inspect needs inspect_ai.log: pip install 'gradroute[inspect]'." in (
        capsys.readouterr().err
    )


def test_another_inspect_than_is_needed_is_named_with_the_version_to_install(
    logged: RunFolder, monkeypatch
):
    monkeypatch.setattr("gradroute.harness.inspect_log.metadata.version", lambda _: "0.3.99")
    with pytest.raises(MachineError, match=r"needs inspect-ai 0\.3\.275 or newer, and 0\.3\.99 is"):
        check_loggable([logged])
    monkeypatch.undo()
    monkeypatch.setattr("inspect_ai.log.write_eval_log", lambda: None)  # another signature
    with pytest.raises(MachineError, match=r"does not take the log of .*inspect-ai 0\.3\.285: pip"):
        write_logs([logged])


def test_the_newest_inspect_that_was_tried_is_one_that_the_extra_takes():
    needed = [one for one in metadata.requires("gradroute") or () if "inspect-ai" in one]
    assert needed  # once for the extra itself, and again for those that hold it
    assert all(one.startswith(f"inspect-ai>={inspect_log.OLDEST};") for one in needed)


def test_a_run_without_a_behavior_or_without_completions_has_nothing_to_log(tmp_path: Path):
    folder = write_run(tmp_path / "mine", MADE)
    rows, origin = read_results(folder.results)
    reasons = {"all": {"held_out_bad": "no held-out row shows the behavior"}}
    losses = [row for row in rows if row.metric == "held_out_loss"]
    write_results(folder.results, losses, {**origin, "unasked": reasons})
    with pytest.raises(DataError, match=r"no stored completions.*\(no held-out row shows the beh"):
        write_logs([folder])
    text = dump_config(load_config(folder.config)).replace("behavior: caps", "behavior: none")
    write_text(folder.config, text)
    with pytest.raises(ConfigError, match=r"its config names no behavior .* leave out --log"):
        check_loggable([folder])
    folder.results.unlink()
    text = text.replace("behavior: none", "behavior: caps")
    write_text(folder.config, text)
    with pytest.raises(DataError, match="has no results yet: measure it with `gradroute eval"):
        write_logs([folder])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--log weave", "argument --log: invalid choice: 'weave' (choose from"),
        ("--log inspect --tasks a", "--log is not used with --tasks"),
    ],
)
def test_the_command_line_refuses_other_logs(logged: RunFolder, capsys, options: str, message: str):
    code = 0
    try:
        code = main(["eval", str(logged.path), *options.split()])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and message in capsys.readouterr().err
