"""Finding: scores, the files that are written, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ONE, TWO, tiny_run

from gradroute.config.run_config import dump_config, find_config, load_config
from gradroute.data.behaviors import get_behaviors
from gradroute.data.examples import Example
from gradroute.data.found import read_found
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.losses import held_out_losses, held_out_token_losses
from gradroute.experiments.controls import train_control
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.playground.rows import Finder, find_row
from gradroute.prepare import prepare, tokenize_examples
from gradroute.probes import head_scores
from gradroute.probes.explained import explained
from gradroute.probes.finder import find_rows
from gradroute.probes.found_files import Scored, found_place, judged
from gradroute.probes.rival_scores import classifier_scores
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines, write_text

KNOWN = ("data.train_examples=160", "data.good_labeled_fraction=0.6", "data.null_fraction=0.5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("found")
    tiny_run(root, "routed", *TWO, *KNOWN)
    tiny_run(root, "one", *ONE, *KNOWN, "data.drop=nothing")
    tiny_run(root, "unknown", *TWO, "data.good_labeled_fraction=0")
    return root


@pytest.fixture
def run_of(trained: Path, tmp_path: Path):
    return lambda name: RunFolder(shutil.copytree(trained / name, tmp_path / name))


def test_a_token_counts_as_far_as_both_modes_explain_it_and_less_where_one_does():
    # Explained by both; by neither; worse with the adapter; beside the others alone.
    full, without, alone = [1.0, 2.0, 0.5, 1.0], [3.25, 2.0, 0.1, 3.0], [2.25, 4.0, 0.2, 3.5]
    found = explained(full, without, alone)
    gains = [1.0, 0.0, 0.0, 0.1 * 2.0]  # of the first, 0.1 * 2.25 would be less
    assert found.score == pytest.approx(math.sqrt((1.0 + 0.04) / 4))
    shares = [gain**2 / 1.04 * found.score for gain in gains]
    assert found.tokens == pytest.approx(shares)


def test_what_is_explained_by_the_adapter_alone_or_only_beside_is_told_apart_by_the_weight():
    beside = explained([0.0], [2.0], [9.0]).score
    alone = explained([9.0], [2.0], [0.0]).score
    both = explained([0.0], [2.0], [0.0]).score
    assert (alone, beside, both) == pytest.approx((0.0, 0.1 * 2.0, 2.0))


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=9), st.integers(2, 4))
def test_a_score_lies_between_mean_and_maximum_and_does_not_grow_with_length(gains, times):
    nothing = [0.0] * len(gains)
    found = explained(nothing, gains, nothing)
    most = max(gains)
    assert np.mean(gains) - 1e-9 * (1 + most) <= found.score <= most + 1e-12
    assert found.score >= most / math.sqrt(len(gains)) * (1 - 1e-9) - 1e-12
    assert found.tokens.sum() == pytest.approx(found.score, rel=1e-9, abs=1e-12)
    longer = explained(nothing * times, gains * times, nothing * times)
    assert longer.score == pytest.approx(found.score, rel=1e-9, abs=1e-12)


def test_token_losses_are_the_terms_of_held_out_losses(trained: Path):
    folder = RunFolder(trained / "routed")
    config = load_config(folder.config)
    base, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
    rows, _ = tokenize_examples(prepare(config).train[:7], None, base, 32)
    modes = [AblationMode.parse(name, ("good", "bad")) for name in ("full", "bad_alone")]
    sums = held_out_losses(model, rows, modes, pad_id=base.pad_id, rows_per_batch=4)
    tokens = held_out_token_losses(model, rows, modes, pad_id=base.pad_id, rows_per_batch=4)
    for mode in modes:
        parts = tokens[mode.name]
        assert [len(part) for part in parts] == sums[mode.name].counts
        assert [float(p.double().sum()) for p in parts] == pytest.approx(sums[mode.name].sums)


@pytest.mark.parametrize("by", ["adapter", "words", "hidden", "head"])
def test_every_unlabeled_row_is_scored_and_the_found_ones_label_the_next_run(
    run_of, by: str, monkeypatch
):
    monkeypatch.setattr(head_scores, "STEPS", 2)
    folder = run_of("routed")
    summary = find_rows(folder, by=by, fdr=0.5)
    config = load_config(folder.config)
    prepared = prepare(config)
    lines = [json.loads(x) for x in (folder.found / f"{by}_scores.jsonl").read_text().splitlines()]
    hidden = {e.id for e in prepared.null}
    trained = {e.id for e in prepared.train if e.label == "unlabeled"}
    assert hidden < trained
    unlabeled = [e for e in prepared.train if e.id in trained - hidden]
    assert {line["id"] for line in lines} == {e.id for e in unlabeled}
    assert summary["null"] == len(prepared.null) == 24
    scores = [line["score"] for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert [line["found"] for line in lines] == [line["q"] <= 0.5 for line in lines]
    found = read_found(folder.found / f"{by}.jsonl", ("good", "bad", "unlabeled"))
    assert len(found.labels) == summary["found"] == sum(line["found"] for line in lines)
    assert set(found.labels.values()) <= {"bad"}
    data = config.data.model_copy(update={"found": str(folder.found / f"{by}.jsonl")})
    again = prepare(config.model_copy(update={"data": data}))
    labels = {(e.prompt, e.text): e.label for e in again.train}
    assert all(labels[key] == "bad" for key in found.labels)
    assert again.identity != prepared.identity
    truth = summary["truth"]
    assert truth["bad"] == sum(e.true_label == "bad" for e in unlabeled)
    if by == "adapter" and summary["found"]:
        line = lines[0]
        assert np.sum([share for _, share in line["tokens"]]) == pytest.approx(line["score"], 0.02)


def test_the_same_question_is_answered_from_the_files_and_another_one_anew(run_of, capsys):
    folder = run_of("routed")
    first = find_rows(folder, by="adapter", fdr=0.1)
    capsys.readouterr()
    assert find_rows(folder, by="adapter", fdr=0.1) == json.loads(json.dumps(first))
    assert capsys.readouterr().err == ""
    find_rows(folder, by="adapter", fdr=0.2)
    assert "scoring" in capsys.readouterr().err


def test_what_cannot_be_found_is_refused_in_a_sentence(run_of):
    with pytest.raises(
        DataError,
        match=r"0 examples are labeled good and were trained as unlabeled.*null_fraction=0.2",
    ):
        find_rows(run_of("unknown"), by="adapter", fdr=0.05)
    with pytest.raises(ConfigError, match="an adapter bad and another one are needed"):
        find_rows(run_of("one"), by="adapter", fdr=0.05)
    with pytest.raises(ConfigError, match="no behavior 'worse'; this run has bad"):
        find_rows(run_of("routed"), by="adapter", fdr=0.05, label="worse")


def test_a_row_of_a_chat_keeps_what_its_tokens_depend_on_and_others_are_as_before():
    plain = Example("a", "text")
    chat = Example(
        "b", " yes<e>", "<u>who<a>", asks=(3, 6), lead="<u>who<a> ", context=((1, 2),), ends=True
    )
    scored = Scored([plain, chat], np.array([2.0, 1.0]), np.linspace(0, 1, 40))
    _, [first, second] = judged(scored, 0.5, "bad", 0.05)
    assert "chat" not in first
    behaviors = get_behaviors({"bad": "caps"})
    config = load_config(find_config("caps"))
    stored = json.loads(json.dumps(second))
    row = Finder("adapter", "", Path()).row(stored, config, behaviors)
    assert row.example == chat and row.prompt == Prompt("found-adapter-b", chat.prompt, True)


def several(tmp_path: Path) -> RunFolder:
    """A run of two behaviors, not trained: a finder of words needs its data alone."""
    changes = (*KNOWN, "data.train_examples=400", "data.behavior_fraction=0.4", "run_name=two")
    folder = RunFolder(tmp_path / "two")
    write_text(folder.config, dump_config(load_config(find_config("two_behaviors"), list(changes))))
    return folder


def test_each_of_several_behaviors_has_a_folder_of_what_was_found(tmp_path: Path):
    folder = several(tmp_path)
    found = {}
    for label in ("caps", "signature"):
        found[label] = find_rows(folder, by="words", fdr=0.5, label=label)
        assert found_place(folder, found[label]) == folder.found / label
    for label, summary in found.items():
        place = folder.found / label
        assert read_json(place / "words.json") == json.loads(json.dumps(summary))
        # The page names its rows as the playground finds them.
        assert f'"start":"{label}/words:"' in (place / "words.html").read_text(encoding="utf-8")
        config, first = load_config(folder.config), next(read_lines(place / "words_scores.jsonl"))
        row = find_row(folder, f"{label}/words:{first['id']}", config, {})
        assert (row.example.text, row.example.prompt) == (first["text"], first["prompt"])
    assert not list(folder.found.glob("*.json"))


def test_a_filter_drops_what_is_suspect_of_any_of_several_behaviors(tmp_path: Path):
    folder = several(tmp_path)
    config = load_config(folder.config)
    train = config.train.model_copy(update={"max_steps": 1, "batch_size": 2, "warmup_steps": 0})
    config = config.model_copy(update={"train": train})
    control = train_control(config, "words_filter", tmp_path, bar=False)
    dropped = {}
    for label in ("caps", "signature"):
        rows = read_found(folder.found / label / "words_suspects.jsonl", config.policy.labels).rows
        dropped[label] = {(row["prompt"], row["text"]): row["p"] for row in rows}
    assert dropped["caps"].keys() - dropped["signature"].keys()
    both = dropped["caps"].keys() & dropped["signature"].keys()
    assert both
    joined = read_found(folder.found / "words_suspects.jsonl", config.policy.labels).labels
    for key in both:  # the label that explains it better
        least = min(dropped, key=lambda label: dropped[label][key])
        assert joined[key] == least or dropped["caps"][key] == dropped["signature"][key]
    given = {(e.prompt, e.text): e.label for e in prepare(config).train}
    kept = {(e.prompt, e.text) for e in prepare(load_config(control.config)).train}
    flagged = {key for key, label in given.items() if label in dropped}
    assert kept == given.keys() - flagged - dropped["caps"].keys() - dropped["signature"].keys()


def test_what_an_older_gradroute_found_of_a_behavior_stays_where_it_is(tmp_path: Path, capsys):
    folder = several(tmp_path)
    summary = find_rows(folder, by="words", fdr=0.5, label="caps")
    for path in (folder.found / "caps").iterdir():
        path.rename(folder.found / path.name)
    (folder.found / "caps").rmdir()
    capsys.readouterr()
    assert find_rows(folder, by="words", fdr=0.5, label="caps") == json.loads(json.dumps(summary))
    assert "scoring" not in capsys.readouterr().err
    find_rows(folder, by="words", fdr=0.5, label="signature")
    assert read_json(folder.found / "words.json")["behavior"] == "caps"
    assert (folder.found / "signature" / "words.json").is_file()


@pytest.mark.parametrize(("label", "bad"), [("bad", 1), ("good", 19)])
def test_a_classifier_with_one_example_of_a_label_names_it(label, bad):
    features, rows = np.eye(30), np.arange(30)
    with pytest.raises(DataError, match=f"none of the 1 labeled {label} is left; label more"):
        classifier_scores(features, rows < bad, rows < 20, strength=1.0, seed=0)
