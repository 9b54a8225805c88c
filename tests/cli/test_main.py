"""The verbs as a user meets them: one flow from start to end, and one line for each wrong input."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gradroute.cli.main import main
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines
from torture.forks import serving

TINY = (
    "train.max_steps=3",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "data.train_examples=80",
    "data.max_length=48",
    "data.behavior_fraction=0.5",
    "adapters.good.rank=4",
    "adapters.bad.rank=4",
    "evaluate.prompts=4",
    "evaluate.max_new_tokens=6",
    "evaluate.held_out=6",
)
STANDARD = ("full", "bad_ablated", "good_ablated", "good_x2", "base")


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished and measured tiny runs: one routed, one not."""
    runs = tmp_path_factory.mktemp("flow") / "runs"
    assert main(["train", "caps", *TINY, "run_name=routed", "--runs", str(runs)]) == 0
    unrouted = ["run_name=unrouted", "routing=none"]
    assert main(["train", "caps", *TINY, *unrouted, "--runs", str(runs)]) == 0
    assert main(["eval", "routed", "unrouted", "--runs", str(runs)]) == 0
    return runs


@pytest.fixture
def copied(trained, tmp_path):
    """The same two runs in a folder of one's own."""
    for name in ("routed", "unrouted"):
        shutil.copytree(trained / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_train_and_eval_leave_the_files_the_readme_names(trained):
    assert {path.name for path in (trained / "routed").iterdir()} == {
        "config.yaml",
        "manifest.json",
        "sessions.jsonl",
        "metrics.jsonl",
        "timings.jsonl",
        "checkpoints",
        "eval",
    }
    assert (trained / "eval_multi_plot.png").stat().st_size > 5000
    document = json.loads((trained / "eval_multi_results.json").read_text())
    cell = document["runs"]["routed"]["bad_ablated"]
    assert set(cell["behavior_rate"]) == {"mean", "lower", "upper", "n"}
    assert cell["behavior_rate"]["n"] == 4
    for dataset in ("normal", "behavior"):
        assert set(cell["held_out_loss"][dataset]) == {"mean", "lower", "upper", "std", "n"}
    assert document["runs"]["routed"]["config"]["routing"] == "anchored"


def test_rates_and_losses_in_the_comparison_equal_those_recomputed_from_the_lines(trained):
    document = json.loads((trained / "eval_multi_results.json").read_text())
    for name in ("routed", "unrouted"):
        folder = RunFolder(trained / name)
        samples, losses = list(read_lines(folder.samples)), list(read_lines(folder.losses))
        for mode in ("full", "bad_ablated", "good_ablated", "good_x2", "base"):
            cell = document["runs"][name][mode]
            rows = [row for row in samples if row["mode"] == mode]
            shown = sum(row["shows"] is True for row in rows)
            assert cell["behavior_rate"]["mean"] == shown / len(rows)
            for dataset in ("normal", "behavior"):
                own = [r for r in losses if (r["mode"], r["dataset"]) == (mode, dataset)]
                mean = sum(r["nll"] for r in own) / sum(r["tokens"] for r in own)
                assert cell["held_out_loss"][dataset]["mean"] == pytest.approx(mean, rel=1e-12)


def test_a_second_eval_measures_nothing_again(trained, capsys):
    before = (trained / "routed" / "eval" / "results.json").stat().st_mtime_ns
    code, _, err = run(capsys, "eval", "routed", "--runs", trained, "--out", trained / "again")
    assert code == 0 and "measuring" not in err
    assert (trained / "routed" / "eval" / "results.json").stat().st_mtime_ns == before
    assert (trained / "again" / "eval_multi_results.json").is_file()


def test_eval_adds_kinds_of_prompts_modes_and_curves_to_what_is_measured(copied, capsys):
    (copied / "mine.txt").write_text("the fox\n")
    code, out, err = run(
        capsys, "eval", "routed", "--runs", copied, "--prompts", copied / "mine.txt",
        "--prompts", "plain", "--mode", "full", "--scale", "bad=0,0.5,1",
    )  # fmt: skip
    assert code == 0, err
    assert "measuring prefix" not in err and "routed" in out
    samples = list(read_lines(RunFolder(copied / "routed").samples))
    found = {(line["prompts"], line["mode"]) for line in samples}
    asked = ("full", "bad_ablated", "good=1,bad=0.5")
    assert found == {
        *(("prefix", mode) for mode in STANDARD),
        *((kind, mode) for kind in ("plain", "file:mine.txt") for mode in asked),
    }
    document = json.loads((copied / "eval_multi_results.json").read_text())
    assert set(document["runs"]["routed"]) >= {*STANDARD, "good=1,bad=0.5"}


def test_sample_prints_every_asked_mode_for_every_prompt(trained, capsys):
    code, out, _ = run(
        capsys, "sample", "routed", "--runs", trained, "--mode", "full", "--mode",
        "good=1,bad=0.5", "--prompt", "THE OLD FOX", "--prompt", "once upon",
    )  # fmt: skip
    assert code == 0
    assert out.count("good=1,bad=0.5") == 2 and "THE OLD FOX" in out and "once upon" in out


def test_sample_shows_held_out_prompts_under_the_runs_own_modes_unless_told_otherwise(
    trained, capsys
):
    code, out, _ = run(capsys, "sample", "unrouted", "--runs", trained, "--count", "2")
    assert code == 0
    assert all(out.count(f"  {mode} ") == 2 for mode in STANDARD)
    assert out.count(" …") == 2


def test_every_verb_on_finished_runs_does_its_work(copied, capsys):
    routed = RunFolder(copied / "routed")
    code, out, err = run(capsys, "plot", "routed", "--runs", copied)
    assert code == 0 and out == f"{routed.training_plot}\n"
    assert routed.training_plot.is_file()
    code, out, err = run(capsys, "geometry", "routed", "unrouted", "--runs", copied)
    assert code == 0 and "unrouted" in out, err
    assert routed.geometry.is_file()
    tune = ("--steps", "2", "--learning-rate", "1e-3", "--examples", "4")
    code, out, err = run(capsys, "recover", "routed", "--runs", copied, *tune)
    assert code == 0 and "bad_ablated" in out, err
    assert (routed.recovery / "recover.json").is_file()
    attack = ("--examples", "4", "--max-steps", "2", "--every", "1", "--prompts", "3")
    code, out, err = run(capsys, "relearn", "routed", "unrouted", "--runs", copied, *attack)
    assert code == 0 and "routed" in out, err
    assert len(json.loads(routed.relearn.read_text())["curves"]) == 2
    page = copied.parent / "page"
    code, out, err = run(capsys, "report", "routed", "unrouted", "--runs", copied, "--out", page)
    assert code == 0, err
    assert (page / "report.html").is_file() and (page / "eval_multi_plot.png").is_file()


def test_train_trains_the_controls_that_the_config_names(tmp_path, capsys):
    asked = ("run_name=x", "train.max_steps=1", "controls=[none, filter]")
    code, _, err = run(capsys, "train", "caps", *TINY, *asked, "--runs", tmp_path)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {".states", "x", "x-none", "x-filter"}
    again = ("run_name=x", "train.max_steps=1", "controls=[none, oracle]")
    code, _, err = run(capsys, "train", "caps", *TINY, *again, "--runs", tmp_path)
    assert code == 0 and err.count("nothing to train") == 2
    assert (tmp_path / "x-oracle" / "manifest.json").is_file()


def test_train_on_a_finished_run_says_so_and_changes_nothing(trained, capsys):
    before = (trained / "routed" / "metrics.jsonl").read_bytes()
    code, _, err = run(capsys, "train", "caps", *TINY, "run_name=routed", "--runs", trained)
    assert code == 0 and "finished" in err
    assert (trained / "routed" / "metrics.jsonl").read_bytes() == before


def test_train_with_another_config_in_the_same_folder_names_the_difference(trained, capsys):
    code, _, err = run(
        capsys, "train", "caps", *TINY, "run_name=routed", "seed=5", "--runs", trained
    )
    assert code == 2
    assert ["seed", "0", "5"] in map(str.split, err.splitlines()) and "--if-exists new" in err


def test_if_exists_new_moves_the_old_run_aside(tmp_path, capsys):
    arguments = ("train", "caps", *TINY, "run_name=x", "train.max_steps=1", "--runs", tmp_path)
    assert run(capsys, *arguments)[0] == 0
    assert run(capsys, *arguments, "--if-exists", "fail")[0] == 2
    assert run(capsys, *arguments, "seed=9", "--if-exists", "new")[0] == 0
    assert (tmp_path / "x.old-1" / "config.yaml").is_file()
    assert "seed: 9" in (tmp_path / "x" / "config.yaml").read_text()


ALL_GOOD = "".join(f'{{"text": "a b c {i}", "label": "good"}}\n' for i in range(9))
BAD_INPUT = {
    "unknown key": (["train", "caps", "train.max_stepz=3"], 2, "max_steps"),
    "wrong type": (["train", "caps", "train.max_steps=many"], 2, "train.max_steps"),
    "unknown recipe": (["train", "kaps"], 2, "caps"),
    "missing data file": (["train", "caps", "data.path=nowhere.jsonl"], 3, "nowhere.jsonl"),
    "no bad label": (["train", "caps", *TINY, "data.labeled_fraction=0"], 3, "labeled bad"),
    "no target module": (["train", "caps", *TINY, "targets=[nothing]"], 2, "nothing"),
    "missing model": (["train", "caps", "model=./not/here"], 2, "./not/here"),
    "unknown run": (["eval", "nobody"], 2, "nobody"),
    **{
        f"unknown run to {verb}": ([verb, "nobody"], 2, "nobody")
        for verb in ("sample", "report", "plot", "geometry", "recover", "relearn")
    },
    "no whole number": (["sample", "x", "--count", "many"], 2, "'many'"),
    "no step at all": (["recover", "x", "--steps", "0"], 2, "'0'"),
    "no learning rate": (["recover", "x", "--learning-rate", "nan"], 2, "'nan'"),
    "unknown control": (["train", "caps", "controls=[ugly]"], 2, "ugly"),
    "unknown verb": (["dance"], 2, "dance"),
    "no row for a label": (
        ["train", "caps", *TINY, "routing={bad: {good: freeze, bad: update}}"],
        2,
        "unlabeled",
    ),
    "unknown mode": (["train", "caps", "evaluate.modes=[ugly_ablated]"], 2, "ugly"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_with_its_exit_code(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, code, word = BAD_INPUT[name]
    try:
        found = main(arguments)
    except SystemExit as stop:  # argparse
        found = stop.code
    err = capsys.readouterr().err
    assert found == code
    assert word in err and "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def newer_schema(runs):
    path = RunFolder(runs / "routed").results
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"schema_version": 99}))


def no_checkpoint(runs):
    shutil.rmtree(RunFolder(runs / "unrouted").checkpoints)


def other_behavior(runs):
    path = RunFolder(runs / "unrouted").config
    path.write_text(path.read_text().replace("behavior: caps", "behavior: keywords:fox"))


def empty_prompts(runs):
    (runs / "empty.txt").write_text("\n  \n")


BAD_REQUEST = {
    "unknown adapter in a mode": (None, ["eval", "--mode", "ugly_ablated"], 2, "ugly"),
    "unknown adapter in a curve": (None, ["eval", "--scale", "ugly=0,1"], 2, "ugly"),
    "curve without an end": (None, ["eval", "--scale", "bad=0,0.1,..."], 2, "ends with dots"),
    "unknown kind of prompts": (None, ["eval", "--prompts", "prefx"], 3, "held_out_bad or bos"),
    "empty prompt file": (empty_prompts, ["eval", "--prompts", "empty.txt"], 3, "no prompt"),
    "no checkpoint": (no_checkpoint, ["eval", "--mode", "good=1,bad=0.3"], 4, "run unrouted has 0"),
    "newer schema": (newer_schema, ["eval", "--mode", "good=1,bad=0.3"], 3, "newer gradroute"),
    "newer schema to report": (newer_schema, ["report"], 3, "newer gradroute"),
    "two behaviors": (other_behavior, ["report"], 2, "keywords:fox"),
}


@pytest.mark.parametrize("name", BAD_REQUEST)
def test_a_request_that_runs_cannot_meet_is_one_line_and_loses_nothing(
    name, copied, capsys, monkeypatch
):
    monkeypatch.chdir(copied)
    spoil, (verb, *options), code, words = BAD_REQUEST[name]
    if spoil:
        spoil(copied)
    before = {path: path.read_bytes() for path in copied.rglob("eval/*")}
    found, _, err = run(capsys, verb, "routed", "unrouted", "--runs", copied, *options)
    assert found == code, err
    assert words in err and err.count("error:") == 1 and err.count("\n") == 1
    assert {path: path.read_bytes() for path in copied.rglob("eval/*")} == before


def test_a_detector_that_raises_stops_the_evaluation_and_keeps_what_was_measured(
    copied, capsys, tmp_path, monkeypatch
):
    (tmp_path / "fragile.py").write_text(
        "from dataclasses import replace\n"
        "from gradroute.data.behaviors import BEHAVIORS\n"
        "def score(completion, prompt):\n"
        "    raise LookupError('no such word')\n"
        "detector = replace(BEHAVIORS['caps'], name='fragile', score=score)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = RunFolder(copied / "routed").config
    path.write_text(path.read_text().replace("behavior: caps", "behavior: python:fragile.detector"))
    results = RunFolder(copied / "routed").results
    before = results.read_bytes()
    code, _, err = run(capsys, "eval", "routed", "--runs", copied, "--mode", "good=1,bad=0.3")
    assert code == 3, err
    assert all(word in err for word in ("fragile", "LookupError", "no such word", "prefix-0"))
    assert err.count("error:") == 1 and "Traceback" not in err
    assert results.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ('{"text": "a b c", "label": "good"}\n{"text": "x"\n', 3, "rows.jsonl:2"),
        ("", 3, "empty"),
        ('{"text": "a b c", "label": false}\n', 3, "rows.jsonl:1"),
        (
            "".join(f'{{"text": "a b c {i}", "label": "good"}}\n' for i in range(9)),
            3,
            "labeled bad",
        ),
    ],
)
def test_a_bad_data_file_is_named_with_its_line(content, code, words, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    found, _, err = run(capsys, "train", "caps", f"data.path={path}", "--runs", tmp_path / "runs")
    assert found == code
    assert words in err and err.count("error:") == 1


def test_a_hub_model_without_token_names_model_and_places_and_never_the_token(tmp_path):
    (tmp_path / ".env").write_text("HF_TOKEN=hf_canaryCanaryCanaryCanary\nOTHER=secret\n")
    own = ["data.path=rows.jsonl", "data.columns=null", "data.eval_split=null"]
    given = {"arguments": ["train", "gemma3_1b_caps", *own]}
    with serving() as server:
        told = server.start("gradroute.cli.main:main", given, tmp_path)
        assert told.wait() == 3  # the data file is looked for first
        (tmp_path / "rows.jsonl").write_text(
            "".join(json.dumps({"text": f"one two three {i}"}) + "\n" for i in range(60))
        )
        told = server.start("gradroute.cli.main:main", given, tmp_path)
        assert told.wait() == 4
    assert "google/gemma-3-1b-it" in told.said and ".env" in told.said
    assert "Traceback" not in told.said
    left = [path.read_text() for path in tmp_path.rglob("runs/**/*.*")]
    for text in (told.out.read_text(), told.said, *left):
        assert "hf_canary" not in text and "secret" not in text


def test_ctrl_c_saves_and_the_same_command_ends_where_an_uninterrupted_run_does(tmp_path):
    arguments = ["train", "caps", *TINY, "train.max_steps=25", "adapters.bad.dropout=0.1"]
    given = {"arguments": arguments}
    with serving() as server:
        whole = server.start("gradroute.cli.main:main", given, tmp_path / "whole")
        assert whole.wait() == 0, whole.said
        process = server.start("gradroute.cli.main:main", given, tmp_path / "cut")
        metrics = tmp_path / "cut" / "runs" / "caps" / "metrics.jsonl"
        while process.alive and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        process.send(signal.SIGINT)
        assert process.wait() == 75, process.said
        assert "goes on from there" in process.said and "Traceback" not in process.said
        again = server.start("gradroute.cli.main:main", given, tmp_path / "cut")
        assert again.wait() == 0 and "goes on after step" in again.said
    for name in ("metrics.jsonl", "checkpoints/step-000025/manifest.json"):
        cut, uncut = (tmp_path / r / "runs" / "caps" / name for r in ("cut", "whole"))
        assert cut.read_bytes() == uncut.read_bytes()


def test_output_cut_by_the_reader_is_no_traceback(trained):
    shell = f"{sys.executable} -m gradroute schema | head -n 1"
    told = subprocess.run(shell, shell=True, capture_output=True, text=True, check=False)
    assert told.stdout.startswith("{") and "Traceback" not in told.stderr
