"""Rows that `find` scored: each by a name that an address and a command line can say.

adapter:story-12            the row story-12 in found/adapter_scores.jsonl
rude/new-1a2b/head:7        the row 7 in found/rude/new-1a2b/head_scores.jsonl
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig
from gradroute.data.behaviors import Behavior
from gradroute.data.examples import Example
from gradroute.data.marks import first_words
from gradroute.errors import ConfigError, GradrouteError
from gradroute.evaluate.generation import Prompt
from gradroute.playground.loaded import Played
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines

DAMAGED = (GradrouteError, AttributeError, KeyError, TypeError, ValueError)
"""What comes of scores that are damaged, or of another gradroute; such rows are passed over."""
_SCORES = "_scores.jsonl"


@dataclass(frozen=True)
class FoundRow:
    """A row that a finder scored.

    Attributes:
        name: Its name, see above.
        prompt: What to complete: its own prompt, or the first words of its text.
        example: The row as it was scored.
        about: What the finder says of it.
    """

    name: str
    prompt: Prompt
    example: Example
    about: str


@dataclass(frozen=True)
class Finder:
    """The scores of one finder.

    Attributes:
        by: Its name.
        within: The folder in `found/`; empty for none.
        path: The file, worst rows first.
    """

    by: str
    within: str
    path: Path

    @property
    def start(self) -> str:
        """How the names of its rows begin."""
        return f"{self.within}/{self.by}:" if self.within else f"{self.by}:"

    def row(
        self, line: Mapping[str, Any], config: RunConfig, behaviors: Mapping[str, Behavior]
    ) -> FoundRow:
        """The row of a line.

        Raises:
            DAMAGED: The line is no row that can be read.
        """
        behavior = behaviors.get(line["label"])
        opening = first_words if behavior is None else behavior.opening
        chat = line.get("chat", {})
        example = Example(
            line["id"],
            line["text"],
            line["prompt"],
            asks=tuple(chat["asks"]) if chat else None,
            lead=chat.get("lead"),
            context=tuple((start, end) for start, end in chat.get("context", ())),
            ends=chat.get("ends", False),
        )
        start = example.prompt or opening(example.text, config.evaluate.prefix_words)
        about = f"score {line['score']:.3g}, q {line['q']:.2g}{', found' if line['found'] else ''}"
        prompt = Prompt(f"found-{self.by}-{example.id}", start, example.asks is not None)
        return FoundRow(f"{self.start}{example.id}", prompt, example, about)


def finders(folder: RunFolder) -> Iterator[Finder]:
    """What has scored rows of a run."""
    for path in sorted(folder.found.rglob(f"*{_SCORES}")):
        within = path.parent.relative_to(folder.found).as_posix()
        yield Finder(path.name.removesuffix(_SCORES), "" if within == "." else within, path)


def find_row(
    folder: RunFolder, name: str, config: RunConfig, behaviors: Mapping[str, Behavior]
) -> FoundRow:
    """The row of a name; an id alone is enough where one finder alone has scored it.

    Raises:
        ConfigError: There is no such row, or several finders have scored it.
    """
    every = list(finders(folder))
    named = [one for one in every if name.startswith(one.start)]
    found = [row for one in named for row in _rows(one, name[len(one.start) :], config, behaviors)]
    found = found or [row for one in every for row in _rows(one, name, config, behaviors)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"run {folder.name}: several finders have scored the row {name!r:.120}; name one of "
            f"{', '.join(row.name for row in found)}."
        )
    there = ", ".join(one.start for one in every)
    told = f"the names of its rows begin with {there}" if there else "gradroute find scores rows"
    raise ConfigError(f"run {folder.name} has no row {name!r:.120} that was scored; {told}.")


def row_reader(played: Mapping[str, Played]) -> Callable[[str, str], FoundRow]:
    """What finds a row by run and name; the last ones are read once."""

    @lru_cache(maxsize=256)
    def row_of(run: str, name: str) -> FoundRow:
        one = played[run]
        return find_row(one.folder, name, one.config, one.behaviors)

    return row_of


def _rows(
    finder: Finder, wanted: str, config: RunConfig, behaviors: Mapping[str, Behavior]
) -> Iterator[FoundRow]:
    try:
        for line in read_lines(finder.path):
            if line.get("id") == wanted:
                yield finder.row(line, config, behaviors)
                return
    except DAMAGED:
        return
