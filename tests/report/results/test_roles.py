from collections.abc import Mapping

import pytest
from report.fabricated import REFERENCE, config_of

from gradroute.config.run_config import field_of
from gradroute.report.results.roles import (
    Config,
    confounders,
    facts_of,
    not_comparable,
    role_of,
)
from gradroute.report.results.roles import find_controls as find_by_facts

CONFIGS = {name: config_of(name, made.changes) for name, made in REFERENCE.items()}
TABLE = {"bad": {"good": "freeze", "bad": "update"}, "good": {"good": "update", "bad": "update"}}


def find_controls(run: str, configs: Mapping[str, Config]) -> dict[str, str]:
    return find_by_facts(run, {name: facts_of(config) for name, config in configs.items()})


@pytest.mark.parametrize(
    ("changes", "role"),
    [
        ({}, "routed"),
        ({"routing": TABLE}, "routed"),
        ({"routing": {**TABLE, "bad": TABLE["good"]}}, "unrouted"),
        ({"routing": "none"}, "unrouted"),
        ({"routing": "none", "data.behavior_fraction": 0.0}, "baseline"),
        ({"routing": "none", "adapters": {"good": {}, "bad": None}}, "other"),
        ({"routing": "none", "data.drop": "labeled_bad"}, "filter"),
        ({"routing": "none", "data.drop": "true_bad", "adapters": {"good": {}}}, "oracle"),
        ({"data.relabel": "random"}, "random_labels"),
        ({"data.relabel": "unlabel_bad"}, "anchors_only"),
        ({"routing": "none", "data.relabel": "random"}, "unrouted"),
        ({"routing": "none", "data.drop": "labeled_bad", "train.kl_good": 0.3}, "kl_good"),
        ({"routing": "none", "data.drop": "labeled_bad", "train.teacher": "r@full"}, "distill"),
        ({"data.relabel": "random", "train.kl_good": 0.3}, "random_labels"),
    ],
)
def test_a_role_follows_from_the_configuration(changes: dict, role: str) -> None:
    assert role_of(config_of("any", changes)) == role


def test_names_mean_nothing() -> None:
    roles = {name: role_of(config) for name, config in CONFIGS.items()}
    swapped = {"baseline": CONFIGS["0.1_1.0"], "0.1_0.5": CONFIGS["baseline"]}
    assert list(roles.values()) == ["baseline", "unrouted", "routed", "routed", "filter"]
    assert find_controls("baseline", swapped)["baseline"] == "0.1_0.5"


def test_a_run_is_compared_with_its_controls() -> None:
    assert find_controls("0.1_0.5", CONFIGS) == {
        "baseline": "baseline", "unrouted": "0.1_0.0", "filter": "filter_0.5",
    }  # fmt: skip


def test_every_control_is_found_by_what_was_done_in_it() -> None:
    half = {"data.labeled_fraction": 0.5, "data.good_labeled_fraction": 0.3}
    one = {"routing": "none", "adapters": {"good": {"rank": 64}}}
    configs = {
        "run": config_of("run", half),
        "o": config_of("o", {**half, **one, "data.drop": "true_bad"}),
        "f": config_of("f", {**half, **one, "data.drop": "labeled_bad"}),
        "r": config_of("r", {**half, "data.relabel": "random"}),
        "a": config_of("a", {**half, "data.relabel": "unlabel_bad"}),
        "n": config_of("n", {**half, "routing": "none"}),
    }
    assert find_controls("run", configs) == {
        "unrouted": "n", "filter": "f", "oracle": "o", "random_labels": "r", "anchors_only": "a",
    }  # fmt: skip


def test_a_control_made_for_the_run_goes_before_one_that_is_more_alike() -> None:
    alike = {"data.labeled_fraction": 0.5, "routing": "none"}
    configs = {
        "run": config_of("run", {"data.labeled_fraction": 0.5}),
        "a": config_of("a", alike),
        "b": config_of("b", {**alike, "control_of": "run", "control": "none", "layers": "all"}),
        "c": config_of("c", {**alike, "control_of": "other", "control": "none"}),
    }
    assert find_controls("run", configs)["unrouted"] == "b"


