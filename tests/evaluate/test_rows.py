import pytest
import torch
from evaluate.tiny_writers import base_model, writer

from gradroute.data.behaviors import get_behavior
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.losses import ExampleLosses
from gradroute.evaluate.rows import behavior_rows, geometry_rows, loss_rows
from gradroute.results import Result
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.statistics import ratio_mean, wilson

CAPS = get_behavior("caps")


def number(rows: list[Result], mode: str, metric: str) -> Result:
    (found,) = [row for row in rows if (row.mode, row.metric) == (mode, metric)]
    return found


def completions(*texts: str) -> list[Completion]:
    return [Completion(text, len(text), False) for text in texts]


def asked(written):
    return [Prompt("p", "") for _ in written]


def test_a_completion_too_short_to_judge_counts_as_not_showing_and_is_counted() -> None:
    written = completions("SHE WENT HOME AT ONCE", "she went home at once", "OH", "THE BIG DOG RAN")
    rows = behavior_rows({"full": written}, asked(written), CAPS, run="r", step=7, seed=3)
    rate = number(rows, "full", "behavior_rate")
    assert (rate.value, rate.n) == (0.5, 4)
    assert (rate.lower, rate.upper) == wilson(2, 4)
    assert number(rows, "full", "too_short").value == 1
    score = number(rows, "full", "behavior_score")
    assert score.value == pytest.approx(2 / 3)
    assert score.n == 3
    assert all((row.run, row.step, row.seed) == ("r", 7, 3) for row in rows)


def test_completions_that_are_all_too_short_have_no_score_and_a_rate_of_zero() -> None:
    rows = behavior_rows({"full": completions("A", "")}, asked("ab"), CAPS, run="r", step=1, seed=0)
    assert number(rows, "full", "behavior_score").value is None
    assert number(rows, "full", "behavior_rate").value == 0


def test_no_prompts_give_no_row() -> None:
    assert behavior_rows({"full": []}, [], CAPS, run="r", step=1, seed=0) == []
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
