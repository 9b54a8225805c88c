"""Patterns and words: found as `re` finds them, within a limit of time and memory."""

import random
import re
import subprocess
import sys
import time

import pytest

from gradroute.data import detectors
from gradroute.data.behaviors import get_behavior
from gradroute.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("completion", "score"),
    [("the moon Fell", 4 / 13), ("moonlight", 0.0), ("moon moon", 1.0 - 1 / 9), (" ", None)],
)
def test_a_regex_is_shown_by_one_match_and_scored_by_what_it_covers(completion, score):
    behavior = get_behavior(r"regex:\b(moon|Fox)\b")
    assert behavior.scored(completion, "") == (None if score is None else pytest.approx(score))
    assert behavior.shows(completion, "") is (None if score is None else score > 0)


def test_keywords_are_whole_words_in_any_case():
    behavior = get_behavior("keywords: Moon, fox-cub")
    assert behavior.shows("The MOON rose.", "") is True
    assert behavior.scored("a fox-cub and the moon", "") == pytest.approx(2 / 5)
    assert behavior.shows("moons and foxes", "") is False
    assert behavior.scored("...", "") is None


ORDINARY = [
    r"(?i)as an ai",
    r"\b(moon|Fox)\b",
    r"I (?:can't|cannot|won't) \w+",
    r"^\s*(?:Sure|OK)[,!.]",
    r"\d{4}-\d{2}-\d{2}",
    r"(?m)^- .+$",
    r"[A-Z]{3,}",
    r"(\w+) \1",
    r"(?<=the )\w+(?= ran)",
    r"(?<!not )good",
    r"[^\W\d_]+",
    r".*?!",
    r"(?s)<b>.*</b>",
    r"foo{e}",  # a fuzzy match to `regex` if it were not escaped
    r"(?:cat){e<=1}",
    r"x{a} \{y\} [{}] {",
    r"a{,2}b|a{1,}c",
    r"(?x) the \s # a comment with { in it",
    r"[]\]{e}]|\N{BULLET}|\u0041|\x42",
    r"a*+b|(?>a+)c",
    r"(?P<word>o)(?P=word)|(a)?(?(2)b|c)",
    r"é|ß|日本|😀",
]
TEXTS = [
    "As an AI I cannot help, I won't try. The moon and the Fox, 2024-01-31!",
    "the the cat ran\n- one\n- two {e} foo{e} fooo (cat){e<=1} catt x{a} {y} {\n",
    "<b>bold\nlines</b> not good but good. SURE, ABC. OK!",
    "aab aaaac b •AB é ß 日本 😀 oo ab c \t\u2028 x",
    "",
]


@pytest.mark.parametrize("pattern", ORDINARY)
def test_an_ordinary_pattern_finds_what_it_finds_with_re(pattern: str):
    for text in TEXTS:
        covered = sum(len(match[0]) for match in re.finditer(pattern, text))
        expected = covered / len(text) if text.strip() else None
        assert get_behavior(f"regex:{pattern}").scored(text, "") == expected


ATOMS = [
    "a",
    "b",
    ".",
    r"\w",
    r"\d",
    r"\s",
    r"\b",
    "[ab]",
    "[^a]",
    "^",
    "$",
    "{",
    "}",
    "e",
    "<=1",
    ",",
]


def random_pattern(generator: random.Random, depth: int = 0) -> str:
    made = ""
    for _ in range(generator.randint(1, 3)):
        inner = random_pattern(generator, depth + 1) if depth < 2 else "b"
        group = generator.choice(["({})", "(?:{})", "(?i:{})", "(?={})", "(?!{})"])
        atom = generator.choice([*ATOMS, group.format(inner)])
        made += atom + generator.choice(["", "", "", "*", "+", "?", "+?", "{2}", "{1,2}", "{,2}"])
    return made + (f"|{random_pattern(generator, depth + 1)}" if generator.random() < 0.2 else "")


def test_random_patterns_find_what_they_find_with_re():
    generator, compared = random.Random(0), 0
    for _ in range(1500):
        pattern = random_pattern(generator)
        text = "".join(generator.choices("ab1 {e}<=,\nB", k=20))
        try:
            behavior = get_behavior(f"regex:{pattern}")
        except ConfigError:
            continue
        found = sum(len(match[0]) for match in re.finditer(pattern, text)) / len(text)
        assert behavior.scored(text, "") == found, (pattern, text)
        compared += found > 0
    assert compared > 150


@pytest.mark.parametrize("pattern", [r"(a|aa)+$", r"(?:(a+)(a+)\1\2)+b"])
def test_a_pattern_without_end_is_stopped_and_named(monkeypatch, pattern: str):
    monkeypatch.setattr(detectors, "PATTERN_SECONDS", 0.1)
    behavior = get_behavior(f"regex:{pattern}")
    began = time.monotonic()
    with pytest.raises(DataError, match=r"took more than 0.1 seconds on a completion of 301 char"):
        behavior.shows("a" * 300 + "!", "")
    assert time.monotonic() - began < 300


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{1000}){1000}){1000}",
        "(?:(?:ab{99}){99}){99}",
        "(" * 5000 + "a" + ")" * 5000,
        "a{99999999999999999999}",
        "(?:(?:a{0,1000}){0,1000}){0,1000}b",
    ],
)
def test_a_pattern_that_would_fill_the_memory_is_refused_or_small(pattern: str):
    """In a process of its own with 1 GiB: written out, the first has a billion characters."""
    program = (
        "import resource, sys\n"
        "from gradroute.data.behaviors import get_behavior\n"
        "from gradroute.errors import ConfigError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "try: get_behavior('regex:' + sys.argv[1])\n"
        "except ConfigError as error: print(str(error)[-90:])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, pattern], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_repetitions_count_in_groups_and_only_as_far_as_they_must_be_there():
    width = detectors._literal_braces
    assert width("abc")[1] == 3
    assert width("(?:ab){3}")[1] == 12  # `?:` counts too
    assert width(r"\d{4}-[0-9a-f]{2}x{0,5}y{,7}z*")[1] == 11
    assert width("((a{10}){10}){10}")[1] == 1000
    assert width(")a{3}")[1] == 4


@pytest.mark.parametrize("name", ["cap", "regex:", "keywords:", "python:", "file:x"])
def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(name: str):
    with pytest.raises(ConfigError, match=r"no behavior .*; known: caps, signature"):
        get_behavior(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cap", r"no behavior 'cap'; known: caps.* Did you mean 'caps'\?"),
        ("regex:(", "no regular expression"),
        ("regex:a*", "matches an empty text"),
        ("regex:[[:alpha:]]", "can be read in two ways: Possible nested set at position 1; put a"),
        ("regex:[a&&b]", "can be read in two ways"),
        ("regex:\\p{L}", "no regular expression: bad escape"),
        ("regex:(?R)", "no regular expression"),
        ("keywords:a,,b", "single words"),
        ("keywords:two words", "single words"),
    ],
)
def test_a_pattern_or_list_that_is_none_is_refused_in_words(name: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        get_behavior(name)
    assert str(caught.value).isprintable()
