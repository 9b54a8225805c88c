"""What is written token by token is what is written at once."""

from collections.abc import Generator
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from tiny_writers import MODES, PROMPTS, TOKENIZER, VOCABULARY, generate, settings_of, writer

from gradroute.errors import ConfigError
from gradroute.evaluate import streaming
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.streaming import Piece, Written, _Row, stream_modes
from gradroute.routing.policy import AblationMode


def stream(model: Any, prompt: Prompt, modes: Any = MODES, **more: Any):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9, "seed": 42, **more}
    return stream_modes(model, TOKENIZER, prompt, modes, **settings)


def whole(steps: Generator[list[Piece], None, list[Written]]) -> tuple[list[str], list[Written]]:
    """The pieces of each mode put together, and what is returned."""
    texts: dict[int, str] = {}
    while True:
        try:
            for piece in next(steps):
                texts[piece.mode] = texts.get(piece.mode, "") + piece.text
        except StopIteration as done:
            return [texts.get(at, "") for at in range(len(done.value))], done.value


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_completion_is_that_of_one_batch_bit_for_bit(kind: str, temperature: float) -> None:
    model = writer(kind)
    for prompt in PROMPTS:
        at_once = generate(model, [prompt], temperature=temperature, max_new_tokens=12)
        texts, written = whole(stream(model, prompt, temperature=temperature, max_new_tokens=12))
        assert [one.completion for one in written] == [at_once[mode.name][0] for mode in MODES]
        assert texts == [one.completion.text for one in written]
        assert ["".join(one.pieces) for one in written] == texts
        assert [len(one.tokens) for one in written] == [one.completion.tokens for one in written]


def test_a_row_that_ends_says_nothing_more_while_the_others_go_on() -> None:
    model = writer()
    letters = [VOCABULARY.index(letter) for letter in "abcdefgh"]
    settings_of(model).eos_token_id = [2, *letters]  # so that rows end early
    texts, written = whole(stream(model, PROMPTS[0], max_new_tokens=30))
    ended = [one.completion.ended for one in written]
    assert any(ended)
    assert len({one.completion.tokens for one in written}) > 1
    assert texts == [one.completion.text for one in written]


def test_a_model_that_writes_one_row_at_a_time_writes_the_modes_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = writer()
    monkeypatch.setattr(streaming, "why_alone", lambda base: "it pads")
    seen: list[int] = []
    steps = stream(model, PROMPTS[0])
    texts, written = whole(steps)
    for mode, text, own in zip(MODES, texts, written, strict=True):
        [alone] = generate(model, [PROMPTS[0]], modes=(mode,))[mode.name]
        assert own.completion == alone and text == alone.text
    for pieces in stream(model, PROMPTS[0]):
        seen += [piece.mode for piece in pieces]
    assert seen == sorted(seen)


def test_one_mode_may_be_there_twice() -> None:
    model = writer()
    mode = AblationMode.parse("good=1,bad=0.5", ["good", "bad"])
    _, (one, other) = whole(stream(model, PROMPTS[0], [mode, mode]))
    assert one == other


def test_closing_it_early_leaves_the_model_as_it_was() -> None:
    model = writer().train()
    steps = stream(model, PROMPTS[0], max_new_tokens=30)
    next(steps)
    assert not torch.is_grad_enabled()
    steps.close()
    assert torch.is_grad_enabled() and model.training
    ids = torch.tensor([[1, 5, 6]])  # a scope of five groups would refuse one row
    assert model.eval()(input_ids=ids).logits.shape[0] == 1


def test_a_character_of_several_tokens_appears_when_it_is_whole() -> None:
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    row = _Row(tokenizer, [0], "")
    tokens = tokenizer("aé\U0001f600b", add_special_tokens=False).input_ids
    pieces = [row.add(token) for token in tokens]
    assert pieces == ["a", "", "é", "", "", "", "\U0001f600", "b"]


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="no ablation mode"):
        next(stream(writer(), PROMPTS[0], []))
    with pytest.raises(ConfigError, match="temperature is -1"):
        next(stream(writer(), PROMPTS[0], temperature=-1.0))
