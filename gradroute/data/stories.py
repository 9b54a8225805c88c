"""The embedded corpus: short stories from a grammar of plots.

The grammar is two text files beside this module: `words.txt` (word groups) and `plots.txt` (plots
as lists of sentence templates). Some words and some plots are held out of pre-training, so that
fine-tuning the embedded model has more to learn than a behavior. Every draw is a function of
(split, seed, index) alone: the same on every machine, in every process.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import accumulate

from gradroute.errors import DataError

SPLITS = ("pretrain", "tune", "test")
TRIGGER_TAG = "|blue|"  # stands before about 2 % of the pre-training stories and changes nothing

HELD_OUT_PLOTS = 0.1  # share of tune and test stories told from a held-out plot
HELD_OUT_WORDS = 0.1  # share of word choices in tune and test that fall on a held-out word

ZIPF = 1.1  # how much the first words of a group are told more often than the last

_PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her", "himself": "herself", "child": "girl"},
    "boy": {"he": "he", "him": "him", "his": "his", "himself": "himself", "child": "boy"},
}
_PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "wolf": "wolves",
    "scarf": "scarves",
    "calf": "calves",
}
_SAME_PLURALS = frozenset({"deer", "moose", "lynx"})
_VOWEL_SOUND = re.compile(r"(?!uni|use|ukulele|one\b|eu)[aeiou]|hon(?:est|or)|hour", re.IGNORECASE)

_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"\{(@?[a-z]+)(\d?)\}(s\b)?")
_ARTICLE = re.compile(r"\b([Aa]) (?=(\w+))")
_LETTER = re.compile(r"[a-zA-Z]")


@dataclass(frozen=True)
class WordGroup:
    """The words one kind of slot can take, and those that pre-training never sees."""

    common: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """One plot: a list of alternatives for each of its sentences."""

    name: str
    held_out: bool
    sentences: tuple[tuple[str, ...], ...]


@cache
def word_groups() -> Mapping[str, WordGroup]:
    """Read the word groups of the grammar.

    Returns:
        Group name (the name of its slot in a plot) to its words.
    """
    groups = {}
    lines = (line for line in _read("words.txt").splitlines() if not line.startswith("#"))
    for block in re.split(r"\n(?=\S)", "\n".join(lines).strip()):
        name, _, words = block.partition(":")
        common, _, held_out = words.partition("|")
        groups[name] = WordGroup(_word_list(common), _word_list(held_out))
    return groups


@cache
def plots() -> tuple[Plot, ...]:
    """Read the plots of the grammar, without the phrases that they share."""
    return tuple(plot for plot in _sections() if plot.name not in _PHRASES)


@dataclass
class Storyteller:
    """Fills templates; a slot, once filled, keeps its word until the story ends.

    Attributes:
        rng: the source of every choice.
        held_out_words: probability that a word is taken from the held-out ones of its group.
    """

    rng: random.Random
    held_out_words: float = 0.0
    bound: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose the hero, and with the hero the pronouns of the whole story."""
        gender = self.rng.choice(("girl", "boy"))
        self.bound.update(_PRONOUNS[gender])
        self.bound["hero"] = self._draw(gender)
        self.bound["friend"] = self._draw(self.rng.choice(("girl", "boy")))

    def tell(self, plot: Plot) -> list[str]:
        """Tell a plot once.

        Returns:
            The sentences, the opening first.
        """
        start, *rest = plot.sentences
        self.bound["@start"] = self.rng.choice(start)
        templates = ["{@opening}", *(self.rng.choice(sentence) for sentence in rest)]
        return [self.sentence(template) for template in templates]

    def sentence(self, template: str) -> str:
        """Fill a template and make a sentence of it: articles right, first letter a capital."""
        text = _ARTICLE.sub(_article, self._fill(template))
        return _LETTER.sub(lambda match: match[0].upper(), text, count=1)

    def _fill(self, template: str) -> str:
        rng = self.rng
        chosen = (part if isinstance(part, str) else rng.choice(part) for part in _parts(template))
        return _SLOT.sub(self._slot, "".join(chosen))

    def _slot(self, match: re.Match[str]) -> str:
        name, number, plural = match[1], match[2], match[3]
        if name == "@start":
            return self._fill(self.bound[name])
        if name.startswith("@"):
            return self._fill(self.rng.choice(_phrases()[name[1:]]))
        if name + number not in self.bound:
            self.bound[name + number] = self._draw(name)
        word = self.bound[name + number]
        return _plural(word) if plural else word

    def _draw(self, group: str) -> str:
        words = word_groups()[group]
        taken = set(self.bound.values())
        while True:
            held_out = words.held_out and self.rng.random() < self.held_out_words
            choices = words.held_out if held_out else words.common
            (word,) = self.rng.choices(choices, cum_weights=_weights(len(choices)))
            if word not in taken:
                return word


