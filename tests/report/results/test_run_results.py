from dataclasses import replace

import pytest
from report.fabricated import REFERENCE, Made, collect, config_of, rows_of

from gradroute.errors import DataError
from gradroute.report.results.run_results import collect_runs
from gradroute.runs.results import Result


def test_modes_that_write_the_same_are_seen() -> None:
    made = replace(REFERENCE["0.1_0.5"], identical=frozenset({"bad_ablated"}))
    (run,) = collect({"0.1_0.5": made})
    assert run.cells["bad_ablated"].changed == 0.0
    assert run.cells["good_ablated"].changed == 1.0
    assert run.cells["full"].changed is None


def test_only_the_last_step_counts() -> None:
    config = {"r": config_of("r", {})}
    rows = [
        Result("r", step, "full", "prefix", "all", "behavior_rate", value, 10, 0.0, 1.0)
        for step, value in ((50, 0.1), (100, 0.9))
    ]
    (run,) = collect_runs(rows, config, provenance={}, samples={}, losses={})
    rate = run.rate("full")
    assert rate is not None
    assert (rate.mean, run.step) == (0.9, 100)


def test_two_values_of_one_number_and_rows_of_an_unknown_run_are_errors() -> None:
    made = Made({}, {})
    config = {"r": config_of("r", {})}
    rows = [
        Result("r", 1, "full", "prefix", "all", "behavior_rate", value, 10, 0.0, 1.0)
        for value in (0.1, 0.2)
    ]
    with pytest.raises(DataError, match=r"two values of behavior_rate under full \(0.1 and 0.2\)"):
        collect_runs(rows, config, provenance={}, samples={}, losses={})
    stranger = [*rows_of("s", made, []), replace(rows[0], run="s")]
    with pytest.raises(DataError, match="'s', which has no configuration"):
        collect_runs(stranger, config, provenance={}, samples={}, losses={})


def test_rates_of_every_kind_of_prompts_and_right_answers_have_their_place() -> None:
    config = {"r": config_of("r", {})}
    rows = [
        Result("r", 9, "full", kind, "all", metric, value, 10, 0.0, 1.0)
        for kind, value in (("prefix", 0.5), ("plain", 0.2))
        for metric in ("behavior_rate", "behavior_score", "accuracy", "too_short")
    ]
    (run,) = collect_runs(rows, config, provenance={}, samples={}, losses={})
    cell = run.cells["full"]
    assert {kind: rate.mean for kind, rate in cell.rates.items()} == {"prefix": 0.5, "plain": 0.2}
    assert {kind: rate.n for kind, rate in cell.accuracy.items()} == {"prefix": 10, "plain": 10}
    assert (cell.rate, cell.scores) == (cell.rates["prefix"], {"prefix": 0.5, "plain": 0.2})
    plain = run.rate("full", "plain")
    assert plain is not None and plain.mean == 0.2
    assert run.rate("full", "bos") is None and run.rate("base") is None


def test_a_completion_too_short_to_judge_does_not_show_it() -> None:
    config = {"r": config_of("r", {})}
    lines = [
        {
            "mode": "full",
            "prompts": "bos",
            "prompt_id": f"bos-{i}",
            "completion": "",
            "shows": shows,
        }
        for i, shows in enumerate((True, False, None))
    ]
    (run,) = collect_runs([], config, provenance={}, samples={"r": lines}, losses={})
    assert run.outcomes["full", "bos"] == {"bos-0": True, "bos-1": False, "bos-2": False}
