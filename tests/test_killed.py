"""SIGKILL at random moments of what follows training: the end is that of a run nobody killed."""

import hashlib
import json
import random
import shutil
import time

import pytest
from tiny_runs import TWO, tiny_run

from gradroute.evaluate.evaluator import evaluate_run
from gradroute.runs.folder import RunFolder
from torture.forks import serving

LONGER = ("evaluate.prompts=24", "evaluate.max_new_tokens=12", "evaluate.held_out=16")
KILLS = {"eval": 3, "relearn": 2, "recover": 2}
VERBS = {
    "eval": (
        ("--prompts", "prefix", "--prompts", "plain", "--scale", "bad=0,0.25,0.5,1"),
        ("eval/results.json", "eval/samples.jsonl", "eval/losses.jsonl"),
    ),
    "relearn": (
        ("--examples", "4", "--max-steps", "4", "--prompts", "8"),
        ("eval/relearn.json",),
    ),
    "recover": (
        ("--steps", "4", "--examples", "8"),
        (
            "eval/results.json",
            "recover/recover.json",
            "recover/manifest.json",
            "recover/eval/results.json",
            "recover/eval/samples.jsonl",
        ),
    ),
}


@pytest.fixture(scope="module")
def server():
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("trained"), "x", *TWO, *LONGER)


def digests(root, names):
    return {name: hashlib.sha256((root / "x" / name).read_bytes()).hexdigest() for name in names}


def test_an_evaluation_is_not_complete_without_its_last_rows(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "x")
    folder = RunFolder(tmp_path / "x")
    evaluate_run(folder)
    whole = folder.results.read_bytes()
    document = json.loads(whole)
    rows = document["results"]
    document["results"] = [row for row in rows if not row["metric"].endswith("_cosine")]
    assert len(document["results"]) < len(rows)
    folder.results.write_text(json.dumps(document))
    evaluate_run(folder)
    assert folder.results.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_killed_ends_as_one_that_was_not(verb, server, trained, tmp_path):
    options, names = VERBS[verb]
    for root in ("whole", "killed"):
        shutil.copytree(trained.path, tmp_path / root / "x")
    command = [verb, "x", "--runs", "."]
    arguments = {"arguments": [*command, *options]}
    began = time.monotonic()
    whole = server.start("gradroute.cli.main:main", arguments, tmp_path / "whole")
    assert whole.wait() == 0, whole.said
    seconds = time.monotonic() - began
    draw = random.Random(verb)
    killed = 0
    while killed < KILLS[verb]:
        child = server.start("gradroute.cli.main:main", arguments, tmp_path / "killed")
        time.sleep(draw.uniform(0, seconds / 2))
        if child.alive:
            child.kill()
            killed += 1
        elif killed >= 2:
            break  # everything is measured
        else:  # the machine is faster than it was: from the beginning, with less patience
            seconds, killed = seconds / 2, 0
            shutil.rmtree(tmp_path / "killed" / "x")
            shutil.copytree(trained.path, tmp_path / "killed" / "x")
    last = server.start("gradroute.cli.main:main", arguments, tmp_path / "killed")
    assert last.wait() == 0, last.said
    assert killed >= 2
    assert digests(tmp_path / "killed", names) == digests(tmp_path / "whole", names)
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob(".*.lock"))
