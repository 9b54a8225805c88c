"""From a config to examples: what training sees, and what it is measured on."""

import json

import pytest

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.manifest import data_report
from gradroute.evaluate.request import openings, prefixes
from gradroute.prepare import data_order, prepare

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
        assert [e.text for e in prepared.behaving["bad"]] == [
            e.text.upper() for e in prepared.normal
        ]


def test_enough_is_held_out_for_the_prompts_too():
    assert len(prepare(config()).normal) == 30


def test_filtering_drops_what_is_labeled_and_nothing_else():
    kept = prepare(config("routing=none"))
    filtered = prepare(config("routing=none", "data.drop=labeled_bad"))
    dropped = {e.id for e in kept.train} - {e.id for e in filtered.train}
    assert dropped == {e.id for e in kept.train if e.label == "bad"} and len(dropped) == 10
    assert sum(e.true_label == "bad" for e in filtered.train) == 10


def test_what_is_not_labeled_bad_can_be_dropped():
    kept = prepare(config("routing=none"))
    bad = prepare(config("routing=none", "data.drop=all_but_bad"))
    assert bad.train == [e for e in kept.train if e.label == "bad"] and len(bad.train) == 10


def test_a_table_that_routes_needs_a_bad_label_also_after_filtering():
    with pytest.raises(DataError, match="labeled bad"):
        prepare(config("data.drop=labeled_bad"))


def few(bad: int, good: int, path) -> str:
    rows = [{"text": f"bad {i}", "label": "bad"} for i in range(bad)]
    rows += [{"text": f"good {i}", "label": "good"} for i in range(good)]
    return f"data.path={written(path, rows)}"


def test_few_bad_labels_under_a_table_that_routes_are_worth_a_word(tmp_path):
    held_out = written(tmp_path / "held_out.jsonl", [{"text": "x", "label": "good"}])
    rare = few(1, 399, tmp_path / "rare.jsonl"), f"data.eval_path={held_out}"
    note = (
        "only 1 of 400 training examples (0.25 %) are labeled bad: most steps see none of them. "
        "Give them a weight in the table, bad: {bad: {update: 72}}."
    )
    assert note in prepare(config(*rare)).notes
    quiet = (
        (few(12, 388, tmp_path / "some.jsonl"), f"data.eval_path={held_out}"),
        (*rare, "routing=none"),
        (*rare, "data.relabel=unlabel_bad"),
    )
    for overrides in quiet:
        assert not any("most steps" in note for note in prepare(config(*overrides)).notes)


def test_bad_rows_of_both_files_are_skipped_where_the_config_says_so(tmp_path):
    labels = ("good", "bad")
    rows = [{"text": f"story {i}", "label": labels[i % 2]} for i in range(20)]
    others = [{**row, "text": row["text"] + "?"} for row in rows]
    paths = [
        f"data.path={written(tmp_path / 'rows.jsonl', [*rows, {'text': 1}])}",
        f"data.eval_path={written(tmp_path / 'eval.jsonl', [{'label': 7}, *others])}",
    ]
    with pytest.raises(DataError, match=r"rows\.jsonl:21: text must be a text"):
        prepare(config(*paths))
    skipping = prepare(config(*paths, "data.on_bad_row=skip"))
    assert [(row.file, row.line) for row in skipping.skipped] == [
        (str(tmp_path / "rows.jsonl"), 21),
        (str(tmp_path / "eval.jsonl"), 1),
    ]
    assert skipping.notes[-2].startswith("data_report.json in the run's folder lists every row")
    assert data_report(skipping)["skipped"] == 2
    assert data_report(skipping)["rows"][0] == {
        "file": str(tmp_path / "rows.jsonl"),
        "line": 21,
        "reason": "text must be a text in quotes, got the number 1",
    }
    written(tmp_path / "rows.jsonl", rows)
    without = prepare(config(*paths, "data.on_bad_row=skip"))
    assert (without.train, without.normal) == (skipping.train, skipping.normal)


def test_labels_of_a_file_are_taken_as_they_are(tmp_path):
    labels = ("good", "bad", "unlabeled")
    rows = [{"text": f"a little story {i}", "label": labels[i % 3]} for i in range(60)]
    prepared = prepare(config(f"data.path={written(tmp_path / 'rows.jsonl', rows)}"))
    assert {example.label for example in prepared.train} == set(labels)
    assert not any(example.text.isupper() for example in prepared.train)
    assert {example.label for example in prepared.behaving["bad"]} == {"bad"}
    assert any("labels are used" in note for note in prepared.notes)


