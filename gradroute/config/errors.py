"""Validation of data as a configuration, with one sentence for each thing that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gradroute.config.types import show
from gradroute.config.yaml import KeyPath

# What the description of the original experiment calls these settings.
ORIGINAL_NAMES = {
    "RUN_NAME": "run_name",
    "LORA_RANK": "adapters.good.rank",
    "BAD_LORA_RANK": "adapters.bad.rank",
    "CAPS_PERCENTAGE": "data.behavior_fraction",
    "LABELED_BAD_PERCENTAGE": "data.labeled_fraction",
    "MAX_STEPS": "train.max_steps",
    "LEARNING_RATE": "train.learning_rate",
}

Model = TypeVar("Model", bound=BaseModel)


class Disagreement(NamedTuple):
    """Fields that are each valid and do not fit together; the first is where it is shown."""

    fields: tuple[KeyPath, ...]
    sentence: str


class Disagreements(ValueError):
    """Raised by a model's own check, with all of them at once."""

    def __init__(self, found: Sequence[Disagreement]) -> None:
        super().__init__("; ".join(one.sentence for one in found))
        self.found = tuple(found)


@dataclass(frozen=True)
class Origin:
    """Where each value came from.

    Attributes:
        source: What messages call the file.
        lines: Line of each key in the file.
        changed: Keys that something else than the file gave, and what messages call that.
    """

    source: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    changed: Mapping[KeyPath, str] = field(default_factory=dict)

    def place(self, *paths: KeyPath) -> str:
        """What gave one of these over the file, or the file and line that the first stands on."""
        for keys, given in self.changed.items():
            if any(keys[: len(path)] == path or path[: len(keys)] == keys for path in paths):
                return given
        for length in range(len(paths[0]), 0, -1):
            if line := self.lines.get(paths[0][:length]):
                return f"{self.source}:{line}"
        return self.source


def validate_config(
    model: type[Model], data: Mapping[str, Any], origin: Origin
) -> tuple[Model | None, list[str]]:
    """The model built from `data`, or None and a sentence per problem.

    Fields are checked against each other also where others are wrong: the wrong ones are left out
    and what is then reported counts unless it involves one of them.
    """
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        broken, disagreements = _split_errors(error)
    keys = list(_dotted_keys(model, data))
    sentences = [
        f"{origin.place(path)}: {_dotted(path)}{_sentence(details, path, keys)}"
        for path, details in broken
    ]
    if broken:
        disagreements = _other_disagreements([path for path, _ in broken], model, data)
    sentences += [
        f"{origin.place(*one.fields)}: {_dotted(one.fields[0])}: {one.sentence}"
        for one in disagreements
    ]
    return None, sentences


def _split_errors(
    error: ValidationError,
) -> tuple[list[tuple[KeyPath, ErrorDetails]], list[Disagreement]]:
    broken: list[tuple[KeyPath, ErrorDetails]] = []
    disagreements: list[Disagreement] = []
    for details in error.errors(include_url=False):
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, Disagreements):
            disagreements.extend(cause.found)
        else:
            path = tuple(part for part in details["loc"] if part != "[key]")
            broken.append((path, details))
    return broken, disagreements


def _other_disagreements(
    broken: Sequence[KeyPath], model: type[BaseModel], data: Mapping[str, Any]
) -> list[Disagreement]:
    rest: dict[str, Any] = deepcopy(dict(data))
    for path in broken:
        _leave_out(rest, path)
    try:
        model.model_validate(rest)
    except ValidationError as error:
        _, found = _split_errors(error)
        return [one for one in found if not any(_involves(one, path) for path in broken)]
    return []


def _leave_out(data: dict[str, Any], path: KeyPath) -> None:
    for key in path[:-1]:
        inner = data.get(str(key))
        if not isinstance(inner, dict):
            break
        data, path = inner, path[1:]
    data.pop(str(path[0]), None)


def _involves(one: Disagreement, path: KeyPath) -> bool:
    """Whether a broken field is one of these, holds one, or is an entry right below one."""
    return any(
        name[: len(path)] == path or (path[: len(name)] == name and len(path) <= len(name) + 1)
        for name in one.fields
    )


def _sentence(details: ErrorDetails, path: KeyPath, keys: Sequence[str]) -> str:
    context, got = details.get("ctx", {}), show(details["input"])
    match details["type"]:
        case "extra_forbidden":
            return f": there is no such key; {_nearest(path, keys)}"
        case "to_be_given":
            return f" has no default: write it in the file, or add {_dotted(path)}=VALUE."
        case "missing":
            return ": this key is needed and is not there."
        case "value_error":
            return f": {context['error']}"
        case "greater_than_equal":
            return f": at least {context['ge']:g} is needed, got {got}."
        case "greater_than":
            return f": more than {context['gt']:g} is needed, got {got}."
        case "less_than_equal":
            return f": at most {context['le']:g} is needed, got {got}."
        case "less_than":
            return f": less than {context['lt']:g} is needed, got {got}."
        case "too_short":
            return ": at least one entry is needed, got none."
        case "dict_type":
            return f": a mapping is needed, got {got}."
        case _:
            return f": {details['msg']}, got {got}."


def _nearest(path: KeyPath, keys: Sequence[str]) -> str:
    """The way out of an unknown key: the key that was probably meant, or those that are there."""
    dotted, leaf, parent = _dotted(path), str(path[-1]), _dotted(path[:-1])
    if leaf in ORIGINAL_NAMES:
        return f"its name here is {ORIGINAL_NAMES[leaf]}."
    siblings = [key for key in keys if key.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(dotted, siblings, n=1, cutoff=0.7)
    near = near or [key for key in keys if key.rpartition(".")[2] == leaf][:1]
    near = near or difflib.get_close_matches(dotted, keys, n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}?"
    names = ", ".join(key.rpartition(".")[2] for key in siblings)
    return f"the keys {f'of {parent}' if parent else 'here'} are {names}."


def _dotted_keys(
    model: type[BaseModel], data: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """All keys of the model, sections included; of a mapping of sections those that `data` has."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = info.annotation
        value = data.get(name)
        below: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _dotted_keys(inner, below, f"{prefix}{name}.")
        elif get_origin(inner) is dict and isinstance(section := get_args(inner)[1], type):
            default = info.get_default(call_default_factory=True)
            for entry in below or default:
                yield from _dotted_keys(section, {}, f"{prefix}{name}.{entry}.")


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
