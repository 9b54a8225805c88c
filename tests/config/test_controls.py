"""The table of controls says what each one is; whoever needs that reads it there."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gradroute.config.controls import BY_NAME, BY_ROLE, CONTROLS, RUN_ROLES, TRAINABLE, Control
from gradroute.config.run_config import FIELDS, find_config, load_config
from gradroute.experiments.controls import control_configs
from gradroute.experiments.inoculation import STARTS
from gradroute.report.results.label_information import information_text, label_information
from gradroute.report.results.roles import role_of
from gradroute.routing.policy import NAMED_POLICIES, RoutingPolicy

DOCS = Path(__file__).parents[2] / "docs" / "howto" / "controls.md"


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_run_that_is_trained_as_a_control_is_read_as_that_control(name: str):
    given = [f"controls=[{name}]", "data.labeled_fraction=0.5", "data.null_fraction=0.2"]
    run = load_config(find_config("caps"), given)
    (config,) = control_configs(run)
    assert role_of(config.model_dump()) == BY_NAME[name].role
    assert role_of(run.model_dump()) == "routed"
    told = information_text(label_information(config.model_dump(), {}))
    assert told == BY_NAME[name].uses
    # It was shown what its row asks for, so that a report finds it.
    for key in BY_NAME[name].shown_alike:
        section, _, field = key.partition(".")
        assert getattr(getattr(run, section), field) == getattr(getattr(config, section), field)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_row_names_what_there_is(control: Control):
    assert {f"data.{key}" for key in control.data} | {*control.shown_alike} <= set(FIELDS)
    if isinstance(control.routing, Mapping):
        assert RoutingPolicy.parse({"bad": control.routing}, ["good", "bad"])
    else:
        assert control.routing is None or control.routing in NAMED_POLICIES
    assert control.start in ("", *STARTS)
    assert not control.trains or BY_NAME[control.trains].role == control.role
    words = {"table": "t", "labels": "l", "behavior": "b", "adapters": 2}
    assert control.figure.format(**words)
    assert control.mode in ("full", "bad_ablated")
    # One adapter has nothing to ablate.
    assert not (control.one_adapter and control.mode != "full")


def test_controls_of_one_role_are_modes_of_one_run():
    assert len(BY_NAME) == len(CONTROLS)
    assert tuple(BY_ROLE[role].role for role in RUN_ROLES) == RUN_ROLES
    for control in CONTROLS:
        first = BY_ROLE[control.role]
        assert (control.routing, control.data, control.shown_alike, control.trains) == (
            first.routing, first.data, first.shown_alike, first.trains,
        )  # fmt: skip


def test_the_page_on_controls_says_what_the_table_says():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    told = {row[0].strip("`"): (row[2], row[4].strip("`")) for row in rows}
    assert told == {name: (BY_NAME[name].uses, BY_NAME[name].mode) for name in TRAINABLE}
