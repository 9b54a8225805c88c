"""The same config gives the same bits in every folder and process, and for any batch of rows."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_runs import TINY, TWO, tiny_run

from gradroute.evaluate.evaluator import evaluate_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines
from torture.forks import serving
from torture.runs import finals

AGAIN = "import sys; from gradroute.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_two_processes_with_other_hash_seeds_locales_and_folders_end_with_the_same_bits(tmp_path):
    """One is forked, and has the hash seed and locale of this machine, the other has its own."""
    overrides = [*TINY, *TWO, "adapters.good.dropout=0.2", "run_name=x"]
    arguments = ["train", "caps", *overrides, "--audit"]
    elsewhere = tmp_path / "some" / "where else"
    elsewhere.mkdir(parents=True)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "tr_TR.UTF-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", AGAIN, *arguments],
        cwd=elsewhere,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with serving() as server:
        child = server.start("gradroute.cli.main:main", {"arguments": arguments}, tmp_path / "here")
        child.wait()
    for said in (process.communicate()[1], child.said):
        assert said.rstrip().endswith("every route as the table says.")
    runs = [RunFolder(tmp_path / place / "runs" / "x") for place in ("here", "some/where else")]
    for run in runs:  # in this process, for its imports are done
        evaluate_run(run)
    one, other = (finals(run.path) for run in runs)
    assert one == other
    assert {"good/adapter_model.safetensors", "optimizer.safetensors"} <= one.keys()
    assert {"metrics.jsonl", "eval/results.json", "eval/samples.jsonl"} <= one.keys()
    assert runs[0].audit.read_bytes() == runs[1].audit.read_bytes()
    labels = [{k: read_json(run.manifest)[k] for k in ("examples", "labels")} for run in runs]
    assert labels[0] == labels[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs"), "x", *TWO, "evaluate.temperature=0")


def test_what_is_measured_does_not_depend_on_how_many_rows_run_at_once(trained, tmp_path):
    found = []
    for rows in (1, 12, 320):
        run = RunFolder(tmp_path / str(rows) / "x")
        shutil.copytree(trained.path, run.path)
        text = run.config.read_text(encoding="utf-8")
        assert "batch_rows: 320" in text
        run.config.write_text(text.replace("batch_rows: 320", f"batch_rows: {rows}"))
        evaluate_run(run)
        found.append(run)
    rates, losses = zip(*map(measured, found), strict=True)
    assert rates[0] == rates[1] == rates[2]
    completions = [sorted(map(json.dumps, read_lines(run.samples))) for run in found]
    assert completions[0] == completions[1] == completions[2]
    for other in losses[1:]:
        assert other.keys() == losses[0].keys()
        assert list(other.values()) == pytest.approx(list(losses[0].values()), rel=1e-5)


def measured(run: RunFolder) -> tuple[dict, dict]:
    """Counts exactly, and losses, by what and how they were measured."""
    rates, losses = {}, {}
    for row in read_json(run.results)["results"]:
        cell = (row["metric"], row["dataset"], row["mode"])
        if row["metric"] == "behavior_rate":
            rates[cell] = (row["value"], row["n"])
        if row["metric"] == "held_out_loss":
            losses[cell] = row["value"]
    assert len(rates) >= 5 and len(losses) >= 10
    return rates, losses
