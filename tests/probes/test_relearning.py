"""Relearning of finished runs: the same attack for each, once, and never on what is measured."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
from tiny_runs import ONE, TWO, UNROUTED, tiny_run

from gradroute.config.run_config import load_config
from gradroute.data.behaviors import get_behavior
from gradroute.errors import DataError, MachineError
from gradroute.prepare import embedded, prepare
from gradroute.probes import relearning
from gradroute.probes.attack_examples import ATTACK_SEED, attack_examples
from gradroute.probes.relearning import FULL_RATES, relearn_runs
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, write_json

ASKED: dict[str, Any] = {"examples": 8, "max_steps": 3, "every": 2, "prompts": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("attacked")
    tiny_run(root, "routed", *TWO)
    tiny_run(root, "unrouted", *UNROUTED)
    tiny_run(root, "filter", *ONE, "adapters.good.rank=5")
    return root


@pytest.fixture
def runs(trained, tmp_path):
    return [
        RunFolder(shutil.copytree(trained / name, tmp_path / name))
        for name in ("routed", "unrouted", "filter")
    ]


def test_every_run_is_attacked_as_it_ships_at_two_learning_rates(runs, capsys):
    relearn_runs(runs, **ASKED)
    out = capsys.readouterr().out
    documents = {folder.name: read_json(folder.relearn) for folder in runs}
    kept = {name: document["kept_mode"] for name, document in documents.items()}
    assert kept == {"routed": "bad_ablated", "unrouted": "full", "filter": "full"}
    own = load_config(runs[0].config).train.learning_rate
    for name, document in documents.items():
        assert name in out
        assert document["behavior"] == "caps" and document["threshold"] == 0.5
        assert document["rank"] == 5 and document["examples"] == 8
        assert [curve["learning_rate"] for curve in document["curves"]] == [own, own / 3]
        for curve in document["curves"]:
            points = curve["points"]
            assert [point["step"] for point in points] == [0, 2, 3][: len(points)]
            for point in points:
                assert point["n"] == 3 and point["rate"] == point["shown"] / 3
                assert point["lower"] <= point["rate"] <= point["upper"]
                assert 0 < point["normal_loss"] < 20
    # The fresh adapter begins at 0: what is measured first does not depend on the learning rate.
    for document in documents.values():
        one, two = (curve["points"][0] for curve in document["curves"])
        assert one == two
    settings = {name: dict(document["settings"]) for name, document in documents.items()}
    for own in settings.values():
        del own["checkpoint"], own["kept_mode"]
    assert settings["routed"] == settings["unrouted"] == settings["filter"]


def test_curves_that_are_there_are_kept_and_an_interrupted_attack_goes_on(
    runs, capsys, monkeypatch
):
    folder = runs[0]
    relearn_runs([folder], **ASKED)
    whole = read_json(folder.relearn)
    before = folder.relearn.stat().st_mtime_ns
    capsys.readouterr()
    relearn_runs([folder], **ASKED)
    assert "relearning from" not in capsys.readouterr().err
    assert folder.relearn.stat().st_mtime_ns == before

    folder.relearn.unlink()
    real, calls = relearning.relearn, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(relearning, "relearn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        relearn_runs([folder], **ASKED)
    assert len(read_json(folder.relearn)["curves"]) == 1
    capsys.readouterr()
    relearn_runs([folder], **ASKED)
    assert capsys.readouterr().err.count("relearning from") == 1
    assert read_json(folder.relearn)["curves"] == whole["curves"]


def test_other_settings_and_other_weights_are_measured_anew_and_said(runs, capsys):
    folder = runs[0]
    relearn_runs([folder], **{**ASKED, "max_steps": 1})
    assert read_json(folder.relearn)["curves"][0]["max_steps"] == 1
    relearn_runs([folder], **ASKED)
    assert "is replaced" in capsys.readouterr().err
    assert read_json(folder.relearn)["curves"][0]["max_steps"] == 3
    document = read_json(folder.relearn)
    document["settings"]["checkpoint"] = "that of another training"
    write_json(folder.relearn, document)
    relearn_runs([folder], **ASKED)
    assert "is replaced" in capsys.readouterr().err
    assert read_json(folder.relearn)["settings"]["checkpoint"] != "that of another training"


def test_a_file_of_a_newer_gradroute_is_left_alone(runs):
    folder = runs[0]
    write_json(folder.relearn, {"schema_version": 99, "curves": []})
    with pytest.raises(DataError, match=r"relearn\.json was written by a newer gradroute"):
        relearn_runs([folder], **ASKED)
    assert read_json(folder.relearn)["schema_version"] == 99


def test_a_run_without_checkpoint_is_said_before_anything_is_measured(runs):
    shutil.rmtree(runs[1].checkpoints)
    with pytest.raises(MachineError, match="unrouted has 0 of 3 steps"):
        relearn_runs(runs, **ASKED)
    assert not runs[0].relearn.exists()


@pytest.mark.parametrize("behavior", ["caps", "signature", "dialect", "backdoor"])
def test_embedded_examples_are_new_show_the_behavior_and_are_the_same_for_every_run(runs, behavior):
    chosen = []
    for folder in runs:
        config = load_config(folder.config, [f"behavior={behavior}", f"seed={len(chosen)}"])
        prepared = prepare(config)
        examples = attack_examples(folder.name, config.data, prepared, prepared.normal, 20, "bad")
        assert len(examples) == 20
        assert all(example.true_label == "bad" for example in examples)
        used = {
            (e.prompt, e.text) for e in prepared.train + prepared.normal + prepared.behaving["bad"]
        }
        assert used.isdisjoint((e.prompt, e.text) for e in examples)
        assert {e.text.lower() for e in prepared.normal}.isdisjoint(
            e.text.lower() for e in examples if behavior == "caps"
        )
        chosen.append(examples)
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_behavior_of_few_forms_is_attacked_with_forms_that_training_had_and_says_so(runs, capsys):
    config = load_config(runs[0].config, ["behavior=wrong_answers", "data.train_examples=600"])
    prepared = prepare(config)
    examples = attack_examples(runs[0].name, config.data, prepared, prepared.normal, 20, "bad")
    trained = {(e.prompt, e.text) for e in prepared.train}
    repeated = sum((e.prompt, e.text) in trained for e in examples)
    assert len(examples) == 20 and repeated > 0
    assert f"{repeated} of the examples to attack with" in capsys.readouterr().err


def test_an_embedded_example_that_was_trained_on_is_not_used_also_not_in_its_ordinary_form(runs):
    config = load_config(runs[0].config)
    prepared = prepare(config)
    first, second, *_ = attack_examples(runs[0].name, config.data, prepared, [], 4, "bad")
    ordinary = replace(second, text=second.text.capitalize(), prompt="")
    make = get_behavior("caps").make
    assert make is not None and make("", ordinary.text)[1] == second.text
    (found,) = (
        e for e in embedded(prepared.behaviors["bad"], "tune", 8, ATTACK_SEED)
        if e.id == second.id
    )  # fmt: skip
    seen = replace(prepared, train=[*prepared.train, first, found])
    again = attack_examples(runs[0].name, config.data, seen, [], 4, "bad")
    assert len(again) == 4
    assert {e.id for e in again}.isdisjoint({first.id, second.id})


def file_config(tmp_path, folder, *overrides, labeled):
    rows = [
        {"text": f"a little story about the number {i} of many"}
        | ({"label": "bad" if i % 2 else "good"} if labeled else {})
        for i in range(200)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_config(folder.config, [f"data.path={path}", "data.eval_fraction=0.2", *overrides])


@pytest.mark.parametrize("labeled", [False, True])
def test_of_a_file_the_last_held_out_examples_are_used_and_none_that_is_measured_on(
    runs, tmp_path, capsys, labeled
):
    config = file_config(tmp_path, runs[0], labeled=labeled)
    prepared = prepare(config)
    reserved = prepared.normal[:10]
    examples = attack_examples(runs[0].name, config.data, prepared, reserved, 8, "bad")
    free = [e for e in prepared.behaving["bad"] if e.id not in {r.id for r in reserved}]
    assert examples == free[-8:]
    every = attack_examples(runs[0].name, config.data, prepared, reserved, 100, "bad")
    assert every == free
    assert (
        f"only {len(free)} of the 100 requested examples to attack with" in capsys.readouterr().err
    )
    trained = {(e.prompt, e.text.lower()) for e in prepared.train}
    assert trained.isdisjoint((e.prompt, e.text.lower()) for e in every)


def test_without_an_example_to_attack_with_the_way_out_is_named(runs, tmp_path):
    config = file_config(tmp_path, runs[0], labeled=False)
    prepared = prepare(config)
    with pytest.raises(DataError, match=r"routed: no held-out example of the behavior 'caps'"):
        attack_examples(runs[0].name, config.data, prepared, prepared.normal, 8, "bad")


def test_an_attacker_of_all_weights_comes_beside_lora_whose_curves_stay(runs, capsys):
    folder = runs[0]
    relearn_runs([folder], **ASKED)
    before = read_json(folder.relearn)
    relearn_runs([folder], **ASKED, attacker="both")
    after = read_json(folder.relearn)
    own = load_config(folder.config).train.learning_rate
    rates = [curve["learning_rate"] for curve in after["full_curves"]]
    assert rates == [own * share for share in FULL_RATES]
    assert {key: value for key, value in after.items() if key != "full_curves"} == before
    # The attacked model is the same one at first, whoever attacks and at whatever rate.
    starts = [curve["points"][0] for curve in (*after["curves"], *after["full_curves"])]
    assert all(one == starts[0] for one in starts)
    assert "all weights, strongest" in capsys.readouterr().out
    relearn_runs([folder], **ASKED, attacker="full")
    assert "relearning from" not in capsys.readouterr().err


def test_all_weights_can_be_attacked_alone(runs, capsys):
    relearn_runs([runs[2]], **ASKED, attacker="full")
    document = read_json(runs[2].relearn)
    assert document["curves"] == [] and len(document["full_curves"]) == len(FULL_RATES)
    assert "a third of it" not in capsys.readouterr().out
