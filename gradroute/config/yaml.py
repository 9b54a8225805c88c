"""A strict reader for the part of YAML that configurations need.

A plain (unquoted) scalar stays the text that was written, as a `Scalar`: whether `1e-4`, `no` or
`0.1_0.0` is a number, a flag or a text is decided by the field it is for, not by YAML 1.1's
guesses. Refused, each with its line: duplicate keys, anchors and aliases, tags, several documents,
deep nesting and more entries than a configuration can have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradroute.errors import ConfigError
from gradroute.system.terminal import first_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_ENTRIES = 2_000
"""Keys and list entries of a text; a configuration has some hundred."""

KeyPath = tuple[str | int, ...]

_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Scalar(str):
    """A plain scalar as it was written; `plain_value` says what YAML 1.2 takes it for."""

    __slots__ = ()


@dataclass(frozen=True)
class YamlText:
    """What a YAML text holds.

    Attributes:
        value: Mappings, lists, `Scalar` for plain scalars, str for quoted ones, None for null.
        lines: Path of keys and list positions -> line (from 1) on which the entry starts.
        duplicates: A sentence for each key that is given twice; the first one counts.
    """

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)


def read_yaml_file(path: Path, source: str) -> YamlText:
    """Read a YAML file of at most 1 MB; `source` is what messages call it.

    Raises:
        ConfigError: The file is missing, not a file, too large, not UTF-8 or not strict YAML.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{source}: there is no such file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{source}: this is a folder; name the YAML file in it.") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror}).") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES:,} bytes; is this the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{source}:{line}: not UTF-8 text; save the file as UTF-8.") from None
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> YamlText:
    """Parse one YAML document; `source` is what messages call it.

    Raises:
        ConfigError: The text is not YAML, or uses what this reader refuses.
    """
    import yaml

    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader), source).document()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source}:{line}: not YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {first_line(error)}.") from None
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # of an escape such as \UFFFFFFFF
        raise ConfigError(f"{source}: not YAML: {str(error)[:100]}.") from None


def plain_value(value: Any) -> Any:
    """The value with every `Scalar` in it replaced by what YAML 1.2's core schema reads.

    null, true and false, decimal integers and floats (`1e-4` is one); all else is text.
    """
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if not isinstance(value, Scalar):
        return value
    if is_null(value):
        return None
    if value in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return value.lower() == "true"
    if _INTEGER.fullmatch(value) and len(value) < 30:
        return int(value)
    return float(value) if _FLOAT.fullmatch(value) else str(value)


def is_null(value: Any) -> bool:
    """Whether the value is None or a plain scalar that YAML takes for null."""
    return value is None or (isinstance(value, Scalar) and value in _NULLS)


class _Reader:
    """Builds values from a parser's events, which come without recursion and with their lines."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self.events = events
        self.source = source
        self.result = YamlText(None)
        self.entries = 0

    def document(self) -> YamlText:
        import yaml

        value, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refusal(event, "a second document begins here; only one is allowed.")
                value = self.node(next(self.events), ())
        return YamlText(value, self.result.lines, self.result.duplicates)

    def refusal(self, event: Any, why: str) -> ConfigError:
        return ConfigError(f"{self.source}:{_line(event)}: {why}")

    def node(self, event: Any, path: KeyPath) -> Any:
        import yaml

        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise self.refusal(event, f"more than {MAX_ENTRIES:,} entries; is this a config?")
        self.result.lines.setdefault(path, _line(event))
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self.refusal(event, "anchors and aliases are not supported; write the value out.")
        if event.tag is not None:
            raise self.refusal(event, f"the tag {event.tag!r} is not supported; remove it.")
        if len(path) > MAX_DEPTH:
            raise self.refusal(event, f"nested deeper than {MAX_DEPTH} levels.")
        if isinstance(event, yaml.ScalarEvent):
            scalar = str(event.value) if event.style else Scalar(event.value)
            return None if is_null(scalar) else scalar
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path)
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*path, len(items))))
        return items

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        import yaml

        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                raise self.refusal(event, "a key must be a plain text.")
            here = (*path, str(event.value))
            line = _line(event)
            if event.value in mapping:
                first, dotted = self.result.lines[here], ".".join(map(str, here))
                self.result.duplicates.append(
                    f"{self.source}:{line}: {dotted} is given twice, first on line {first}; "
                    "keep one."
                )
                self.node(next(self.events), (*path, "(twice)"))
                continue
            self.result.lines[here] = line
            mapping[str(event.value)] = self.node(next(self.events), here)
        return mapping


def _line(event: Any) -> int:
    return event.start_mark.line + 1
