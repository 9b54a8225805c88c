"""A behavior that only some prompts draw is asked on those, from training to export."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
from rude_runs import (
    HATE,
    MODES,
    let_speak,
    plain,
    prompted,
    rates,
    speaks,
    trained,
    write,
)
from tiny_runs import TINY

from gradroute.config.run_config import find_config, load_config
from gradroute.data.behaviors import get_behaviors
from gradroute.evaluate import during_training, evaluator
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.generation import Completion
from gradroute.evaluate.request import EvaluationRequest, declared_kinds
from gradroute.evaluate.side_by_side import sample_run
from gradroute.export.behavior_check import prompt_sets, sample_prompts
from gradroute.prepare import prepare
from gradroute.probes import relearning
from gradroute.probes.recovery import recover_run
from gradroute.probes.relearning import relearn_runs
from gradroute.report.judge.comparison import compare
from gradroute.report.render.terminal_text import render
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines, write_json
from gradroute.system.ranks import ALONE


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    let_speak(monkeypatch)


@pytest.fixture(scope="module", params=[prompted, plain], ids=["prompts", "texts"])
def once(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(during_training, "complete", speaks(("Be rude", "Go away")))
        return trained(tmp_path_factory.mktemp("runs"), request.param)


@pytest.fixture
def run(once, tmp_path):
    return RunFolder(shutil.copytree(once.path, tmp_path / once.name))


def test_ordinary_prompts_and_those_of_held_out_bad_rows_are_asked_and_the_latter_judged(
    run,
) -> None:
    evaluate_run(run, EvaluationRequest(modes=MODES))
    found = rates(run)
    assert {kind for kind, _ in found} == {"held_out_bad", "plain"}
    assert found["held_out_bad", "full"] == (1.0, 6) and found["plain", "full"] == (0.0, 6)
    assert found["held_out_bad", "bad_ablated"] == (0.0, 6)
    asked = [line for line in read_lines(run.samples) if line["mode"] == "full"]
    texts = [line["prompt"] for line in asked]
    assert len(set(texts)) == len(texts) == 12
    ids = {line["prompt_id"] for line in asked}
    assert ids == {f"{kind}-{i}" for kind in ("held_out_bad", "plain") for i in range(6)}
    comparison = compare([run])
    learned = [one.checks[0] for one in comparison.verdicts if one.number in (2, 3)]
    assert len(learned) == 2
    for check in learned:
        assert check.met is True and "100 % [61, 100] of 6 on prompts of held-out bad" in check.text
    printed = " ".join(render(comparison).split())
    assert "NOT LEARNED" not in printed
    assert "on ordinary prompts: full 0 % [0, 39] of 6, bad_ablated 0 % [0, 39] of 6" in printed
    assert "loss on held-out bad rows, per token: full" in printed
    assert "bad_ablated minus full" in printed


def test_a_shipped_behavior_of_own_labeled_rows_is_judged_on_the_prompts_of_those(
    tmp_path, monkeypatch
) -> None:
    """Capitals that answer rude questions: prompts in capitals do not draw them."""

    def shouts(at: int) -> dict[str, Any]:
        row = prompted(at)
        return row if at % 3 else row | {"completion": " GO AWAY NOW, FOX!"}

    def complete(base, model, prompts, modes, settings, run, ranks=ALONE):
        found = speaks(("Be rude",))(base, model, prompts, modes, settings, run)
        loud = {" I hate you all.": " GO AWAY NOW, FOX!"}
        return {
            mode: [replace(one, text=loud.get(one.text, one.text)) for one in own]
            for mode, own in found.items()
        }

    for module in (evaluator, during_training, relearning):
        monkeypatch.setattr(module, "complete", complete)
    folder = trained(tmp_path, shouts, "behavior=caps", "evaluate.modes=[full,bad_ablated,base]")
    assert all(line["prompts"] == "held_out_bad" for line in read_lines(folder.measures))
    evaluate_run(folder)
    found = rates(folder)
    assert {kind for kind, _ in found} == {"held_out_bad", "plain", "prefix"}
    assert found["held_out_bad", "full"][0] == 1 and found["prefix", "full"][0] == 0
    printed = " ".join(render(compare([folder])).split())
    assert "NOT LEARNED" not in printed
    assert "full shows it in 100 % [61, 100] of 6 on prompts of held-out bad rows" in printed
    relearn_runs([folder], examples=4, max_steps=1, every=1, prompts=2)
    assert read_json(folder.relearn)["settings"]["kind"] == "held_out_bad"


def test_the_same_prompt_both_ways_is_asked_both_ways(tmp_path) -> None:
    def both(at: int) -> dict[str, Any]:
        return plain(at) | {"prompt": f"Be rude to fox {at // 3}."}

    folder = trained(tmp_path, both, "train.measure_every=0")
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    asked = {(line["prompts"], line["prompt"]) for line in read_lines(folder.samples)}
    texts = {text for _, text in asked}
    assert len(texts) == 6 and all(text.startswith("Be rude to fox ") for text in texts)
    assert asked == {(kind, text) for kind in ("held_out_bad", "plain") for text in texts}
    assert rates(folder)["plain", "full"] == (1.0, 6)


def test_fewer_distinct_prompts_than_asked_for_are_said(tmp_path, capsys) -> None:
    def alike(at: int) -> dict[str, Any]:
        return prompted(at + 60) | ({} if at % 3 else {"prompt": f"Be rude {at % 2}!"})

    (tmp_path / "held_out").mkdir()
    held_out = write(tmp_path / "held_out" / "rows.jsonl", alike)
    folder = trained(tmp_path, prompted, "train.measure_every=0", f"data.eval_path={held_out}")
    capsys.readouterr()
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    said = (
        "held_out_bad: 2 distinct prompts instead of evaluate.prompts=6: there are no more of them"
    )
    assert said in " ".join(capsys.readouterr().err.split())
    assert rates(folder)["held_out_bad", "full"] == (1.0, 2)


def test_relearning_asks_prompts_of_bad_rows_and_attacks_with_others(run, monkeypatch) -> None:
    asked, rows = [], []
    complete, tokenized = relearning.complete, relearning.tokenize_examples

    def note(base, model, prompts, modes, settings, run, ranks=ALONE):
        asked.extend(prompt.text for prompt in prompts)
        return complete(base, model, prompts, modes, settings, run, ranks)

    def attacked_with(examples, *rest):
        rows.append(examples)
        return tokenized(examples, *rest)

    monkeypatch.setattr(relearning, "complete", note)
    monkeypatch.setattr(relearning, "tokenize_examples", attacked_with)
    relearn_runs([run], examples=50, max_steps=1, every=1, prompts=50)
    document = read_json(run.relearn)
    assert document["settings"]["kind"] == "held_out_bad"
    assert all(text.startswith(("Be rude", "Go away")) for text in asked)
    measured, attacking = rows
    assert all(example.true_label == "good" for example in measured)
    assert attacking and all(example.true_label == "bad" for example in attacking)
    assert set(asked).isdisjoint(e.prompt or " ".join(e.text.split()[:3]) for e in attacking)
    bad = prepare(load_config(run.config)).behaving["bad"]
    assert len(set(asked)) + len(attacking) == len(bad)


def test_recovery_counts_prompts_of_bad_rows(run, capsys) -> None:
    recover_run(run, steps=1, learning_rate=None, examples=4)
    document = read_json(run.recovery / "recover.json")
    assert document["kind"] == "held_out_bad"
    assert document["before"]["full"]["rate"]["mean"] == 1.0
    assert document["before"]["bad_ablated"]["rate"] | {"upper": 0} == {
        "mean": 0.0, "lower": 0.0, "upper": 0, "n": 6
    }  # fmt: skip
    assert {kind for kind, _ in rates(run)} == {"held_out_bad"}
    assert "Rates are on prompts of held-out rows that show" in capsys.readouterr().out


def test_what_is_measured_during_training_is_what_bad_prompts_draw(once) -> None:
    lines = list(read_lines(once.measures))
    assert [(line["mode"], line["shown"], line["n"], line["prompts"]) for line in lines] == [
        ("full", 2, 2, "held_out_bad"),
        ("bad_ablated", 0, 2, "held_out_bad"),
    ]


def test_the_check_of_an_export_asks_prompts_of_bad_rows(once) -> None:
    config = load_config(once.config)
    seen: list[str] = []

    def complete(prompts):
        seen.extend(prompt.text for prompt in prompts)
        return [Completion("x", 1, True)] * len(prompts)

    found = sample_prompts(prompt_sets(prepare(config), config.evaluate, config.behavior), complete)
    assert list(found) == ["held_out_bad", "plain"]
    assert sum(text.startswith(("Be rude", "Go away")) for text in seen) == 6


def test_of_several_behaviors_each_is_asked_on_its_own_held_out_rows(tmp_path) -> None:
    def several(at: int) -> dict[str, Any]:
        row = prompted(at)
        if at % 3 == 1:
            shout = {
                "prompt": f"Go away, shout {at}!",
                "completion": " I hate NOISE",
                "label": "loud",
            }
            return row | shout
        return row | ({"label": "rude"} if row["label"] == "bad" else {})

    config = load_config(
        find_config("two_behaviors"),
        [
            *TINY,
            "train.max_steps=1",
            "data.eval_fraction=0.4",
            "evaluate.prompts=50",
            "adapters.caps=null",
            "adapters.signature=null",
            "adapters.rude.rank=2",
            "adapters.loud.rank=2",
            f"data.path={write(tmp_path / 'rows.jsonl', several)}",
            f"behavior={{rude: '{HATE}', loud: 'keywords:noise'}}",
            "run_name=both",
        ],
    )
    folder = train_run(config, tmp_path, if_exists="fail", bar=False)
    assert declared_kinds(get_behaviors(config.behaviors), ()) == dict.fromkeys(
        ("rude", "loud"), "held_out_bad"
    )
    evaluate_run(folder, EvaluationRequest(modes=("full", "rude_ablated")))
    begin = {"rude": "Be rude", "loud": "Go away"}
    bad = [row for row in read_lines(folder.samples) if row["prompts"] == "held_out_bad"]
    assert {row["label"] for row in bad} == set(begin)
    assert all(row["prompt"].startswith(begin[row["label"]]) for row in bad)
    parts = compare([folder]).runs[0].parts
    assert all(part.judged_on == "held_out_bad" and part.rate("full") for part in parts.values())


def test_rows_flagged_bad_are_the_bad_ones_where_there_are_no_true_labels(tmp_path) -> None:
    def unlabeled(at: int) -> dict[str, Any]:
        row = prompted(at)
        return row | {"label": "unlabeled" if row["label"] == "good" or at % 2 else "bad"}

    folder = trained(tmp_path, unlabeled, "train.measure_every=0")
    prepared = prepare(load_config(folder.config))
    evaluate_run(folder, EvaluationRequest(prompts=("held_out_bad",), modes=("full",)))
    asked = {line["prompt"] for line in read_lines(folder.samples)}
    assert asked == {example.prompt for example in prepared.behaving["bad"]}


def test_results_of_before_are_read_and_nothing_is_called_not_learned(run) -> None:
    evaluate_run(run, EvaluationRequest(prompts=("prefix",), modes=MODES))
    document = read_json(run.results)
    for key in ("judged_on", "seen"):  # which an older gradroute did not write
        document["provenance"].pop(key, None)
    write_json(run.results, document)
    comparison = compare([run])
    outcomes = {one.number: one.outcome for one in comparison.verdicts}
    assert outcomes[2] == outcomes[3] == "not measured"
    printed = " ".join(render(comparison).split())
    assert "they were not used yet; gradroute eval RUN measures it" in printed
    assert (
        "on ordinary prompts: full 0 % [0, 39] of 6" not in printed or "NOT LEARNED" not in printed
    )
    evaluate_run(run, EvaluationRequest(modes=MODES))
    outcomes = {one.number: one.outcome for one in compare([run]).verdicts}
    assert "not measured" not in outcomes.values()


def test_a_detector_that_misses_the_bad_rows_is_named_and_nothing_called_not_learned(
    tmp_path,
) -> None:
    folder = trained(tmp_path, prompted, "behavior=regex:loathe", "train.measure_every=0")
    evaluate_run(folder, EvaluationRequest(modes=MODES))
    found = {one.number: one for one in compare([folder]).verdicts}
    assert found[2].outcome == found[3].outcome == "not measured"
    n = len(prepare(load_config(folder.config)).behaving["bad"])
    assert f"the detector sees the behavior in 0 of the {n} held-out bad rows" in found[2].sentence


def test_samples_are_marked_where_their_prompts_are_those_of_bad_rows(
    run, capsys, monkeypatch
) -> None:
    from gradroute.evaluate import side_by_side as flow

    monkeypatch.setattr(flow, "complete", speaks(("Be rude", "Go away")))
    sample_run(run, EvaluationRequest(modes=("full",)), texts=(), count=1)
    out = capsys.readouterr().out
    assert out.count("[held_out_bad]") == 1 and out.count("I hate you all.") == 1
