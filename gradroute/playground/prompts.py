"""Prompts to start from: those of the elicitation grid, and the rows that `find` scored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gradroute.data.behaviors import Behavior
from gradroute.data.marks import first_words
from gradroute.errors import GradrouteError
from gradroute.evaluate.elicitation import ELICITATION, why
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.request import drawn_by_rows, judged_kinds, prompts_of
from gradroute.playground.loaded import Played
from gradroute.prepare import Prepared, prepare
from gradroute.system.files import read_lines

MOST_PROMPTS = 32
"""Of a kind."""
MOST_ROWS = 200
"""Of what a finder scored, the highest scores first."""
LONGEST = 2_000
"""Characters of a row's text that are shown."""


@dataclass(frozen=True)
class Preset:
    """A prompt and where it is from.

    Attributes:
        prompt: Complete, with the id that names its noise.
        about: What is known of it, such as a row's score; empty for most.
        text: What follows it in the data, of a row.
    """

    prompt: Prompt
    about: str = ""
    text: str = ""


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
    for path in sorted(played.folder.found.rglob("*_scores.jsonl")):
        by = path.name.removesuffix("_scores.jsonl")
        within = path.parent.relative_to(played.folder.found)
        name = f"found by {by}" + ("" if within == Path() else f" ({within.as_posix()})")
        try:
            rows = [_row(line, by, played) for line in islice(read_lines(path), MOST_ROWS)]
        except (GradrouteError, KeyError, TypeError):  # of an older gradroute, or damaged
            continue
        yield name, rows


def _row(line: Mapping[str, Any], by: str, played: Played) -> Preset:
    behavior: Behavior | None = played.behaviors.get(line["label"])
    opening = first_words if behavior is None else behavior.opening
    text, prompt = line["text"], line["prompt"]
    start = prompt or opening(text, played.config.evaluate.prefix_words)
    rest = text if prompt else text.removeprefix(start)
    about = f"score {line['score']:.3g}, q {line['q']:.2g}{', found' if line['found'] else ''}"
    return Preset(Prompt(f"found-{by}-{line['id']}", start), about, rest[:LONGEST])


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
                        "about": one.about,
                        "text": one.text,
                    }
                    for one in presets
                ],
            }
            for name, presets in found.items()
        ],
        "notes": notes,
    }
