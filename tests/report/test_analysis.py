import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from report.fabricated import REFERENCE, Made, collect, config_of, rows_of, with_numbers

from gradroute.errors import DataError
from gradroute.files import write_json
from gradroute.report.analysis import (
    collect_runs,
    controls_of,
    gain_kept,
    localization,
    loss_difference,
    rate_difference,
)
from gradroute.report.document import eval_multi
from gradroute.report.verdicts import judge
from gradroute.results import Result
from gradroute.statistics import difference

RUNS = {run.name: run for run in collect()}
UNPAIRED = {run.name: run for run in collect(paired=False)}
BASELINE = RUNS["baseline"]


def losses(run: str, mode: str) -> float:
    loss = RUNS[run].loss(mode, "normal")
    assert loss is not None
    return loss.mean


def test_gain_kept_is_the_share_of_the_baselines_gain_that_is_left() -> None:
    found = gain_kept(RUNS["0.1_0.0"], BASELINE)
    assert found is not None
    base, ablated = losses("0.1_0.0", "base"), losses("0.1_0.0", "bad_ablated")
    assert found.value == pytest.approx((base - ablated) / (base - losses("baseline", "full")))
    assert found.lower < found.value < found.upper
    assert (found.mode, found.against) == ("bad_ablated", "baseline")


def test_without_a_baseline_gain_kept_is_against_the_runs_own_full() -> None:
    found = gain_kept(RUNS["0.1_0.5"], None)
    assert found is not None
    base, full = losses("0.1_0.5", "base"), losses("0.1_0.5", "full")
    wanted = (base - losses("0.1_0.5", "bad_ablated")) / (base - full)
    assert found.value == pytest.approx(wanted)
    assert found.against == "own full"


def test_a_run_with_nothing_to_ablate_is_judged_as_it_is() -> None:
    found = gain_kept(RUNS["filter_0.5"], BASELINE)
    assert found is not None
    assert found.mode == "full"
    assert found.value == pytest.approx(1.0, abs=0.05)


def test_without_single_examples_gain_kept_has_no_interval() -> None:
    found = gain_kept(UNPAIRED["0.1_0.0"], UNPAIRED["baseline"])
    paired = gain_kept(RUNS["0.1_0.0"], BASELINE)
    assert found is not None and paired is not None
    assert found.value == pytest.approx(paired.value)
    assert math.isnan(found.lower) and math.isnan(found.upper)


@pytest.mark.parametrize("full", [0.91, 0.95])
def test_a_baseline_that_gains_nothing_gives_no_share_of_it(full: float) -> None:
    made = {
        **REFERENCE,
        "baseline": with_numbers(REFERENCE["baseline"], full=(0, full, 3.0), base=(0, 0.9, 1.5)),
    }
    runs = {run.name: run for run in collect(made)}
    found = gain_kept(runs["0.1_0.5"], runs["baseline"])
    assert found is not None
    assert math.isnan(found.value)


def test_differences_of_losses_are_paired_by_example_where_examples_are_at_hand() -> None:
    paired = loss_difference(RUNS["0.1_0.5"], RUNS["0.1_0.0"], "bad_ablated", "behavior")
    apart = loss_difference(UNPAIRED["0.1_0.5"], UNPAIRED["0.1_0.0"], "bad_ablated", "behavior")
    assert paired is not None and apart is not None
    assert paired.value == pytest.approx(apart.value)
    assert apart.lower < paired.lower < paired.value < paired.upper < apart.upper


def test_examples_that_are_not_the_same_are_not_paired() -> None:
    one, other = RUNS["0.1_0.5"], RUNS["0.1_0.0"]
    cell = ("bad_ablated", "behavior")
    renamed = {f"x{name}": value for name, value in other.examples[cell].items()}
    unlike = replace(other, examples={**other.examples, cell: renamed})
    apart = loss_difference(UNPAIRED["0.1_0.5"], UNPAIRED["0.1_0.0"], *cell)
    assert loss_difference(one, unlike, *cell) == apart


def test_localization_is_a_difference_of_rates_with_newcombes_interval() -> None:
    found = localization(RUNS["0.1_0.5"])
    good, bad = RUNS["0.1_0.5"].rate("good_ablated"), RUNS["0.1_0.5"].rate("bad_ablated")
    assert found is not None and good is not None and bad is not None
    assert found.value == good.mean - bad.mean
    assert found[1:] == difference(good.shown, 128, bad.shown, 128)
    assert localization(RUNS["filter_0.5"]) is None
    assert rate_difference(good, None) is None


def test_the_document_has_every_number_at_its_place() -> None:
    runs = list(RUNS.values())
    document = eval_multi(runs, judge(runs))
    cell = document["runs"]["0.1_0.5"]["bad_ablated"]
    assert cell["behavior_rate"].keys() == {"mean", "lower", "upper", "n"}
    assert cell["behavior_rate"]["n"] == 128
    assert cell["behavior_score"]["mean"] == pytest.approx(0.1)
    for dataset in ("normal", "behavior"):
        assert cell["held_out_loss"][dataset].keys() == {"mean", "lower", "upper", "std", "n"}
    run = document["runs"]["0.1_0.5"]
    assert run["geometry"]["mean_absolute_cosine"] == pytest.approx(0.09, abs=0.01)
    assert run["config"]["data"]["labeled_fraction"] == 0.5
    assert run["provenance"] == {"torch": "2.13.0"}
    assert document["comparisons"]["0.1_0.5"]["controls"]["filter"] == "filter_0.5"
    assert len(document["verdicts"]) == 6


def test_the_document_is_strict_json_also_where_nothing_is_known(tmp_path: Path) -> None:
    runs = collect({"0.1_0.5": REFERENCE["0.1_0.5"]}, paired=False, sampled=False)
    write_json(tmp_path / "d.json", eval_multi(runs, judge(runs)))
    text = (tmp_path / "d.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert document["comparisons"]["0.1_0.5"]["gain_kept"]["lower"] is None
    assert document["runs"]["0.1_0.5"]["full"]["changed_from_full"] is None


def test_modes_that_write_the_same_are_seen() -> None:
    made = replace(REFERENCE["0.1_0.5"], identical=frozenset({"bad_ablated"}))
    (run,) = collect({"0.1_0.5": made})
    assert run.cells["bad_ablated"].changed == 0.0
    assert run.cells["good_ablated"].changed == 1.0
    assert run.cells["full"].changed is None


def test_only_the_last_step_counts() -> None:
    config = {"r": config_of("r", {})}
    rows = [
        Result("r", step, "full", "prompts", "all", "behavior_rate", value, 10, 0.0, 1.0)
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
        Result("r", 1, "full", "prompts", "all", "behavior_rate", value, 10, 0.0, 1.0)
        for value in (0.1, 0.2)
    ]
    with pytest.raises(DataError, match=r"two values of behavior_rate under full \(0.1 and 0.2\)"):
        collect_runs(rows, config, provenance={}, samples={}, losses={})
    stranger = [*rows_of("s", made, []), replace(rows[0], run="s")]
    with pytest.raises(DataError, match="'s', which has no configuration"):
        collect_runs(stranger, config, provenance={}, samples={}, losses={})


def test_the_controls_of_a_run_are_runs() -> None:
    found = controls_of(RUNS["0.1_1.0"], list(RUNS.values()))
    assert {role: run.name for role, run in found.items()} == {
        "baseline": "baseline",
        "unrouted": "0.1_0.0",
    }
