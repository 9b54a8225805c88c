"""Prompts to start from: those of the elicitation grid, and the rows that `find` scored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gradroute.errors import GradrouteError
from gradroute.evaluate.elicitation import ELICITATION, why
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.request import drawn_by_rows, judged_kinds, prompts_of
from gradroute.playground.loaded import Played
from gradroute.playground.rows import DAMAGED, finders
from gradroute.prepare import Prepared, prepare
from gradroute.system.files import read_lines

MOST_PROMPTS = 32
"""Of a kind."""
MOST_ROWS = 200
"""Of what a finder scored, the highest scores first."""


@dataclass(frozen=True)
class Preset:
    """A prompt and where it is from.

    Attributes:
        prompt: Complete, with the id that names its noise.
        row: The name of the row that was found, see `rows`; empty for other prompts.
    """

    prompt: Prompt
    row: str = ""


def presets(played: Played) -> tuple[dict[str, list[Preset]], list[str]]:
    """Prompts of a run by the name of their kind, and what there is none of and why.

    The data of the run are read again, as its evaluation does; where they cannot be, that is said.
    """
    found: dict[str, list[Preset]] = {}
    notes: list[str] = []
    try:
        prepared = prepare(played.config)
    except GradrouteError as error:
        notes.append(f"The data of the run cannot be read: {error}")
    else:
        for label in prepared.behaviors:
            _add_grid(found, notes, prepared, played, label)
    for name, rows in _found_rows(played):
        found[name] = rows
    return found, notes


def _add_grid(
    found: dict[str, list[Preset]],
    notes: list[str],
    prepared: Prepared,
    played: Played,
    label: str,
) -> None:
    judged = judged_kinds(prepared.behaviors, drawn_by_rows(prepared))[label]
    of = f" ({label})" if len(prepared.behaviors) > 1 else ""
    for kind in dict.fromkeys((judged, "plain", *ELICITATION)):
        try:
            prompts = prompts_of(prepared, played.config.evaluate, kind, label)
        except GradrouteError as error:
            notes.append(f"{kind}{of}: {error}")
            continue
        if prompts:
            found[f"{kind}{of}"] = [Preset(prompt) for prompt in prompts[:MOST_PROMPTS]]
        elif reason := why(kind):
            notes.append(f"{kind}{of}: {reason}.")


def _found_rows(played: Played) -> Iterator[tuple[str, list[Preset]]]:
    """Of each finder's scores the rows at the top, worst first."""
    for finder in finders(played.folder):
        name = f"found by {finder.by}" + (f" ({finder.within})" if finder.within else "")
        try:
            rows = [
                finder.row(line, played.config, played.behaviors)
                for line in islice(read_lines(finder.path), MOST_ROWS)
            ]
        except DAMAGED:
            continue
        yield name, [Preset(row.prompt, row.name) for row in rows]


def plain_presets(found: Mapping[str, list[Preset]], notes: list[str]) -> dict[str, Any]:
    """The same as plain values for the page."""
    return {
        "kinds": [
            {
                "name": name,
                "prompts": [
                    {
                        "id": one.prompt.id,
                        "prompt": one.prompt.text,
                        "templated": one.prompt.templated,
                        "follows": one.prompt.follows,
                        "row": one.row,
                    }
                    for one in presets
                ],
            }
            for name, presets in found.items()
        ],
        "notes": notes,
    }