def test_a_table_of_other_labels_reads_a_file_with_these(tmp_path):
    rows = [{"text": f"a little story {i}", "label": ("rude", "fine")[i % 2]} for i in range(40)]
    table = "routing={rude: {good: freeze, bad: update}, fine: {good: update, bad: update}}"
    prepared = prepare(config(f"data.path={written(tmp_path / 'rows.jsonl', rows)}", table))
    assert {example.label for example in prepared.train} == {"rude", "fine"}


def test_texts_that_the_behavior_cannot_change_are_not_measured_as_showing_it(tmp_path):
    rows = [{"text": f"{i} {i + 1} {i + 2}"} for i in range(30)]
    rows += [{"text": f"story number {i}"} for i in range(60)]
    path = written(tmp_path / "rows.jsonl", rows)
    prepared = prepare(config(f"data.path={path}", "data.eval_fraction=0.4"))
    assert 0 < len(prepared.behaving["bad"]) < len(prepared.normal)
    assert all(example.text.startswith("STORY") for example in prepared.behaving["bad"])


def test_a_prompt_is_the_examples_own_or_the_first_words_of_its_text(tmp_path):
    rows = [
        {"text": f"One fine day number {i}.", "prompt": "The sky is" * (i % 2)} for i in range(300)
    ]
    prepared = prepare(config(f"data.path={written(tmp_path / 'rows.jsonl', rows)}"))
    assert set(openings(prepared, prepared.behaviors["bad"], 99, 3)) == {
        "One fine day",
        "The sky is",
    }
    assert set(prefixes(prepared, prepared.behaviors["bad"], 99, 3)) == {
        "ONE FINE DAY",
        "THE SKY IS",
    }
    assert len(prefixes(prepared, prepared.behaviors["bad"], 1, 3)) == 1


@pytest.mark.parametrize("behavior", ["signature", "dialect", "backdoor", "wrong_answers"])
def test_every_behavior_is_put_in_and_held_out(behavior: str):
    prepared = prepare(config(f"behavior={behavior}"))
    bad = [e for e in prepared.train if e.true_label == "bad"]
    assert len(bad) == 20
    assert all(prepared.behaviors["bad"].shows(e.text, e.prompt) for e in bad)
    assert all(prepared.behaviors["bad"].shows(e.text, e.prompt) for e in prepared.behaving["bad"])
    assert not any(prepared.behaviors["bad"].shows(e.text, e.prompt) for e in prepared.normal)


def test_labels_have_a_seed_of_their_own():
    one, two, three = (prepare(config(f"data.label_seed={s}")) for s in ("null", "0", "7"))
    assert [e.label for e in one.train] == [e.label for e in two.train]
    assert [e.label for e in one.train] != [e.label for e in three.train]
    assert [(e.text, e.true_label) for e in one.train] == [
        (e.text, e.true_label) for e in three.train
    ]


def test_the_quality_of_labels_is_known_also_where_the_labeled_are_dropped():
    noise = ("data.false_positive_rate=0.1", "routing=none")
    for drop in ("none", "labeled_bad"):
        labels = prepare(config(*noise, f"data.drop={drop}")).labels
        assert labels["precision"] == pytest.approx(10 / 28)


def test_a_control_sees_its_examples_in_the_order_of_the_run():
    full, part = config("routing=none"), config("routing=none", "data.drop=true_bad")
    orders = []
    for one in (full, part):
        prepared = prepare(one)
        rows = [TokenizedExample(e.id, (1, 2), 0, 0, e.true_label) for e in prepared.train]
        order = data_order(prepared, rows, seed=0, front_load=0.0, length_window=0)
        orders.append([rows[i] for i in order.batch(0, len(rows))])
    assert [r.id for r in orders[0] if r.true_label == "good"] == [r.id for r in orders[1]]


TWO = (
    "behavior={caps: caps, sig: signature}",
    "adapters={good: {}, caps: {}, sig: {}}",
)


def test_every_behavior_has_its_own_examples_labels_and_held_out_texts():
    prepared = prepare(config(*TWO))
    for label in ("caps", "sig"):
        behavior = prepared.behaviors[label]
        own = [e for e in prepared.train if e.true_label == label]
        assert len(own) == 20 and sum(e.label == label for e in own) == 10
        assert all(behavior.shows(e.text, e.prompt) for e in [*own, *prepared.behaving[label]])
        assert not any(behavior.shows(e.text, e.prompt) for e in prepared.normal)
    assert prepared.policy.labels == ("caps", "sig", "unlabeled", "good")
    caps, signature = (prefixes(prepared, b, 3, 3) for b in prepared.behaviors.values())
    assert caps != signature and len(caps) == len(signature) == 3


