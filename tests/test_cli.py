"""The verbs as a user meets them: one flow from start to end, and one line for each wrong input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gradroute.cli import main
from gradroute.files import read_lines
from gradroute.folders import RunFolder

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


def gradroute(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gradroute", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=400,
        check=False,
    )


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


def test_train_and_eval_leave_the_files_the_readme_names(trained):
    assert {path.name for path in (trained / "routed").iterdir()} == {
        "config.yaml",
        "manifest.json",
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


def test_sample_prints_every_asked_mode_for_every_prompt(trained, capsys):
    code, out, _ = run(
        capsys, "sample", "routed", "--runs", trained, "--mode", "full", "--mode",
        "good=1,bad=0.5", "--prompt", "THE OLD FOX", "--prompt", "once upon",
    )  # fmt: skip
    assert code == 0
    assert out.count("good=1,bad=0.5") == 2 and "THE OLD FOX" in out and "once upon" in out


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
    assert "seed: 0 -> 5" in err and "--if-exists new" in err


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
    "no bad label": (["train", "caps", *TINY, "data.labeled_fraction=0"], 3, "labelled bad"),
    "no target module": (["train", "caps", *TINY, "targets=[nothing]"], 2, "nothing"),
    "missing model": (["train", "caps", "model=./not/here"], 2, "./not/here"),
    "unknown run": (["eval", "nobody"], 2, "nobody"),
    "unknown run to sample": (["sample", "nobody"], 2, "nobody"),
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


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ('{"text": "a b c", "label": "good"}\n{"text": "x"\n', 3, "rows.jsonl:2"),
        ("", 3, "empty"),
        ('{"text": "a b c", "label": false}\n', 3, "rows.jsonl:1"),
        (
            "".join(f'{{"text": "a b c {i}", "label": "good"}}\n' for i in range(9)),
            3,
            "labelled bad",
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
    told = gradroute("train", "gemma3_1b_caps", "data.path=rows.jsonl", cwd=tmp_path)
    assert told.returncode == 3  # the data file is looked for first
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"one two three {i}"}) + "\n" for i in range(60))
    )
    told = gradroute("train", "gemma3_1b_caps", "data.path=rows.jsonl", cwd=tmp_path)
    assert told.returncode == 4
    assert "google/gemma-3-1b-it" in told.stderr and ".env" in told.stderr
    assert "Traceback" not in told.stderr
    for text in (told.stdout, told.stderr, *(p.read_text() for p in tmp_path.rglob("runs/**/*.*"))):
        assert "hf_canary" not in text and "secret" not in text


def test_ctrl_c_saves_and_the_same_command_ends_where_an_uninterrupted_run_does(tmp_path):
    arguments = ["train", "caps", *TINY, "train.max_steps=25", "adapters.bad.dropout=0.1"]
    whole = gradroute(*arguments, "--runs", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    runs = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "gradroute", *arguments, "--runs", str(runs)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = runs / "caps" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert "goes on from there" in err and "Traceback" not in err
    again = gradroute(*arguments, "--runs", runs)
    assert again.returncode == 0 and "goes on after step" in again.stderr
    for name in ("metrics.jsonl", "checkpoints/step-000025/manifest.json"):
        cut, uncut = (tmp_path / r / "caps" / name for r in ("cut", "whole"))
        assert cut.read_bytes() == uncut.read_bytes()


def test_help_and_schema_answer_without_torch():
    script = (
        "import sys; from gradroute.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    for arguments in (["--help"], ["train", "--help"], ["schema"], ["--version"]):
        told = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr


def test_output_cut_by_the_reader_is_no_traceback(trained):
    shell = f"{sys.executable} -m gradroute schema | head -n 1"
    told = subprocess.run(shell, shell=True, capture_output=True, text=True, check=False)
    assert told.stdout.startswith("{") and "Traceback" not in told.stderr
