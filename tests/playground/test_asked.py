"""The state in the page's address: what it says, and one sentence about what it cannot say."""

import pytest

from gradroute.config.sections import EvaluateConfig
from gradroute.data.examples import Example
from gradroute.errors import ConfigError
from gradroute.evaluate.generation import Prompt
from gradroute.playground.asked import plain_asked, read_asked
from gradroute.playground.rows import FoundRow

ADAPTERS = {"half": ("good", "bad"), "plain": ("good",)}


def read(text: str):
    return read_asked(text, ADAPTERS, EvaluateConfig(), ("bad",), row_of)


def row_of(run: str, name: str) -> FoundRow:
    """A row of any name; of a chat where the name says so."""
    asks = (0, 3) if "chat" in name else None
    example = Example(name, " ran away", "The fox", asks=asks)
    return FoundRow(f"adapter:{name}", Prompt(name, "The fox", asks is not None), example, run)


def test_an_empty_address_asks_for_all_adapters_and_for_what_is_shipped() -> None:
    asked = read("")
    assert [column.mode.name for column in asked.columns] == ["full", "bad_ablated"]
    assert {column.run for column in asked.columns} == {"half"}
    settings = EvaluateConfig()
    assert (asked.seed, asked.temperature, asked.top_p) == (
        settings.seed,
        settings.temperature,
        settings.top_p,
    )
    assert asked.prompt == Prompt("", "")


def test_a_prompt_without_a_name_names_its_noise_itself_as_in_sample() -> None:
    assert read("prompt=THE+FOX%0A&tokens=3").prompt == Prompt("THE FOX\n", "THE FOX\n")
    told = read("prompt=x&id=prefix-0&templated=1&follows=y").prompt
    assert told == Prompt("prefix-0", "x", True, "y")


def test_a_chat_keeps_what_is_typed_and_a_row_brings_its_prompt() -> None:
    asked = read("prompt=Hello&chat=1")
    assert (asked.chat, asked.prompt) == ("Hello", Prompt("Hello", "Hello"))
    assert read("prompt=Hello").chat is None and plain_asked(asked)["chat"] is True
    asked = read("row=s+1&c=full@plain&c=base@plain")
    assert asked.row is not None and asked.prompt == Prompt("s 1", "The fox")
    assert asked.row.about == "plain"  # of the run of the first column
    plain = plain_asked(asked)
    assert (plain["row"], plain["prompt"]) == ("adapter:s 1", "The fox")


def test_columns_are_modes_scales_and_other_runs() -> None:
    asked = read("c=full&c=good=1,bad=-0.5&c=base@plain&c=good%3D1%2Cbad%3D0&seed=7")
    assert [(column.run, column.mode.name) for column in asked.columns] == [
        ("half", "full"),
        ("half", "good=1,bad=-0.5"),
        ("plain", "base"),
        ("half", "bad_ablated"),
    ]
    assert asked.seed == 7
    plain = plain_asked(asked)
    assert plain["columns"][1] == {"run": "half", "scales": {"good": 1.0, "bad": -0.5}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c=full&c=bda_ablated", "did you mean 'bad'"),
        ("row=x&prompt=y", "has row and prompt; the row says"),
        ("row=of+a+chat&chat=1", "text of the chat template already"),
        ("prompt=x&templated=1&chat=1", "text of the chat template already"),
        ("c=full&c=good=1,worse=2", "adapter 'worse', which does not exist"),
        ("c=full&c=good=1,bad=2.5", "has bad at 2.5; scales from -1 to 2"),
        ("c=full&c=good=1,bad=nan", "finite"),
        ("c=full&c=full@haff", "run 'haff', which is not open.*did you mean 'half'"),
        ("c=full&c=bad_ablated@plain", "names the adapter 'bad'"),
        ("c=full", "1 column; from 2 to 4"),
        ("c=full&" * 5, "5 columns; from 2 to 4"),
        ("seed=-1", "seed is '-1'"),
        ("seed=1.5", "seed is '1.5'"),
        ("temperature=inf", "temperature is 'inf'"),
        ("top_p=0", "top_p is '0'"),
        ("tokens=5000", "tokens is '5000'; a whole number from 1 to 1024"),
        ("promt=x", "has 'promt', which nothing reads.*did you mean 'prompt'"),
        ("seed=1&seed=2", "'seed' twice"),
        ("prompt=%ff", "cannot be read"),
        ("a=1&" * 100, "cannot be read"),
    ],
)
def test_what_an_address_cannot_say_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(text)
