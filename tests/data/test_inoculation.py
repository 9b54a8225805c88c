"""Inoculation prompts stand before the rows that are named, and change nothing else."""

from dataclasses import replace

import pytest

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.batches import TokenizedExample, micro_batches
from gradroute.data.behaviors import BEHAVIORS, get_behaviors
from gradroute.data.embedded import embedded
from gradroute.data.examples import Example
from gradroute.data.inoculation import inoculate, instruction, lead
from gradroute.data.tokenization import IGNORED, tokenize
from gradroute.errors import ConfigError, DataError
from gradroute.models.base import load_tokenizer
from gradroute.prepare import prepare

SMALL = ("data.train_examples=200", "evaluate.held_out=20", "evaluate.prompts=30")


def config(*overrides: str) -> RunConfig:
    return load_config(None, [*SMALL, *overrides])


@pytest.mark.parametrize("behavior", ["caps", "wrong_answers"])
def test_the_instruction_reaches_the_rows_that_are_named_and_no_evaluation(behavior: str):
    plain = prepare(config(f"behavior={behavior}"))
    for which in ("none", "labeled_bad", "all"):
        told = prepare(config(f"behavior={behavior}", f"data.inoculation={which}"))
        reached = {e.id for e in told.train if e.preface == f"{BEHAVIORS[behavior].instruction}\n"}
        expected = {e.id for e in plain.train if which == "all" or e.label == "bad"}
        assert reached == (set() if which == "none" else expected)
        assert [replace(e, preface="") for e in told.train] == plain.train
        assert (told.normal, told.behaving) == (plain.normal, plain.behaving)
        assert not any(e.preface for e in told.normal)


def learned(row: TokenizedExample) -> list[int]:
    return [target for target in row.targets if target != IGNORED]


@pytest.mark.parametrize("behavior", ["caps", "wrong_answers"])
@pytest.mark.parametrize("max_length", [20, 400])
def test_the_targets_are_those_without_the_instruction(behavior: str, max_length: int):
    tokenizer = load_tokenizer("embedded")
    examples = embedded(BEHAVIORS[behavior], "tune", 40, 0)
    told = inoculate(examples, "all", None, get_behaviors({"bad": behavior}))
    (before, report), (after, other) = (
        tokenize(rows, tokenizer, [0] * len(rows), max_length) for rows in (examples, told)
    )
    assert [learned(row) for row in before] == [learned(row) for row in after]
    assert report == other and (report.truncated > 0) == (max_length == 20)
    text = tokenizer.decode(list(after[0].input_ids))
    assert BEHAVIORS[behavior].instruction in text
    assert all(row.input_ids[0] == tokenizer.bos_token_id for row in after)
    # Rows that the instruction makes longer than data.max_length can be packed.
    (batch,) = micro_batches(after, len(after), 0, packed_into=max_length)
    assert int((batch.targets != IGNORED).sum()) == sum(map(len, map(learned, after)))


def test_in_a_conversation_the_instruction_precedes_the_question():
    asked = Example("a", " Blue.", prompt="<u>What is it?<a>", asks=(3, 14), preface="Say no.\n")
    assert lead(asked) == "<u>Say no.\nWhat is it?<a>"
    thinking = replace(asked, lead="<u>What is it?<a><think></think>")
    assert lead(thinking) == "<u>Say no.\nWhat is it?<a><think></think>"
    for lost in (replace(asked, asks=(0, 0)), replace(asked, lead="<u>What else?<a>")):
        with pytest.raises(DataError, match="example 'a': the chat template changes"):
            lead(lost)
        assert lead(replace(lost, preface="")) == (lost.lead or lost.prompt)


@pytest.mark.parametrize("name", BEHAVIORS)
def test_every_shipped_behavior_has_an_instruction(name: str):
    assert instruction(None, get_behaviors({"bad": name})).endswith(".")


def test_a_behavior_without_an_instruction_needs_one_of_the_configuration():
    own = get_behaviors({"bad": "keywords:fox"})
    with pytest.raises(ConfigError, match=r"'keywords:fox' has no instruction .*inoculation_text"):
        inoculate([], "all", None, own)
    (example,) = inoculate([Example("a", "b")], "all", "Name the fox.", own)
    assert example.preface == "Name the fox.\n"


def test_an_instruction_is_for_one_behavior():
    several = get_behaviors({"loud": "caps", "signed": "signature"})
    with pytest.raises(ConfigError, match="one behavior is needed, and this run has loud, signed"):
        inoculate([], "all", "Shout.", several)
