"""Where no row that shows the behavior is held out, nothing is judged and the way out is named."""

from pathlib import Path
from typing import Any

import pytest
from rude_runs import HATE, MODES, SMALL, let_speak, prompted, rates, trained, write

from gradroute.config.run_config import find_config, load_config
from gradroute.errors import DataError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.generation import Completion
from gradroute.evaluate.request import EvaluationRequest
from gradroute.evaluate.side_by_side import sample_run
from gradroute.export.behavior_check import behavior_check, prompt_sets, sample_prompts
from gradroute.prepare import prepare
from gradroute.probes.recovery import recover_run
from gradroute.probes.relearning import relearn_runs
from gradroute.report.judge.comparison import compare
from gradroute.report.render.terminal_text import render
from gradroute.report.render.training_plot import plot_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    let_speak(monkeypatch)


def one_bad(at: int) -> dict[str, Any]:
    """Bad rows in training alone: the ids of the held-out ones are known by their hash."""
    return prompted(at) | ({} if f"r{at}" not in ONE_SIDE else {"label": "good"})


ONE_SIDE: set[str] = set()


def nothing_held_out(root: Path, *overrides: str) -> RunFolder:
    config = load_config(
        find_config("caps"),
        [*SMALL, f"data.path={write(root / 'probe.jsonl', prompted)}", f"behavior={HATE}"],
    )
    ONE_SIDE.update(example.id for example in prepare(config).behaving["bad"])
    try:
        return trained(root, one_bad, *overrides)
    finally:
        ONE_SIDE.clear()


def test_without_a_held_out_bad_row_nothing_is_judged_and_the_way_out_is_named(
    tmp_path, capsys
) -> None:
    folder = nothing_held_out(tmp_path)
    err = " ".join(capsys.readouterr().err.split())
    why = (
        "none of the 24 held-out rows is bad; raise data.eval_fraction (now 0.4) or give such rows "
        "in data.eval_path, and train again"
    )
    assert f"the rate at which the model shows {HATE} cannot be measured: {why}." in err
    assert f"the behavior rate is not measured during training: {why}." in err
    lines = list(read_lines(folder.measures))
    assert lines and all("behavior_rate" not in line and line["normal_loss"] > 0 for line in lines)
    plot_run(folder)

    evaluate_run(folder, EvaluationRequest(modes=MODES))
    assert f"held_out_bad: not measured: {why}." in " ".join(capsys.readouterr().err.split())
    assert {kind for kind, _ in rates(folder)} == {"plain"}
    before = folder.results.read_bytes()
    evaluate_run(folder, EvaluationRequest(modes=MODES))  # nothing is missing, so nothing is loaded
    assert capsys.readouterr().err == "" and folder.results.read_bytes() == before

    comparison = compare([folder])
    outcomes = {one.number: one.outcome for one in comparison.verdicts}
    assert outcomes[2] == outcomes[3] == "not measured"
    printed = " ".join(render(comparison).split())
    assert why in printed and "NOT LEARNED" not in printed and "not learned" not in printed

    recover_run(folder, steps=1, learning_rate=None, examples=4)
    assert "Rates are not measured: no held-out row shows" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"relearning is not measured: none of the 24 held-out"):
        relearn_runs([folder], examples=2, max_steps=1, every=1, prompts=2)
    config = load_config(folder.config)
    sets = prompt_sets(prepare(config), config.evaluate, config.behavior)
    found = sample_prompts(sets, lambda prompts: [Completion("x", 1, True)] * len(prompts))
    check = behavior_check(found, found, "bad_ablated")
    assert check.passed and "held_out_bad: not checked, no held-out row shows" in check.text
    sample_run(folder, EvaluationRequest(modes=("full",)), texts=(), count=1)
    told = " ".join(capsys.readouterr().err.split())
    assert f"held_out_bad: no prompts to complete: {why}." in told
