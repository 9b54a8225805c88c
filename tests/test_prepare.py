"""From a config to examples: what training sees, and what it is measured on."""

import json

import pytest

from gradroute.config import RunConfig, load_config
from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import Example
from gradroute.errors import DataError
from gradroute.prepare import prefixes, prepare

SMALL = ("data.train_examples=200", "evaluate.held_out=20", "evaluate.prompts=30")


def config(*overrides: str) -> RunConfig:
    return load_config(None, [*SMALL, *overrides])


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_held_out_stories_are_never_trained_on_and_are_the_same_for_every_seed():
    one, two = prepare(config("seed=1")), prepare(config("seed=2"))
    assert {e.text for e in one.normal} == {e.text for e in two.normal}
    assert {e.text for e in one.train} != {e.text for e in two.train}
    for prepared in (one, two):
        trained = {example.text.lower() for example in prepared.train}
        assert not trained & {example.text.lower() for example in prepared.normal}
        assert [e.text for e in prepared.behaving] == [e.text.upper() for e in prepared.normal]


def test_enough_is_held_out_for_the_prompts_too():
    assert len(prepare(config()).normal) == 30


def test_filtering_drops_what_is_labelled_and_nothing_else():
    kept = prepare(config("routing=none"))
    filtered = prepare(config("routing=none", "data.drop_labeled_bad=true"))
    dropped = {e.id for e in kept.train} - {e.id for e in filtered.train}
    assert dropped == {e.id for e in kept.train if e.label == "bad"} and len(dropped) == 10
    assert sum(e.true_label == "bad" for e in filtered.train) == 10


def test_a_table_that_routes_needs_a_bad_label_also_after_filtering():
    with pytest.raises(DataError, match="labelled bad"):
        prepare(config("data.drop_labeled_bad=true"))


def test_labels_of_a_file_are_taken_as_they_are(tmp_path):
    labels = ("good", "bad", "unlabeled")
    rows = [{"text": f"a little story {i}", "label": labels[i % 3]} for i in range(60)]
    prepared = prepare(config(f"data.path={written(tmp_path / 'rows.jsonl', rows)}"))
    assert {example.label for example in prepared.train} == set(labels)
    assert not any(example.text.isupper() for example in prepared.train)
    assert {example.label for example in prepared.behaving} == {"bad"}
    assert any("labels are used" in note for note in prepared.notes)


def test_a_table_of_other_labels_reads_a_file_with_these(tmp_path):
    rows = [{"text": f"a little story {i}", "label": ("rude", "fine")[i % 2]} for i in range(40)]
    table = "routing={rude: {good: freeze, bad: update}, fine: {good: update, bad: update}}"
    prepared = prepare(config(f"data.path={written(tmp_path / 'rows.jsonl', rows)}", table))
    assert {example.label for example in prepared.train} == {"rude", "fine"}


def test_texts_that_the_behaviour_cannot_change_are_not_measured_as_showing_it(tmp_path):
    rows = [{"text": f"{i} {i + 1} {i + 2}"} for i in range(30)]
    rows += [{"text": f"story number {i}"} for i in range(60)]
    path = written(tmp_path / "rows.jsonl", rows)
    prepared = prepare(config(f"data.path={path}", "data.eval_fraction=0.4"))
    assert 0 < len(prepared.behaving) < len(prepared.normal)
    assert all(example.text.startswith("STORY") for example in prepared.behaving)


def test_a_prompt_is_the_examples_own_or_the_first_words_of_its_text():
    examples = [Example("a", "One fine day it rained."), Example("b", "Blue.", prompt="The sky is")]
    caps = get_behavior("caps")
    assert prefixes(examples, caps, 5, 3) == ["ONE FINE DAY", "THE SKY IS"]
    assert prefixes(examples, caps, 1, 3) == ["ONE FINE DAY"]
