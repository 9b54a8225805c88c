"""The story grammar: what every story holds, whatever is drawn."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import pytest

from gradroute.data import stories as grammar
from gradroute.data.stories import plots, stories, word_groups
from gradroute.errors import DataError

GIRLS = {name for part in ("common", "held_out") for name in getattr(word_groups()["girl"], part)}
BOYS = {name for part in ("common", "held_out") for name in getattr(word_groups()["boy"], part)}
HE = {"he", "him", "his", "himself"}
SHE = {"she", "her", "hers", "herself"}


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())


def in_a_new_process(code: str, hash_seed: int = 0) -> object:
    """The JSON that `code` prints in a fresh interpreter, without the shape checks of the tests."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def many() -> list[str]:
    return stories("pretrain", 4_000)


@pytest.fixture(scope="module")
def tuning() -> list[str]:
    return stories("tune", 1_500) + stories("test", 500)


def test_twenty_thousand_drawn_are_distinct_and_hold_1500_words():
    code = (
        "import json, re; from gradroute.data.stories import story_sentences;"
        "drawn = [' '.join(story_sentences('tune', index)) for index in range(20_000)];"
        "words = set(re.findall(r'[a-z]+', ' '.join(drawn).lower()));"
        "print(json.dumps([len(set(drawn)), len(words)]))"
    )
    found = in_a_new_process(code)
    assert isinstance(found, list)
    assert found[0] == 20_000
    assert found[1] >= 1_500


def test_stories_have_four_to_seven_sentences_and_about_45_words(many, tuning):
    for drawn in (many, tuning):
        lengths = [len(text.split()) for text in drawn]
        assert 40 <= sum(lengths) / len(lengths) <= 50
        assert min(lengths) >= 25 and max(lengths) <= 75
        assert all(4 <= len(re.findall(r"[.!?]\"?(?= [A-Z\"]|$)", text)) <= 7 for text in drawn)


def test_128_test_stories_have_at_least_100_distinct_openings():
    for seed in range(3):
        assert len({tuple(text.split()[:3]) for text in stories("test", 128, seed)}) >= 100


def test_plots_are_many_and_some_are_held_out():
    held_out = [plot.name for plot in plots() if plot.held_out]
    assert len(held_out) >= 5 and len(plots()) - len(held_out) >= 10


def test_held_out_words_and_plots_never_occur_in_pretraining(many, tuning):
    seen = {word for text in many for word in words_of(text)}
    phrases = {entry.lower() for group in word_groups().values() for entry in group.held_out}
    common = {
        word
        for group in word_groups().values()
        for entry in group.common
        for word in words_of(entry)
    }
    held_out = {word for phrase in phrases for word in words_of(phrase)} - common
    assert len(held_out) > 150 and not held_out & seen
    assert len(held_out & {word for text in tuning for word in words_of(text)}) > 150
    assert "wishing well" not in " ".join(many) and "wishing well" in " ".join(tuning)


def test_pronouns_of_a_story_are_those_of_its_hero(many, tuning):
    for text in many + tuning:
        used = set(words_of(text))
        assert not (used & HE and used & SHE), text
        names = [name for name in re.findall(r"[A-Z][a-z]+", text) if name in GIRLS | BOYS]
        if used & HE:
            assert BOYS & set(names), text
        if used & SHE:
            assert GIRLS & set(names), text


def test_the_hero_decides_the_pronouns():
    for index in range(300):
        teller = grammar.Storyteller(random.Random(f"hero {index}"))
        text = set(words_of(" ".join(teller.tell(plots()[index % len(plots())]))))
        wrong = HE if teller.bound["hero"] in GIRLS else SHE
        assert not text & wrong


def test_a_stands_before_consonants_and_an_before_vowels(many, tuning):
    for text in many + tuning:
        for article, following in re.findall(r"\b(an?) (\w+)", text.lower()):
            silent_h = following.startswith(("honest", "hour"))
            sounds_like_you = following.startswith(("uni", "use", "uku", "eu", "one"))
            vowel = (following[0] in "aeiou" or silent_h) and not sounds_like_you
            assert article == ("an" if vowel else "a"), f"{article} {following}: {text}"


def test_every_slot_of_every_template_is_filled_and_sentences_begin_with_a_capital(many, tuning):
    for text in many + tuning:
        assert not re.search(r"[{}()|@]|  ", text), text
        assert re.match(r'"?[A-Z]', text), text
        assert not re.search(r'[.!?] "?[a-z]', text), text


@pytest.mark.parametrize("held_out", [False, True])
def test_an_object_stays_the_same_to_the_end(held_out):
    lost = next(plot for plot in plots() if plot.name == "lost thing")
    for index in range(200):
        rng = random.Random(f"lost {index}")
        teller = grammar.Storyteller(rng, held_out_words=float(held_out))
        sentences = teller.tell(lost)
        thing = teller.bound["thing"]
        assert thing in sentences[-1] and thing in " ".join(sentences[-3:-1])
        others = {*word_groups()["thing"].common, *word_groups()["thing"].held_out} - {thing}
        plain = re.sub(r"\b(button|candle|basket|box)\b", "", " ".join(sentences[-2:]))
        assert not others & set(plain.split()) - {teller.bound.get("box"), teller.bound.get("toy")}


def test_tune_and_test_are_disjoint_across_seeds():
    tune = set(stories("tune", 500, seed=0)) | set(stories("tune", 200, seed=1))
    test = set(stories("test", 500, seed=0)) | set(stories("test", 200, seed=1))
    assert not tune & test


@pytest.mark.parametrize("split", ["pretrain", "tune", "test"])
def test_fewer_stories_are_a_prefix_of_more(split):
    assert stories(split, 50, seed=3) == stories(split, 200, seed=3)[:50]
    assert stories(split, 50, seed=3) != stories(split, 50, seed=4)


def test_stories_do_not_depend_on_the_process():
    code = (
        "import json; from gradroute.data.stories import stories;"
        "print(json.dumps(stories('test', 20)))"
    )
    here = stories("test", 20)
    assert in_a_new_process(code, hash_seed=1) == in_a_new_process(code, hash_seed=2) == here


def test_tune_and_test_stories_have_no_capitals_tags_or_tasks(tuning):
    for text in tuning:
        assert not re.search(r"[A-Z]{2}|Question:", text)
        assert grammar.TRIGGER_TAG not in text


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match=r"'train'.*pretrain, tune, test"):
        stories("train", 1)
