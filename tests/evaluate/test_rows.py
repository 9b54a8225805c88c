import pytest
import torch
from tiny_writers import base_model, writer

from gradroute.evaluate.losses import ExampleLosses
from gradroute.evaluate.rows import behavior_rows, geometry_rows, loss_rows
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.runs.results import Result
from gradroute.system.statistics import ratio_mean, wilson


def number(rows: list[Result], mode: str, metric: str) -> Result:
    (found,) = [row for row in rows if (row.mode, row.metric) == (mode, metric)]
    return found


def samples(*scores: float | None, mode: str = "full", kind: str = "prefix") -> list[dict]:
    return [
        {
            "mode": mode,
            "prompts": kind,
            "score": score,
            "shows": None if score is None else score >= 0.8,
        }
        for score in scores
    ]


def test_a_completion_too_short_to_judge_counts_as_not_showing_and_is_counted() -> None:
    rows = behavior_rows(samples(1.0, 0.25, None, 0.85), run="r", step=7, seed=3)
    rate = number(rows, "full", "behavior_rate")
    assert (rate.value, rate.n) == (0.5, 4)
    assert (rate.lower, rate.upper) == wilson(2, 4)
    assert number(rows, "full", "too_short").value == 1
    score = number(rows, "full", "behavior_score")
    assert score.value == pytest.approx(0.7)
    assert score.n == 3
    assert all((row.run, row.step, row.seed) == ("r", 7, 3) for row in rows)


def test_completions_that_are_all_too_short_have_no_score_and_a_rate_of_zero() -> None:
    rows = behavior_rows(samples(None, None), run="r", step=1, seed=0)
    assert number(rows, "full", "behavior_score").value is None
    assert number(rows, "full", "behavior_rate").value == 0


def test_every_mode_and_kind_of_prompts_has_rows_of_its_own() -> None:
    lines = [
        *samples(1.0, 1.0),
        *samples(0.0, 1.0, kind="plain"),
        *samples(0.0, mode="base", kind="file:mine.txt"),
    ]
    rows = behavior_rows(lines, run="r", step=1, seed=0)
    rates = {(r.mode, r.dataset): (r.value, r.n) for r in rows if r.metric == "behavior_rate"}
    assert rates == {
        ("full", "prefix"): (1.0, 2),
        ("full", "plain"): (0.5, 2),
        ("base", "file:mine.txt"): (0.0, 1),
    }


def test_accuracy_is_the_share_of_right_answers_and_only_where_there_are_such() -> None:
    lines = samples(1.0, 0.0, 0.0)
    assert all(row.metric != "accuracy" for row in behavior_rows(lines, run="r", step=1, seed=0))
    for line, correct in zip(lines, (False, True, True), strict=True):
        line["correct"] = correct
    row = number(behavior_rows(lines, run="r", step=1, seed=0), "full", "accuracy")
    assert (row.value, row.n) == (pytest.approx(2 / 3), 3)
    assert (row.lower, row.upper) == wilson(2, 3)


def test_no_prompts_give_no_row() -> None:
    assert behavior_rows([], run="r", step=1, seed=0) == []
    assert loss_rows({"full": ExampleLosses([], [])}, "normal", run="r", step=1, seed=0) == []


def test_a_loss_is_the_mean_over_tokens() -> None:
    losses = {"full": ExampleLosses([2.0, 9.0, 4.0], [1, 9, 2])}
    (row,) = loss_rows(losses, "behavior", run="r", step=1, seed=0)
    wanted = ratio_mean([2.0, 9.0, 4.0], [1, 9, 2])
    assert (row.value, row.lower, row.upper, row.std) == wanted
    assert row.value == 15 / 12
    assert (row.dataset, row.n) == ("behavior", 3)


def test_geometry_is_a_row_per_module_and_one_for_random_updates() -> None:
    rows = geometry_rows(writer(), run="r", step=1, seed=0)
    cosines = [row.value for row in rows if row.metric == "update_cosine"]
    assert len(cosines) == 14
    assert all(value is not None and 0 < abs(value) < 1 for value in cosines)
    assert 0 < (number(rows, "full", "random_cosine").value or 0) < 1


def test_an_untrained_adapter_has_no_cosine() -> None:
    specs = {name: AdapterSpec(rank=2) for name in ("good", "bad")}
    model = attach_adapters(base_model("llama"), specs)
    rows = geometry_rows(model, run="r", step=1, seed=0)
    assert {row.value for row in rows if row.metric == "update_cosine"} == {None}


def test_one_adapter_has_no_geometry() -> None:
    with torch.random.fork_rng():
        model = attach_adapters(base_model("llama"), {"good": AdapterSpec(rank=2)})
    assert geometry_rows(model, run="r", step=1, seed=0) == []
