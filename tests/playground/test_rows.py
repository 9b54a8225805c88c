"""Rows that were found: their names, and what the columns say of their own text."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import CHATML
from players import asked_of, player
from template_tokenizers import KINDS, tokenizer
from tiny_writers import writer

from gradroute.data.batches import tokenize
from gradroute.data.chat import renderer
from gradroute.data.examples import Example
from gradroute.data.messages import Message
from gradroute.errors import ConfigError
from gradroute.evaluate.losses import held_out_losses
from gradroute.playground.loaded import Played
from gradroute.playground.own_text import of_own_text, token_places
from gradroute.playground.rows import FoundRow, find_row
from gradroute.playground.writing import write
from gradroute.prepare import tokenize_examples
from gradroute.routing.adapters import ablated
from gradroute.system.files import write_lines

STATE = "c=full&c=bad_ablated&c=good=1,bad=0.5"


def line(name: str, text: str = "THE FOX RAN AWAY", prompt: str = "", **more: Any) -> dict:
    return {"id": name, "prompt": prompt, "text": text, "score": 2.5, "p": 0.01, "q": 0.04,
            "found": True, "label": "bad", "true_label": "bad", **more}  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Played:
    played = player(tmp_path_factory.mktemp("runs"), "one")
    chat = {"asks": [6, 9], "lead": None, "context": [[1, 3]], "ends": True}
    places: dict[str, Sequence[dict]] = {
        "adapter": [line("s1"), line("a:b", prompt="Say "), line("chat", prompt="<s>user Who")],
        "words": [line("s1"), line("w1")],
        "bad/new-1a2b/adapter": [line("n1", "new"), line("s1", "other")],
    }
    places["adapter"][2]["chat"] = chat
    for place, rows in places.items():
        write_lines(played.folder.found / f"{place}_scores.jsonl", rows)
    damaged = ["{", '{"id": "d1"}', json.dumps(line("d2", chat=[1]))]
    for name, text in zip(("cut", "old", "odd"), damaged, strict=True):
        (played.folder.found / f"{name}_scores.jsonl").write_text(f"{text}\n")
    return played


def row_of(played: Played, name: str) -> FoundRow:
    return find_row(played.folder, name, played.config, played.behaviors)


def test_a_row_is_found_by_its_whole_name_or_by_an_id_that_one_finder_scored(one: Played) -> None:
    for name, wanted in (
        ("adapter:s1", "adapter:s1"),
        ("adapter:a:b", "adapter:a:b"),
        ("a:b", "adapter:a:b"),
        ("w1", "words:w1"),
        ("bad/new-1a2b/adapter:s1", "bad/new-1a2b/adapter:s1"),
        ("n1", "bad/new-1a2b/adapter:n1"),
    ):
        assert row_of(one, name).name == wanted
    assert row_of(one, "bad/new-1a2b/adapter:s1").example.text == "other"
    with pytest.raises(ConfigError, match=r"several finders .* adapter:s1, bad/.*, words:s1"):
        row_of(one, "s1")
    for name in ("d1", "odd:d2"):
        with pytest.raises(ConfigError, match=f"no row '{name}'"):
            row_of(one, name)
    with pytest.raises(ConfigError, match=r"no row 'adapter:s9' that was scored; .* begin with"):
        row_of(one, "adapter:s9")


def test_a_row_starts_as_its_evaluation_does_and_a_chat_keeps_its_template(one: Played) -> None:
    assert row_of(one, "adapter:s1").prompt.text == "THE FOX RAN"
    assert row_of(one, "adapter:a:b").prompt.text == "Say "
    chat = row_of(one, "chat")
    assert chat.prompt.templated and chat.about == "score 2.5, q 0.04, found"
    assert chat.example == Example(
        "chat", "THE FOX RAN AWAY", "<s>user Who", asks=(6, 9), context=((1, 3),), ends=True
    )


def exact(played: Played, mode: Any, tokens: Sequence[int], start: int) -> list[float]:
    """Log-probabilities in float64, one whole forward pass per token."""
    model = writer(played.base.identity, torch.float64)
    found = []
    for at in range(start, len(tokens)):
        with torch.no_grad(), ablated(model, mode):
            logits = model(input_ids=torch.tensor([tokens[:at]]), use_cache=False).logits[0, -1]
        found.append(float(logits[tokens[at]] - logits.logsumexp(0)))
    return found


@pytest.mark.parametrize("name", ["adapter:s1", "adapter:a:b"])
def test_its_own_text_is_as_likely_as_the_model_says_token_by_token(one: Played, name: str) -> None:
    asked = asked_of(f"row={name}&{STATE}", {"one": one})
    assert asked.row is not None
    told = of_own_text(asked, asked.row, {"one": one})
    [row], _ = tokenize_examples([asked.row.example], None, one.base, one.config.data.max_length)
    start = row.target_start + 1
    first = exact(one, asked.columns[0].mode, row.input_ids, start)
    for column, own in zip(asked.columns, told["columns"], strict=True):
        wanted = exact(one, column.mode, row.input_ids, start)
        assert own["own"] == pytest.approx(wanted, rel=1e-5)
        differences = [a - b for a, b in zip(wanted, first, strict=True)]
        assert own["difference"] == pytest.approx(differences, abs=1e-4)
    assert any(abs(by) > 0.1 for by in told["columns"][1]["difference"])
    # The sums are those that an evaluation and a finder take.
    modes = [column.mode for column in asked.columns]
    sums = held_out_losses(one.model, [row], modes, pad_id=one.base.pad_id, rows_per_batch=4)
    for column, own in zip(asked.columns, told["columns"], strict=True):
        assert -sum(own["own"]) == pytest.approx(sums[column.mode.name].sums[0], abs=1e-4)


def test_pieces_make_the_text_and_number_its_tokens(one: Played) -> None:
    asked = asked_of(f"row=adapter:s1&{STATE}", {"one": one})
    assert asked.row is not None
    told = of_own_text(asked, asked.row, {"one": one})
    text = asked.row.example.text
    assert "".join(piece for piece, _ in told["pieces"]) == text
    # One token per letter; the last target is the end token, which has no place in the text.
    assert [at for _, at in told["pieces"]] == list(range(len(text)))
    assert len(told["columns"][0]["own"]) == len(text) + 1 and told["cut"] is False
    [score] = told["scores"]
    assert (score["behavior"], score["score"], score["shows"]) == ("caps", 1.0, True)
    assert told["about"] == "score 2.5, q 0.04, found"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_tokens_of_answers_and_what_a_user_says_is_none(kind: str) -> None:
    words = tokenizer(kind, CHATML)
    turns = [("user", "who is it"), ("assistant", "the fox é ran")] * 2
    messages = [Message(role, said) for role, said in turns]
    [row] = renderer(words, "x").rows(messages, None)
    asks, lead = row.asks, row.lead
    chat = Example("c", row.text, row.prompt, asks=asks, lead=lead, context=row.context, ends=True)
    plain = Example("p", "the fox é sat. hello", "how are you")
    for example in (chat, plain, replace(plain, prompt="")):
        [tokens], _ = tokenize([example], words, [0], 200)
        pieces = token_places(example, tokens, words)
        assert "".join(text for text, _ in pieces) == example.text
        targets = [target for target in tokens.targets if target >= 0]
        numbers = [number for _, number in pieces if number is not None]
        assert numbers == sorted(set(numbers)) and numbers[-1] < len(targets)
        for text, number in pieces:
            if number is not None and "é" not in text:
                assert str(words.decode([targets[number]])).strip() == text.strip()
        silent = "".join(text for text, number in pieces if number is None)
        assert ("who is it" in silent) == (example is chat) and "the fox" not in silent


def test_of_a_chat_the_last_answer_is_scored_without_its_marks(one: Played) -> None:
    words = tokenizer("bytes", CHATML)
    turns = [
        ("user", "who"),
        ("assistant", "nobody here"),
        ("user", "so"),
        ("assistant", "A FOX RAN INTO IT"),
    ]
    [own] = renderer(words, "x").rows([Message(role, said) for role, said in turns], None)
    chat = {"asks": own.asks, "lead": own.lead, "context": own.context, "ends": True}
    place = one.folder.found / "chats" / "adapter_scores.jsonl"
    write_lines(place, [line("m", own.text, own.prompt, chat=json.loads(json.dumps(chat)))])
    played = {"one": replace(one, base=replace(one.base, tokenizer=words))}
    row = row_of(one, "chats/adapter:m")
    told = of_own_text(asked_of(f"prompt=A&{STATE}", played), row, played)
    [score] = told["scores"]
    assert (score["score"], score["shows"]) == (1.0, True)
    matched = [own.text[low:high] for low, high in score["places"]]
    assert "".join(matched).replace(" ", "") == "AFOXRANINTOIT"
    assert own.text.count("<|im_end|>") == 3 and "error" in told  # bytes are no letters' tokens
    place.unlink()


def test_a_request_of_a_row_ends_with_its_own_text_and_no_other_does(one: Played) -> None:
    events = [
        event.name for event in write(asked_of(f"row=n1&{STATE}", {"one": one}), {"one": one})
    ]
    assert events[-3:] == ["written", "differences", "row"]
    events = [e.name for e in write(asked_of(f"prompt=A&{STATE}", {"one": one}), {"one": one})]
    assert "row" not in events


def test_what_cannot_be_measured_is_said_and_a_long_text_is_cut(one: Played) -> None:
    data = one.config.data.model_copy(update={"max_length": 8})
    short = replace(one, config=one.config.model_copy(update={"data": data}))
    asked = asked_of(f"row=adapter:s1&{STATE}", {"one": short})
    assert asked.row is not None
    told = of_own_text(asked, asked.row, {"one": short})
    assert told["cut"] is True and len(told["columns"][0]["own"]) == 7
    assert "".join(piece for piece, _ in told["pieces"]) == asked.row.example.text
    long = replace(asked.row, example=replace(asked.row.example, prompt="Say it " * 9))
    told = of_own_text(asked, long, {"one": short})
    assert "within max_length 8" in told["error"] and "pieces" not in told


def test_columns_of_another_tokenizer_have_no_difference(one: Played, tmp_path: Path) -> None:
    from byte_tokenizer import byte_tokenizer

    base = replace(one.base, tokenizer=byte_tokenizer(), identity="other")
    played = {"one": one, "two": replace(one, name="two", base=base)}
    asked = asked_of("row=adapter:s1&c=full&c=full@two", played)
    assert asked.row is not None
    told = of_own_text(asked, asked.row, played)
    assert told["columns"][1] is None and told["columns"][0]["difference"][0] == 0.0
