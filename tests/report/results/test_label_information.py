"""Label information is read from what training used, not from what a run is called."""

from typing import Any

import pytest
from report.fabricated import Made, config_in_full, config_of

from gradroute.config.controls import CONTROLS
from gradroute.report.results.label_information import (
    KINDS,
    compare_information,
    information_text,
    label_information,
    phrase_of,
)
from gradroute.report.results.run_results import RunResults

BOTH = {"data.labeled_fraction": 0.5, "data.good_labeled_fraction": 0.3}
ONE = {"routing": "none", "adapters": {"good": {"rank": 64}}}


def used(manifest: dict[str, Any] | None = None, /, **changes: Any) -> str:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return information_text(label_information(config_of("run", given), manifest or {}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"routing": "anchored"}, "flags, known good"),
        # `absorb` treats a row labeled good as an unlabeled one.
        ({"routing": "absorb"}, "flags"),
        ({"routing": "exclusive"}, "flags"),
        ({"routing": "none"}, "none"),
        ({"routing": "anchored", "data__labeled_fraction": 0.0}, "known good"),
        ({"routing": "anchored", "data__good_labeled_fraction": 0.0}, "flags"),
        ({"routing": "anchored", "data__relabel": "unlabel_bad"}, "known good"),
        ({"routing": "anchored", "data__relabel": "random"}, "number of labels"),
        ({**ONE, "data__drop": "labeled_bad"}, "flags"),
        ({**ONE, "data__drop": "all_but_good"}, "known good"),
        ({**ONE, "data__drop": "true_bad"}, "true labels"),
        ({**ONE, "data__drop": "labeled_bad", "train__kl_good": 1.0}, "flags, known good"),
        ({**ONE, "data__drop": "labeled_bad", "train__teacher": "r@full"}, "flags, known good"),
        ({**ONE, "data__drop": "labeled_bad", "data__found": "f.jsonl"}, "flags, known good"),
        ({**ONE, "data__drop": "all_but_bad"}, "flags"),
        ({**ONE, "data__inoculation": "labeled_bad"}, "flags"),
        ({**ONE, "data__inoculation": "all"}, "none"),
        # What an adapter was made of before is used too, whatever the table does with labels.
        ({"routing": "none", "control": "random_adapter"}, "flags"),
    ],
)
def test_a_label_counts_where_training_used_it(changes: dict[str, Any], told: str) -> None:
    assert used(**{key.replace(".", "__"): value for key, value in BOTH.items()} | changes) == told


def test_wrong_flags_are_flags_too() -> None:
    noise = {"data__labeled_fraction": 0.0, "data__false_positive_rate": 0.1}
    assert used(routing="absorb", **noise) == "flags"


def test_a_file_has_the_labels_that_its_manifest_counts_and_all_where_there_is_none() -> None:
    path = {"data__path": "rows.jsonl", "routing": "anchored"}
    assert used(**path) == "flags, known good"
    counted = {"labels": {"labeled_bad": 3}, "examples": {"good labeled unlabeled": 9}}
    assert used(counted, **path) == "flags"
    good = {"labels": {"labeled_bad": 0}, "examples": {"good labeled good": 9}}
    assert used(good, **path) == "known good"


def test_a_config_of_an_older_gradroute_is_read() -> None:
    config = config_of("run", {"routing": "anchored", **BOTH})
    for key in ("found", "drop", "relabel", "false_positive_rate"):
        del config["data"][key]
    assert information_text(label_information(config, {})) == "flags, known good"


def run_of(**changes: Any) -> RunResults:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    config = config_in_full("run", Made({**BOTH, **given}, {})).model_dump(mode="json")
    return RunResults("run", "routed", config, 1, 0, {})


@pytest.mark.parametrize(
    ("routing", "control", "expected"),
    [
        ("anchored", {**ONE, "data__drop": "all_but_good"}, "less"),
        ("anchored", {**ONE, "data__drop": "labeled_bad", "data__found": "f.jsonl"}, "the same"),
        ("anchored", {**ONE, "data__drop": "true_bad"}, "more"),
        ("anchored", {"routing": "anchored", "data__relabel": "random"}, "less"),
        ("anchored", {"routing": "none"}, "less"),
        ("absorb", {**ONE, "data__drop": "labeled_bad"}, "the same"),
        # Neither of the two was told what the other was.
        ("absorb", {**ONE, "data__drop": "all_but_good"}, "other"),
    ],
)
def test_which_side_was_told_more(routing: str, control: dict[str, Any], expected: str) -> None:
    found = compare_information(run_of(routing=routing), run_of(**control))
    assert found.control_used == expected
    assert found.at_most_equal == (expected in ("less", "the same"))


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_every_row_of_the_controls_uses_known_kinds(control) -> None:
    assert control.uses == "none" or set(control.uses.split(", ")) <= set(KINDS)
    assert phrase_of(control.uses)
