"""What the page's address says after its #, and a request's body: the state of the playground.

    prompt=Once+upon&c=full&c=bad_ablated&c=good=1,bad=0.5@other&seed=0

A column is a mode of `AblationMode.parse`, with `@` and a run where it is not of the first one. The
prompt's `id` names its noise, see `Prompt`; without one it is the prompt itself, as in `sample`.
With `chat=1` the prompt is what a user says, and the chat template writes the rest. `row` in place
of a prompt names a row that `find` scored, see `rows`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from gradroute.config.sections import EvaluateConfig
from gradroute.errors import ConfigError
from gradroute.evaluate.generation import Prompt
from gradroute.playground.rows import FoundRow
from gradroute.routing.policy import AblationMode, named_mode, shipped_mode
from gradroute.routing.tables import nearest

FEWEST, MOST = 2, 4
"""Columns."""
LOW, HIGH = -1.0, 2.0
"""The scales that a slider reaches."""
MOST_TOKENS = 1024
"""New tokens of a completion."""
MOST_FIELDS = 64
_OF_A_PROMPT = ("prompt", "id", "templated", "follows")
_KEYS = (*_OF_A_PROMPT, "chat", "row", "c", "seed", "temperature", "top_p", "tokens")
_OF_THE_PAGE = ("numbers",)  # what only the page reads


@dataclass(frozen=True)
class Column:
    """One column of the page.

    Attributes:
        run: Name of the run.
        mode: The scale of each of its adapters.
    """

    run: str
    mode: AblationMode


@dataclass(frozen=True)
class Asked:
    """A request: a prompt, and what is to be written after it.

    Attributes:
        prompt: What is completed.
        columns: In the order of the page.
        seed: Of the noise.
        temperature: See `generate_modes`, as for the others.
        top_p: See there.
        max_new_tokens: See there.
        chat: What is typed, where the chat template is to write the prompt; else None.
        row: The row that was found whose prompt it is; else None.
    """

    prompt: Prompt
    columns: tuple[Column, ...]
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    chat: str | None = None
    row: FoundRow | None = None


def read_asked(
    text: str,
    adapters: Mapping[str, Sequence[str]],
    settings: EvaluateConfig,
    labels: Sequence[str],
    row_of: Callable[[str, str], FoundRow],
) -> Asked:
    """Read a request.

    Args:
        text: Fields as an address writes them.
        adapters: Run -> its adapters; the first run is the one that a column without `@` is of.
        settings: What is taken for fields that are not there.
        labels: Those of the first run's behaviors.
        row_of: Run and name -> the row that was found.

    Raises:
        ConfigError: A field is unknown or cannot be used.
    """
    fields, columns = _fields(text, adapters)
    if not columns:
        columns = _first_columns(adapters, labels)
    if not FEWEST <= len(columns) <= MOST:
        raise ConfigError(
            f"the address has {len(columns)} column{'s' if len(columns) > 1 else ''}; from "
            f"{FEWEST} to {MOST} are possible."
        )
    row = row_of(columns[0].run, fields["row"]) if "row" in fields else None
    prompt = _prompt(fields) if row is None else row.prompt
    chat = prompt.text if fields.get("chat") == "1" else None
    if chat is not None and prompt.templated:
        raise ConfigError("the prompt has the text of the chat template already; leave out chat.")
    return Asked(
        prompt,
        tuple(columns),
        _whole(fields, "seed", settings.seed, 0, 2**53),
        _number(fields, "temperature", settings.temperature, 0.0, 10.0),
        _number(fields, "top_p", settings.top_p, 1e-6, 1.0),
        _whole(fields, "tokens", settings.max_new_tokens, 1, MOST_TOKENS),
        chat,
        row,
    )


def _fields(
    text: str, adapters: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], list[Column]]:
    """The fields of an address, each known and there once, and its columns."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise ConfigError(f"the address cannot be read: {error}.") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name not in (*_KEYS, *_OF_THE_PAGE):
            raise ConfigError(
                f"the address has {name!r:.60}, which nothing reads{nearest(name, _KEYS)}; "
                f"it may have {', '.join(_KEYS)}."
            )
        if name in fields and name != "c":
            raise ConfigError(f"the address has {name!r} twice.")
        fields[name] = value
    given = [name for name in _OF_A_PROMPT if name in fields]
    if "row" in fields and given:
        raise ConfigError(f"the address has row and {given[0]}; the row says which prompt it is.")
    return fields, [read_column(value, adapters) for name, value in pairs if name == "c"]


def _prompt(fields: Mapping[str, str]) -> Prompt:
    text = fields.get("prompt", "")
    templated = fields.get("templated", "") == "1"
    return Prompt(fields.get("id", text), text, templated, fields.get("follows", Prompt.follows))


def read_column(text: str, adapters: Mapping[str, Sequence[str]]) -> Column:
    """Read a column such as `full` or `good=1,bad=0.5@run`.

    Raises:
        ConfigError: The run, the mode or an adapter is unknown, or a scale is out of reach.
    """
    told, _, run = text.partition("@")
    run = run or next(iter(adapters))
    if run not in adapters:
        raise ConfigError(
            f"the column {text!r:.120} is of the run {run!r:.60}, which is not open"
            f"{nearest(run, list(adapters))}; open are {', '.join(adapters)}."
        )
    try:
        mode = AblationMode.parse(told, adapters[run])
    except ConfigError as error:
        raise ConfigError(f"the column {text!r:.120}: {error}") from error
    for adapter, scale in mode.scales.items():
        if not LOW <= scale <= HIGH:
            raise ConfigError(
                f"the column {text!r:.120} has {adapter} at {scale:g}; scales from {LOW:g} to "
                f"{HIGH:g} are possible."
            )
    # Adding 0 makes -0 a 0; one name for equal scales, however they were written.
    return Column(run, named_mode({name: scale + 0.0 for name, scale in mode.scales.items()}))


def plain_asked(asked: Asked) -> dict[str, Any]:
    """A request as plain values, from which the page sets its controls."""
    return {
        "prompt": asked.prompt.text if asked.chat is None else asked.chat,
        "chat": asked.chat is not None,
        "row": "" if asked.row is None else asked.row.name,
        "id": asked.prompt.id,
        "templated": asked.prompt.templated,
        "follows": asked.prompt.follows,
        "columns": [
            {"run": column.run, "scales": dict(column.mode.scales)} for column in asked.columns
        ],
        "seed": asked.seed,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "tokens": asked.max_new_tokens,
    }


def _first_columns(adapters: Mapping[str, Sequence[str]], labels: Sequence[str]) -> list[Column]:
    """Where nothing is asked for: all adapters, and what is shipped, or the base."""
    run, own = next(iter(adapters.items()))
    full = AblationMode.parse("full", own)
    less = shipped_mode(own, labels) or AblationMode.parse("base", own)
    return [Column(run, full), Column(run, less)]


def _number(
    fields: Mapping[str, str], name: str, default: float, least: float, most: float
) -> float:
    text = fields.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ConfigError(f"{name} is {text!r:.40}; a number from {least:g} to {most:g} is needed.")
    return number


def _whole(fields: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = fields.get(name, "")
    if not text:
        return min(default, most)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not least <= number <= most:
        raise ConfigError(
            f"{name} is {text!r:.40}; a whole number from {least} to {most} is needed."
        )
    return number
