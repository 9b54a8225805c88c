"""A prompt that ends with a space is asked as training has seen it, inside the next token."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gradroute import embedded_model
from gradroute.config.run_config import load_config
from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import Example
from gradroute.evaluate.generation import Prompt, generate_plain
from gradroute.evaluate.request import prompts_of
from gradroute.prepare import Prepared


@pytest.fixture(scope="module")
def writer():
    folder = embedded_model()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def written(writer: tuple[PreTrainedModel, PreTrainedTokenizerBase], *prompts: Prompt) -> list[str]:
    model, tokenizer = writer
    found = generate_plain(
        model, tokenizer, prompts, max_new_tokens=6, temperature=0.0, top_p=1.0, seed=0,
        rows_per_batch=8,
    )  # fmt: skip
    return [one.text for one in found]


@pytest.mark.parametrize("space", [" ", "  "])
def test_a_space_at_the_end_is_written_by_the_model_and_not_counted(writer, space: str):
    text = "Once upon a time, there was a"
    [without] = written(writer, Prompt("a", text))
    assert without.startswith(" ") and len(without) > 6
    asked = [Prompt("a", text + " "), Prompt("b", text + " ", follows="cat")]
    assert written(writer, *asked) == [without.removeprefix(" ")] * 2
    [alone] = written(writer, Prompt("a", text + space, templated=True))
    assert alone != without.removeprefix(" ")


def test_what_follows_in_the_data_says_which_token_the_space_belongs_to(writer):
    """Before a sign that shares no token with a space, the space is a token of the prompt."""
    text = "Once upon a time, there was a "
    apart, templated = written(
        writer, Prompt("a", text, follows="<"), Prompt("a", text, templated=True)
    )
    assert apart == templated


@pytest.mark.parametrize("kind", ["plain", "prefix", "held_out_bad"])
def test_prompts_know_what_follows_them_in_the_data(kind: str):
    config = load_config(None)
    prepared = Prepared(
        train=[],
        places={},
        labels={},
        normal=[Example("n", "<good", "Tell me. "), Example("m", "no prompt of its own")],
        behaving={"bad": [Example("b", "<bad", "Be rude! ", "bad", "bad")]},
        behaviors={"bad": get_behavior("caps")},
        policy=config.policy,
        identity="",
        notes=(),
    )
    first, *others = prompts_of(prepared, config.evaluate, kind, "bad")
    assert first.follows == ("<bad" if kind == "held_out_bad" else "<good")
    assert all(other.follows == Prompt.follows for other in others)