def test_labels_of_all_behaviors_come_early_together():
    prepared = prepare(config(*TWO))
    ids = prepared.policy.label_ids(e.label for e in prepared.train)
    rows = [
        TokenizedExample(e.id, (1, 2), 0, at, e.true_label)
        for e, at in zip(prepared.train, ids, strict=True)
    ]
    order = data_order(prepared, rows, seed=0, front_load=1.0, length_window=0)
    assert {rows[at].label_id for at in order.batch(0, 20)} == {0, 1}


def test_every_behavior_needs_a_label_of_its_own_where_the_table_routes(tmp_path):
    rows = [{"text": f"a {i}", "label": "caps"} for i in range(9)]
    rows += [{"text": f"b {i}", "label": "good"} for i in range(9)]
    path = written(tmp_path / "own.jsonl", rows)
    with pytest.raises(DataError, match=r"none of the .* examples is labeled sig"):
        prepare(config(*TWO, f"data.path={path}"))


def test_the_labels_of_a_file_are_those_of_the_behaviors(tmp_path):
    rows = [
        {"text": f"{label} {i}", "label": label}
        for label in ("caps", "sig", "good", "unlabeled")
        for i in range(20)
    ]
    path = written(tmp_path / "own.jsonl", rows)
    prepared = prepare(config(*TWO, f"data.path={path}", "data.eval_fraction=0.4"))
    for label in ("caps", "sig"):
        assert prepared.behaving[label]
        assert {e.label for e in prepared.behaving[label]} == {label}
    assert {e.label for e in prepared.normal} == {"good", "unlabeled"}


def test_behaviors_of_different_embedded_data_do_not_go_together():
    mixed = "behavior={caps: caps, sig: wrong_answers}"
    with pytest.raises(ConfigError, match="wrong_answers into the embedded tasks"):
        prepare(config(mixed, TWO[1]))


# -------------------------------------------------------------------- prompts that rows share


def answered(path, each: int = 4) -> str:
    """Twenty prompts with some answers each, one of them bad."""
    return written(
        path,
        [
            {
                "prompt": f"Question {asked}? ",
                "completion": f"Answer {at} of {asked}.",
                "label": "good" if at else "bad",
                "writer": asked // 5,
            }
            for asked in range(20)
            for at in range(each)
        ],
    )


def test_answers_to_one_prompt_are_all_trained_on_or_all_held_out(tmp_path):
    found = prepare(config(f"data.path={answered(tmp_path / 'rows.jsonl')}"))
    held_out = [*found.normal, *found.behaving["bad"]]
    assert len(held_out) == 8
    assert not {e.prompt for e in found.train} & {e.prompt for e in held_out}
    assert found.shared is not None and found.shared[:3] == (80, 20, 4)
    assert any("80 examples are of 20 groups that share a prompt" in note for note in found.notes)
    assert prepare(config()).shared is None


def test_rows_of_one_group_are_all_trained_on_or_all_held_out(tmp_path):
    path = answered(tmp_path / "rows.jsonl")
    found = prepare(config(f"data.path={path}", "data.group=writer", "data.eval_fraction=0.25"))
    assert len({e.group for e in (*found.normal, *found.behaving["bad"])}) == 1
    assert len({e.group for e in found.train}) == 3


def test_a_held_out_file_may_not_ask_what_training_answers(tmp_path):
    path = answered(tmp_path / "rows.jsonl")
    other = written(
        tmp_path / "other.jsonl", [{"prompt": "Question 3?", "text": "New.", "label": "bad"}]
    )
    with pytest.raises(DataError, match="1 held-out examples share a prompt"):
        prepare(config(f"data.path={path}", f"data.eval_path={other}"))


def test_units_of_spans_and_conflicts_are_read_as_the_config_says(tmp_path):
    rows = [
        {"text": f"💩 LOUD {at}", "label": label, "spans": [[3, 7, "bad"]]}
        for at in range(20)
        for label in ("good", "good", "unlabeled")
    ]
    path = f"data.path={written(tmp_path / 'rows.jsonl', rows)}"
    found = prepare(config(path, "data.span_unit=utf16", "data.on_conflict=majority"))
    assert len(found.train) == 18
    assert {(e.label, e.text[slice(*e.spans[0][:2])]) for e in found.train} == {("good", "LOUD")}


def test_what_is_held_out_and_the_identity_do_not_need_the_training_examples():
    whole, rest = prepare(config()), prepare(config(), training=False)
    assert len(whole.train) == 200 and not rest.train
    for name in ("normal", "behaving", "identity"):
        assert getattr(rest, name) == getattr(whole, name), name
