"""The types of configuration fields, each with its rule from a YAML scalar to its value.

A `Scalar` is a plain scalar of a file, or the whole right side of `key=value` on the command
line. A text takes it verbatim, a number reads it as a number, a list reads it as YAML. Values
from Python are taken as they are: no text becomes a number, no flag a count.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from gradroute.config.controls import TRAINABLE
from gradroute.config.yaml import Scalar, is_null, parse_yaml, plain_value
from gradroute.runs.former_names import FORMER_VALUES
from gradroute.system.secrets import redact, secret_in, under_home

# Stands for a value that a recipe leaves to its user, as in OmegaConf.
TO_BE_GIVEN = "???"

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADAPTER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
# What Windows takes for a device in any folder, whatever follows after a dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# `full` and `base` are ablation modes; PEFT gives `default` a meaning of its own.
_RESERVED_NAMES = ("full", "base", "default", "all")


def show(value: Any) -> str:
    """The value as a message names it: short, without control characters and without secrets."""
    if is_null(value):
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    # Before it is cut: half a secret is not found any more.
    text = repr(redact(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def from_flow(value: Any) -> Any:
    """Read a scalar that starts like a YAML list or mapping; anything else is left as it is.

    Raises:
        ConfigError: It starts like one and is none.
    """
    if not isinstance(value, Scalar) or not value.lstrip().startswith(("[", "{")):
        return value
    text = parse_yaml(value, "the value")
    if text.duplicates:
        raise ValueError(text.duplicates[0])
    return text.value


def _none_if_null(value: Any) -> Any:
    return None if is_null(value) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is needed, got {show(value)}; put it in quotes if it is one.")
    if value == TO_BE_GIVEN:
        raise PydanticCustomError("to_be_given", "to be given")
    if not value.strip():
        raise ValueError("a text is needed, got an empty one.")
    if secret := secret_in(value):
        raise ValueError(
            f"{secret} is part of it, and a configuration is written to files that are shared. A "
            f"token is read from HF_TOKEN; write the address without the part before its @."
        )
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
        raise ValueError(f"control characters and line breaks are refused, got {show(value)}.")
    return str(value)


def _number(value: Any) -> float:
    number = plain_value(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"a number is needed, got {show(value)}.")
    return float(number)


def _whole(value: Any) -> int:
    number = plain_value(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"a whole number is needed, got {show(value)}.")
    return number


def _run_name(value: str) -> str:
    if not _RUN_NAME.fullmatch(value):
        raise ValueError(
            f"a run's name is 1 to 64 letters, digits, dots, dashes or underscores and starts "
            f"with a letter or digit (it becomes a folder), got {show(value)}."
        )
    if value.endswith(".") or _DEVICE.fullmatch(value):
        raise ValueError(
            f"a run's name becomes a folder, and {show(value)} is not a valid folder name on "
            f"Windows: it ends with a dot or names a device."
        )
    return value


def _adapter_name(value: str) -> str:
    if not _ADAPTER_NAME.fullmatch(value) or value in _RESERVED_NAMES:
        raise ValueError(
            "an adapter's name is a letter, then up to 31 letters, digits or underscores, and none "
            f"of {', '.join(_RESERVED_NAMES)}; got {show(value)}."
        )
    return value


def _flag(value: Any) -> bool:
    flag = plain_value(value)
    if not isinstance(flag, bool):
        raise ValueError(f"true or false is needed, got {show(value)}.")
    return flag


def _names(value: Any) -> dict[str, str] | None:
    """A mapping of texts; a key is what stands in the file, so that `0` and `null` are texts."""
    value = from_flow(value)
    if is_null(value):
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError(f"a mapping such as {{a: b}} is needed, got {show(value)}.")
    keys = {None: "null", True: "true", False: "false"}
    return {keys.get(key, str(key)): _text(name) for key, name in value.items()}


def _behaviors(value: Any) -> str | dict[str, str]:
    value = from_flow(value)
    if not isinstance(value, dict):
        return _text(value)
    found = _names(value) or {}
    for label in found:
        if label in ("good", "unlabeled"):
            raise ValueError(f"{show(label)} is the label of examples without any behavior.")
    if list(found) == ["bad"]:  # that is what a single one is
        return found["bad"]
    return {_adapter_name(label): name for label, name in found.items()}


def _one_of(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        value = FORMER_VALUES.get(value, value) if isinstance(value, str) else value
        if value not in names:
            raise ValueError(f"one of {', '.join(names)} is needed, got {show(value)}.")
        return str(value)

    return check


def _controls(value: Any) -> list[str] | None:
    if is_null(value):
        return None
    controls = _texts(value)
    for control in controls:
        if control not in TRAINABLE:
            raise ValueError(f"one of {', '.join(TRAINABLE)} is needed, got {show(control)}.")
    if len(set(controls)) < len(controls):
        raise ValueError("a control is given twice.")
    return controls


def _texts(value: Any) -> list[str]:
    value = from_flow(value)
    if not isinstance(value, list) or not value:
        raise ValueError(f"a list such as [a, b] is needed, got {show(value)}.")
    return [_text(item) for item in value]


def _modes(value: Any) -> list[str] | None:
    return None if is_null(value) else _texts(value)


def _targets(value: Any) -> str | list[str]:
    value = from_flow(value)
    return _text(value) if isinstance(value, str) else _texts(value)


def _layers(value: Any) -> str | list[int]:
    value = from_flow(value)
    if isinstance(value, str) and value in ("last-half", "all"):
        return str(value)
    if isinstance(value, list | tuple) and len(value) == 2:
        first, end = (_whole(item) for item in value)
        if 0 <= first < end:
            return [first, end]
    raise ValueError(
        "last-half, all, or [first, end] with 0 <= first < end is needed "
        f"(end itself is left out), got {plain_value(value)!r:.60}."
    )


def _routing(value: Any) -> str | dict[str, dict[str, str | dict[str, float]]]:
    """Check the shape of a routing table; whether it fits the adapters is checked later."""
    value = from_flow(value)
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, dict) or not value:
        raise ValueError(
            "the name of a table, or a table {label: {adapter: route}}, is needed, "
            f"got {show(value)}."
        )
    for label, row in value.items():
        if not isinstance(row, dict):
            raise ValueError(
                f"the row {label!r} must give a route per adapter, as in "
                f"{{good: freeze, bad: update}}; got {show(row)}."
            )
    return {
        _text(label): {str(adapter): _route(route) for adapter, route in row.items()}
        for label, row in value.items()
    }


def _route(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _number(weight) for name, weight in value.items()}
    return str(value) if isinstance(value, str) else plain_value(value)


Text = Annotated[str, BeforeValidator(_text)]
OptionalText = Annotated[Text | None, BeforeValidator(_none_if_null)]
# A file, a folder or a name on the hub; one in the home folder is kept as `~/...`.
Place = Annotated[Text, AfterValidator(under_home)]
OptionalPlace = Annotated[Place | None, BeforeValidator(_none_if_null)]
RunName = Annotated[Text, AfterValidator(_run_name)]
AdapterName = Annotated[str, AfterValidator(_adapter_name)]

Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
# A token and the one it predicts.
Length = Annotated[int, BeforeValidator(_whole), Field(ge=2)]
# torch's generators take 64 bits; a run multiplies its seed by a million to keep steps apart.
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**32)]

OptionalSeed = Annotated[Seed | None, BeforeValidator(_none_if_null)]

Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Above0 = Annotated[float, BeforeValidator(_number), Field(gt=0)]
OptionalAbove0 = Annotated[Above0 | None, BeforeValidator(_none_if_null)]
TopP = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)]
Dropout = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]

LossMean = Annotated[Literal["token", "example"], BeforeValidator(_one_of("token", "example"))]
Parallel = Annotated[
    Literal["auto", "none", "ddp", "fsdp2"],
    BeforeValidator(_one_of("auto", "none", "ddp", "fsdp2")),
]
LowRankDtype = Annotated[Literal["fp32", "bf16"], BeforeValidator(_one_of("fp32", "bf16"))]
Drop = Annotated[
    Literal["none", "labeled_bad", "true_bad", "all_but_good", "all_but_bad"],
    BeforeValidator(_one_of("none", "labeled_bad", "true_bad", "all_but_good", "all_but_bad")),
]
Inoculation = Annotated[
    Literal["none", "labeled_bad", "all"], BeforeValidator(_one_of("none", "labeled_bad", "all"))
]
Relabel = Annotated[
    Literal["none", "random", "unlabel_bad"],
    BeforeValidator(_one_of("none", "random", "unlabel_bad")),
]
Flag = Annotated[bool, BeforeValidator(_flag)]
Names = Annotated[
    dict[str, str] | None, PlainValidator(_names, json_schema_input_type=dict[str, str] | None)
]
Behaviors = Annotated[
    str | dict[str, str], PlainValidator(_behaviors, json_schema_input_type=str | dict[str, str])
]
Quantize = Annotated[
    Literal["none", "8bit", "4bit"], BeforeValidator(_one_of("none", "8bit", "4bit"))
]
ReportTo = Annotated[
    Literal["none", "tensorboard", "wandb"],
    BeforeValidator(_one_of("none", "tensorboard", "wandb")),
]
OnBadRow = Annotated[Literal["fail", "skip"], BeforeValidator(_one_of("fail", "skip"))]
OnConflict = Annotated[
    Literal["refuse", "majority", "unlabeled"],
    BeforeValidator(_one_of("refuse", "majority", "unlabeled")),
]
SpanUnit = Annotated[
    Literal["code_points", "utf16", "bytes"],
    BeforeValidator(_one_of("code_points", "utf16", "bytes")),
]
Template = Annotated[Literal["auto", "none"], BeforeValidator(_one_of("auto", "none"))]
Controls = Annotated[
    list[str] | None, PlainValidator(_controls, json_schema_input_type=list[str] | None)
]
Modes = Annotated[list[str] | None, PlainValidator(_modes, json_schema_input_type=list[str] | None)]
Targets = Annotated[
    str | list[str], PlainValidator(_targets, json_schema_input_type=str | list[str])
]
Layers = Annotated[
    str | list[int],
    PlainValidator(_layers, json_schema_input_type=Literal["last-half", "all"] | tuple[int, int]),
]
Routing = Annotated[
    str | dict[str, dict[str, str | dict[str, float]]],
    PlainValidator(
        _routing,
        json_schema_input_type=str | dict[str, dict[str, str | dict[Literal["update"], float]]],
    ),
]
