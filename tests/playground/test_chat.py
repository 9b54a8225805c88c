"""A typed prompt as a turn of a chat: what the template makes of it is what is completed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from players import TURNS, asked_of, chatty, player

from gradroute.data.chat import renderer
from gradroute.data.messages import Message
from gradroute.errors import ConfigError
from gradroute.evaluate.cells import complete
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.prompts import read_prompts
from gradroute.playground.chat import in_chat, why_no_chat
from gradroute.playground.loaded import Played
from gradroute.playground.pins import open_pins
from gradroute.playground.writing import Result, write


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return chatty(player(tmp_path_factory.mktemp("runs"), "one"))


def done(text: str, played: dict[str, Played]) -> Result:
    events = write(asked_of(text, played), played)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def test_the_template_writes_the_prompt_and_sample_completes_the_pin_alike(
    one: Played, tmp_path: Path
) -> None:
    result = done("prompt=Who+are+you&chat=1&c=full&c=bad_ablated", {"one": one})
    wanted = "<s>user, Who are you. assistant, "
    assert result.asked.prompt == Prompt(wanted, wanted, templated=True)
    open_pins(tmp_path / "pins.jsonl").add(result)
    line = json.loads((tmp_path / "pins.jsonl").read_text())
    assert (line["chat"], line["prompt"], line["templated"]) == ("Who are you", wanted, True)
    [prompt] = read_prompts(tmp_path / "pins.jsonl").prompts
    assert prompt == result.asked.prompt
    modes = [column.mode for column in result.asked.columns]
    sampled = complete(one.base, one.model, [prompt], modes, one.config.evaluate, "one")
    assert [own["completion"] for own in result.columns] == [
        sampled[mode.name][0].text for mode in modes
    ]


def test_the_prompt_is_that_of_a_row_of_chats_that_asks_the_same(one: Played) -> None:
    asked = asked_of("prompt=Who+are+you&chat=1&c=full&c=base", {"one": one})
    messages = [Message("user", "Who are you"), Message("assistant", "A fox")]
    [row] = renderer(one.base.tokenizer, "one").rows(messages, None)
    assert in_chat(asked, {"one": one}).prompt.text == row.prompt


def test_without_chat_the_prompt_is_taken_as_it_is(one: Played) -> None:
    asked = asked_of("prompt=Who&c=full&c=base", {"one": one})
    assert in_chat(asked, {"one": one}) is asked
    named = asked_of("prompt=Who&id=x&chat=1&c=full&c=base", {"one": one})
    assert in_chat(named, {"one": one}).prompt.id == "x"


def test_a_run_that_no_chat_can_be_held_with_says_why(one: Played) -> None:
    plain, refuses = chatty(one, None), chatty(one, "{{ raise_exception('system first') }}")
    assert why_no_chat(one) == ""
    assert why_no_chat(plain) == "the tokenizer of embedded has no chat template"
    for run, words in ((plain, "has no chat template; switch Chat off"), (refuses, "system first")):
        asked = asked_of("prompt=Who&chat=1&c=full&c=base", {"one": run})
        with pytest.raises(ConfigError, match=words):
            in_chat(asked, {"one": run})


def test_columns_of_runs_that_write_a_chat_otherwise_are_refused(one: Played) -> None:
    played = {"one": one, "two": replace(chatty(one, TURNS.replace("assistant", "a")), name="two")}
    asked = asked_of("prompt=Who&chat=1&c=full&c=full@two", played)
    with pytest.raises(ConfigError, match="runs one and two write this prompt otherwise"):
        in_chat(asked, played)
    same = {"one": one, "two": replace(one, name="two")}
    assert in_chat(asked, same).prompt.templated
