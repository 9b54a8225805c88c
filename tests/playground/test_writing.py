"""A request as events: the completions of `sample`, and differences of log-probabilities."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from players import asked_of, player
from tiny_writers import letter_tokenizer, writer

from gradroute.data.behaviors import get_behavior
from gradroute.evaluate.cells import complete
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.streaming import stream_modes
from gradroute.playground.loaded import Played
from gradroute.playground.writing import Event, Result, scored, write
from gradroute.routing.adapters import ablated


def done(text: str, played: dict[str, Played]) -> tuple[list[Event], Result]:
    events, found = write(asked_of(text, played), played), list[Event]()
    while True:
        try:
            found.append(next(events))
        except StopIteration as end:
            return found, end.value


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_columns_are_what_sample_completes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    one = player(tmp_path, "one", kind)
    text = "prompt=Once+upon&c=full&c=bad_ablated&c=good=1,bad=0.5&c=base"
    events, result = done(text, {"one": one})
    modes = [column.mode for column in result.asked.columns]
    sampled = complete(
        one.base, one.model, [Prompt("Once upon", "Once upon")], modes, one.config.evaluate, "one"
    )
    texts = [sampled[mode.name][0].text for mode in modes]
    assert [column["completion"] for column in result.columns] == texts
    streamed = ["", "", "", ""]
    for event in events:
        for at, piece in event.data if event.name == "tokens" else ():
            streamed[at] += piece
    assert streamed == texts
    assert [event.name for event in events[-2:]] == ["written", "differences"]


def exact(played: Played, mode: Any, prompt: list[int], tokens: list[int]) -> list[float]:
    """Log-probabilities in float64, one whole forward pass per token."""
    model = writer(played.base.identity, torch.float64)
    found = []
    for at, token in enumerate(tokens):
        with torch.no_grad(), ablated(model, mode):
            ids = torch.tensor([[*prompt, *tokens[:at]]])
            logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
        found.append(float(logits[token] - logits.logsumexp(0)))
    return found


def tokens_of(asked: Any, played: Played, mode: Any) -> list[int]:
    """What one mode writes, alone."""
    settings = played.config.evaluate
    steps = stream_modes(
        played.model,
        played.base.tokenizer,
        asked.prompt,
        [mode],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value[0].tokens


@pytest.mark.parametrize("runs", [1, 2])
def test_differences_equal_those_of_float64(tmp_path: Path, runs: int) -> None:
    played = {"one": player(tmp_path, "one")}
    text = "prompt=Once&c=full&c=bad_ablated&c=good=2,bad=-1"
    if runs == 2:
        played["two"] = player(tmp_path, "two", "gpt_neo")
        text += "&c=full@two"
    events, result = done(text, played)
    first = result.asked.columns[0]
    prompt = played["one"].base.tokenizer("Once").input_ids
    for column, said in zip(result.asked.columns, events[-1].data, strict=True):
        tokens = tokens_of(result.asked, played[column.run], column.mode)
        here = exact(played[column.run], column.mode, prompt, tokens)
        there = exact(played[first.run], first.mode, prompt, tokens)
        assert said["own"] == pytest.approx(here, abs=2e-5)
        by = [a - b for a, b in zip(here, there, strict=True)]
        assert said["difference"] == pytest.approx(by, abs=4e-5)
    assert set(events[-1].data[0]["difference"]) <= {0.0}
    assert max(abs(one) for one in events[-1].data[2]["difference"]) > 0.1
    assert torch.is_grad_enabled()


def test_runs_with_other_tokens_have_no_difference(tmp_path: Path) -> None:
    other = letter_tokenizer()
    other.add_tokens(["xyz"])
    two = player(tmp_path, "two", "gpt_neo")
    two = replace(two, base=replace(two.base, tokenizer=other))
    events, _ = done("prompt=I&c=full&c=full@two", {"one": player(tmp_path), "two": two})
    assert events[-1].data[0] is not None and events[-1].data[1] is None


def test_equal_scales_differ_by_nothing_however_they_are_written(tmp_path: Path) -> None:
    events, _ = done("prompt=I&c=full&c=good=1.0,bad=1", {"one": player(tmp_path)})
    assert set(events[-1].data[1]["difference"]) == {0.0}


def test_a_score_comes_with_what_the_detector_matched() -> None:
    completion = Completion(" A FOX ran off", 3, True)
    said = scored(get_behavior("caps"), completion, Prompt("x", "x"))
    assert said["places"] == [(1, 6)] and said["shows"] is False
    assert said["score"] == pytest.approx(4 / 10)
    said = scored(get_behavior("none"), completion, Prompt("x", "x"))
    assert "names no behavior" in said["error"] and said["score"] is None
    short = scored(get_behavior("caps"), Completion("A", 1, True), Prompt("x", "x"))
    assert short["score"] is None and short["shows"] is None


def test_closing_a_request_frees_the_models(tmp_path: Path) -> None:
    played = {"one": player(tmp_path, "one"), "two": player(tmp_path, "two", "gpt_neo")}
    events = write(asked_of("prompt=I&c=full&c=bad_ablated&c=base@two", played), played)
    assert next(events).name == "tokens"
    events.close()
    assert torch.is_grad_enabled()
    for one in played.values():  # a scope of two groups would refuse one row
        assert one.model(input_ids=torch.tensor([[1, 5]])).logits.shape[0] == 1