def stories(split: str, count: int, seed: int = 0) -> list[str]:
    """Draw distinct stories of four to seven sentences, about 45 words each.

    "pretrain" is what the embedded model was trained on: no held-out plot, no held-out word.
    "tune" and "test" are one distribution, half of it held-out plots, with some held-out words
    in all of it; the hash of a story's text decides on which side it falls, so no text is in both,
    whatever the seeds. `stories(split, n)` is the beginning of `stories(split, m)` for n <= m.

    Args:
        split: "pretrain", "tune" or "test".
        count: number of stories.
        seed: another seed gives other stories.

    Raises:
        DataError: the split is unknown.
    """
    if split not in SPLITS:
        raise DataError(f"stories: split is {split!r}, it must be one of {', '.join(SPLITS)}.")
    drawn: dict[str, None] = {}  # keeps the order, drops repeats
    index = 0
    while len(drawn) < count:
        text = " ".join(story_sentences(split, index, seed))
        if split == "pretrain" or side_of(text) == split:
            drawn[text] = None
        index += 1
    return list(drawn)


def story_sentences(split: str, index: int, seed: int = 0) -> list[str]:
    """The sentences of one candidate story; `stories` joins them and keeps those of its side."""
    rng = random.Random(f"gradroute stories {split} {seed} {index}")
    pretrain = split == "pretrain"
    held_out = not pretrain and rng.random() < HELD_OUT_PLOTS
    plot = rng.choice([plot for plot in plots() if plot.held_out == held_out])
    return Storyteller(rng, 0.0 if pretrain else HELD_OUT_WORDS).tell(plot)


_PHRASES = frozenset({"opening", "end", "helper"})


@cache
def _parts(template: str) -> tuple[str | list[str], ...]:
    """What a template is made of, in order: text, and lists of alternatives; these do not nest."""
    parts = _CHOICE.split(template)
    return tuple(part.split("|") if at % 2 else part for at, part in enumerate(parts))


@cache
def _phrases() -> dict[str, Sequence[str]]:
    return {plot.name: plot.sentences[0] for plot in _sections() if plot.name in _PHRASES}


@cache
def _sections() -> tuple[Plot, ...]:
    sections = []
    for section in re.split(r"^== ", _read("plots.txt"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        name, _, note = title.partition(" (")
        blocks = re.split(r"\n\s*\n", body.strip())
        sentences = tuple(tuple(block.splitlines()) for block in blocks)
        sections.append(Plot(name, note == "held out)", sentences))
    return tuple(sections)


@cache
def _weights(count: int) -> tuple[float, ...]:
    """Cumulative: words early in a group are told more often, as in any language (Zipf's law)."""
    return tuple(accumulate((rank + 4) ** -ZIPF for rank in range(count)))


def _read(name: str) -> str:
    return (resources.files("gradroute.data") / name).read_text(encoding="utf-8")


def _word_list(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := " ".join(part.split())))


def side_of(text: str) -> str:
    """On which side of the held-out line a text falls, "tune" or "test", by its hash alone."""
    return ("tune", "test")[hashlib.sha256(text.encode()).digest()[0] % 2]


def _article(match: re.Match[str]) -> str:
    return f"{match[1]}n " if _VOWEL_SOUND.match(match[2]) else match[0]


def _plural(word: str) -> str:
    if word in _SAME_PLURALS:
        return word
    if word in _PLURALS:
        return _PLURALS[word]
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|ch|sh)$", word) else "s")
