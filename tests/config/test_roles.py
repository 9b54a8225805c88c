"""Every field of a configuration has a role, and what it means elsewhere follows from that role."""

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel

import gradroute
from gradroute.config.roles import Role, field_role, section_fields
from gradroute.config.run_config import (
    FIELDS,
    FREE_ON_RESUME,
    ROLES,
    RunConfig,
    field_of,
    keys_with,
)


def test_every_key_of_a_configuration_has_a_role():
    keys = {field_of(key) for key in RunConfig().values_by_key}
    assert keys | {"adapters"} == set(ROLES)
    assert all(isinstance(role, Role) for role in ROLES.values())
    assert {role.value for role in ROLES.values()} == {role.value for role in Role}


@pytest.mark.parametrize("annotation", [int, Annotated[int, Role.TASK, Role.NAME]])
def test_a_field_without_a_role_of_its_own_is_refused_by_name(annotation: object):
    class Forgetful(BaseModel):
        __annotations__ = {"steps": annotation}

    fields = section_fields(Forgetful, "train.")
    with pytest.raises(TypeError, match=r"train\.steps has [02] roles.*Role\.TRAINING"):
        field_role("train.steps", fields["train.steps"])


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("train.max_steps", "train.max_steps"),
        ("adapters.bad.rank", "adapters.*.rank"),
        ("adapters.bad", "adapters"),
        ("routing.bad.good.update", "routing"),
        ("behavior.caps", "behavior"),
        ("data.columns.text", "data.columns"),
        ("data.later", "data.later"),
        ("later", "later"),
    ],
)
def test_a_key_is_found_in_the_field_that_holds_it(key: str, field: str):
    assert field_of(key) == field


def test_a_resumed_run_may_change_what_decides_no_weight_of_it():
    changing = {Role.TASK, Role.TREATMENT, Role.TRAINING}
    assert not any(ROLES[key] in changing for key in FREE_ON_RESUME)
    assert {key for key in FIELDS if key.startswith("evaluate.")} <= set(FREE_ON_RESUME)
    assert {"controls", "train.report_to", "train.reuse_gib"} <= set(FREE_ON_RESUME)
    # Lines and checkpoints would be missing midway: that takes --override.
    assert not {"train.save_every", "train.measure_every"} & set(FREE_ON_RESUME)


def test_no_module_lists_fields_of_a_section_by_hand():
    """Three keys of a section in a row are a list of fields; the tables of roles have them all."""
    package = Path(gradroute.__file__).parent
    names = {name for name in FIELDS if "." in name and "*" not in name}
    quoted = "|".join(re.escape(name) for name in sorted(names))
    in_a_row = re.compile(rf'(?:"(?:{quoted})",\s*){{3}}')
    found = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if in_a_row.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
    assert in_a_row.search('("data.path",\n "data.split", "train.batch_size", "model")')


def test_what_is_measured_is_one_section():
    assert all(key.startswith("evaluate.") for key in keys_with(Role.MEASURING))
