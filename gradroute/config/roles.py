"""The role of every configuration field: what a difference in it means for two runs.

A field carries its role beside its type, `rank: Annotated[Positive, Role.TREATMENT] = 32`. What
decides whether runs may be compared, what a resumed run may change, what a tracker is told and what
makes a measurement stale follows from these roles; no other list of fields is kept for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TypeGuard, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Role(Enum):
    """What a field decides."""

    TASK = "task"
    """What a run is about: data, base model, quantization, behavior. The same in a control."""
    TREATMENT = "treatment"
    """What a control may differ in: routing, adapters, label dials, dropped or changed labels."""
    TRAINING = "training"
    """How a run is trained: steps, rates, batches, layers, seed. The same in a control."""
    MEASURING = "measuring"
    """What a run is asked, and how. The same in a control; another value makes a number stale."""
    RESOURCE = "resource"
    """Changes no measured number: memory, disk, what else is measured, trained or shown."""
    RECORD = "record"
    """What training writes down of itself, and how often; changes no trained weight."""
    NAME = "name"
    """What a run is called, and whose control it is."""


class Cost(Enum):
    """What a field means for the time, memory and disk that a step takes, beside its role."""

    NONE = "none"
    """Nothing, or next to nothing: runs that differ in it alone take the same."""


def section_fields(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted name -> field, in order; the adapters' are named `adapters.*.rank`."""
    return dict(_fields(section, prefix))


def field_role(name: str, field: FieldInfo) -> Role:
    """The role that a field carries.

    Raises:
        TypeError: It carries none, or several; every field needs exactly one.
    """
    found = [item for item in field.metadata if isinstance(item, Role)]
    if len(found) != 1:
        roles = ", ".join(f"Role.{role.name}" for role in Role)
        raise TypeError(
            f"the configuration field {name} has {len(found)} roles, and one is needed: write its "
            f"type as Annotated[type, role], with one of {roles}."
        )
    return found[0]


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        inner = [one for one in (annotation, *get_args(annotation)) if _is_section(one)]
        if annotation not in inner:  # of adapters, the whole and each one's fields have a role
            yield f"{prefix}{name}", field
        place = f"{prefix}{name}." if annotation in inner else f"{prefix}{name}.*."
        for one in inner:
            yield from _fields(one, place)


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