def test_a_filter_with_other_labels_is_no_control() -> None:
    assert find_controls("0.1_1.0", CONFIGS).get("filter") is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other/model"},
        {"behavior": "spanish"},
        {"data.path": "my.jsonl"},
        {"data.columns": {"text": "story"}},
        {"data.eval_split": "test[:100]"},
        {"data.group": "author"},
        {"quantize": "4bit"},
        {"gguf_file": "small.gguf"},
        {"start_adapter": "~/adapter"},
        {"evaluate.seed": 7},
        {"evaluate.max_new_tokens": 8},
        {"evaluate.score_thoughts": True},
    ],
)
def test_a_run_of_another_task_or_other_questions_is_no_control(change: dict) -> None:
    configs = CONFIGS | {"0.1_0.5": config_of("0.1_0.5", {"data.labeled_fraction": 0.5, **change})}
    assert find_controls("0.1_0.5", configs) == {}
    facts = {name: facts_of(config) for name, config in configs.items()}
    key = next(iter(change))
    told = not_comparable("0.1_0.5", facts)
    assert [one[:2] for one in told] == [
        ("baseline", "baseline"), ("0.1_0.0", "unrouted"), ("filter_0.5", "filter"),
    ]  # fmt: skip
    assert all({field_of(field) for field in one.fields} == {key} for one in told)


def test_a_run_with_its_controls_has_none_that_cannot_be_compared() -> None:
    near = config_of("near", {**REFERENCE["filter_0.5"].changes, "quantize": "4bit"})
    facts = {name: facts_of(config) for name, config in {**CONFIGS, "near": near}.items()}
    assert not_comparable("0.1_0.5", facts) == []
    assert find_by_facts("0.1_0.5", facts)["filter"] == "filter_0.5"


def test_a_run_that_would_be_the_control_of_this_seed_is_named_beside_that_of_another() -> None:
    changes = dict(REFERENCE["filter_0.5"].changes)
    configs = {
        "run": config_of("run", {"data.labeled_fraction": 0.5}),
        "other": config_of("other", {**changes, "seed": 1}),
        "near": config_of("near", {**changes, "quantize": "4bit"}),
    }
    facts = {name: facts_of(config) for name, config in configs.items()}
    assert not_comparable("run", facts) == [("near", "filter", ("quantize",))]


def test_several_behaviors_are_a_task_of_their_own() -> None:
    two = {"caps": "caps", "signature": "signature"}
    table = {**TABLE, "caps": TABLE["bad"], "signature": TABLE["bad"]}
    configs = {
        "run": config_of("run", {"behavior": two, "routing": table}),
        "same": config_of("same", {"behavior": two, "routing": "none"}),
        "third": config_of(
            "third",
            {"behavior": {**two, "spanish": "spanish"}, "routing": "none", "control_of": "run"},
        ),
    }
    assert find_controls("run", configs)["unrouted"] == "same"
    del configs["same"]
    assert find_controls("run", configs).get("unrouted") is None


@pytest.mark.parametrize(
    "key", ["data.template", "data.group", "evaluate.score_thoughts", "quantize"]
)
def test_a_key_that_an_older_run_does_not_have_is_its_default(key: str) -> None:
    older = dict(config_of("0.1_0.5", REFERENCE["0.1_0.5"].changes))
    section, _, last = key.rpartition(".")
    if section:
        older[section] = {name: value for name, value in older[section].items() if name != last}
    else:
        del older[key]
    for name in ("weight_decay", "rslora"):
        older["adapters"] = {
            adapter: {k: v for k, v in one.items() if k != name}
            for adapter, one in older["adapters"].items()
        }
    assert find_controls("0.1_0.5", {**CONFIGS, "0.1_0.5": older})["filter"] == "filter_0.5"
    assert confounders(older, CONFIGS["filter_0.5"]) == []
    assert facts_of(older).leaves == facts_of(CONFIGS["0.1_0.5"]).leaves


def test_of_several_controls_the_one_of_the_same_seed_is_taken() -> None:
    baseline = dict(REFERENCE["baseline"].changes)
    configs = CONFIGS | {
        "a": config_of("a", {**baseline, "seed": 1}),
        "b": config_of("b", {**baseline, "seed": 2, "train.max_steps": 50}),
    }
    for seed, wanted in ((0, "baseline"), (1, "a"), (2, "b")):
        configs["run"] = config_of("run", {"seed": seed})
        assert find_controls("run", configs)["baseline"] == wanted


def test_what_a_control_should_share_is_named_where_it_differs() -> None:
    control = config_of("c", {"routing": "none", "train.max_steps": 50, "seed": 3})
    assert confounders(config_of("r", {"data.labeled_fraction": 1.0}), control) == [
        "seed",
        "train.max_steps",
    ]
    assert confounders(CONFIGS["0.1_0.5"], CONFIGS["filter_0.5"]) == []


def test_a_limit_of_disk_and_what_is_written_are_no_difference_to_a_control() -> None:
    control = config_of("c", {"routing": "none", "train.reuse_gib": 1.0, "train.save_every": 7})
    assert confounders(config_of("r", {"data.labeled_fraction": 1.0}), control) == []


def test_a_setting_that_is_not_known_is_named_as_a_difference() -> None:
    assert confounders(CONFIGS["baseline"], {**CONFIGS["baseline"], "later": 1}) == ["later"]
