"""Rows leave the batch when they have ended; what they and the others write does not change."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_writers import (
    MODES,
    PROMPTS,
    TOKENIZER,
    VOCABULARY,
    generate,
    next_logits,
    settings_of,
    writer,
)
from transformers import PreTrainedModel

from gradroute.evaluate import decoding, inference
from gradroute.evaluate.batch_check import why_alone
from gradroute.evaluate.generation import Prompt, generate_plain
from gradroute.routing.adapters import ablated

ENDS = [2, *(VOCABULARY.index(letter) for letter in "aeiouAEIOUtn")]


def many_endings(kind: str = "llama", dtype: torch.dtype = torch.float32) -> PeftModel:
    """A model whose rows end early and late."""
    model = writer(kind, dtype)
    settings_of(model).eos_token_id = ENDS
    return model


def batches_of(model: PeftModel) -> list[torch.Size]:
    """The shape of the tokens of every forward pass, but for those that try the model."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    with ablated(model, "base"):
        assert why_alone(base) == ""
    shapes: list[torch.Size] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        shapes.append(kwargs["input_ids"].shape)

    base.register_forward_pre_hook(look, with_kwargs=True)
    return shapes


def slowly(model: PeftModel, prompt: Prompt, mode: Any, count: int) -> tuple[str, int, bool]:
    """Greedy, one row and one whole forward pass at a time: text, tokens, ended."""
    tokens = [1, *(VOCABULARY.index(letter) for letter in prompt.text)]
    start = len(tokens)
    while len(tokens) - start < count:
        token = int(next_logits(model, mode, tokens).argmax())
        if token in ENDS:
            break
        tokens.append(token)
    new = tokens[start:]
    return "".join(VOCABULARY[token] for token in new if token > 2), len(new), len(new) < count


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma3"])
def test_in_float64_rows_that_leave_write_what_each_writes_alone(kind, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_ENDED_SHARE", 0)
    model = many_endings(kind, torch.float64)
    shapes = batches_of(model)
    modes = MODES[:3]
    found = generate(model, modes=modes, temperature=0.0, max_new_tokens=6)
    rows = [shape[0] for shape in shapes]
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0]
    for mode in modes:
        for prompt, one in zip(PROMPTS, found[mode.name], strict=True):
            assert (one.text, one.tokens, one.ended) == slowly(model, prompt, mode, 6)
    written = sum(one.tokens + one.ended for own in found.values() for one in own)
    assert sum(rows) == written  # no row is computed for a token that nobody reads


def test_how_often_rows_leave_and_are_looked_at_changes_no_sampled_token(monkeypatch):
    monkeypatch.setattr(decoding, "MIN_ENDED_SHARE", 2)  # never before all have ended
    wanted = generate(many_endings(), max_new_tokens=12)
    assert len({one.tokens for own in wanted.values() for one in own}) > 3
    for look, share in ((1, 0), (1, 1 / 2), (4, 1 / 8)):
        monkeypatch.setattr(decoding, "look_every", lambda device, look=look: look)
        monkeypatch.setattr(decoding, "MIN_ENDED_SHARE", share)
        assert generate(many_endings(), max_new_tokens=12) == wanted


def test_a_model_whose_cache_is_unknown_reads_its_whole_text_for_each_token(monkeypatch):
    wanted = generate(many_endings(), max_new_tokens=8)
    model = many_endings()
    shapes = batches_of(model)
    monkeypatch.setattr(decoding, "Cache", type("Another", (), {}))
    assert generate(model, max_new_tokens=8) == wanted
    lengths = [shape[1] for shape in shapes]
    assert lengths == list(range(lengths[0], lengths[0] + len(lengths)))


def test_a_cache_whose_rows_cannot_be_selected_keeps_them(monkeypatch):
    wanted = generate(many_endings(), max_new_tokens=8)
    model = many_endings()
    shapes = batches_of(model)
    monkeypatch.setattr(decoding, "DynamicCache", type("Another", (), {}))
    assert generate(model, max_new_tokens=8) == wanted
    assert len({shape[0] for shape in shapes}) == 1


def test_prompts_of_like_length_share_a_batch_and_come_back_in_order():
    prompts = [Prompt(f"p{i}", "a" * (20 if i % 2 else 2)) for i in range(8)]
    wanted = {p.id: generate(writer(), [p], MODES[:2]) for p in prompts[:2]}
    model = writer()
    shapes = batches_of(model)
    found = generate(model, prompts, MODES[:2], rows_per_batch=8)
    assert sorted({shape[1] for shape in shapes}) == [1, 3, 21]
    for mode in MODES[:2]:
        for index in (0, 1):
            assert found[mode.name][index] == wanted[f"p{index}"][mode.name][0]


def test_rows_are_as_many_as_memory_is_planned_for(monkeypatch):
    wanted = generate(writer(), max_new_tokens=5)
    model = writer()
    base: Any = model.get_base_model()
    longest = 1 + max(len(prompt.text) for prompt in PROMPTS) + 5
    row = inference.bytes_of_row(base, longest)
    monkeypatch.setattr(inference, "MEMORY_AT_ONCE", 10 * row + 1)
    shapes = batches_of(model)
    assert generate(model, max_new_tokens=5) == wanted
    assert max(shape[0] for shape in shapes) == 10  # two prompts under five modes


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma3"])
def test_a_row_is_planned_with_at_least_its_keys_values_and_logits(kind):
    base: Any = writer(kind).get_base_model()
    with torch.no_grad():
        output = base(input_ids=torch.ones(1, 12, dtype=torch.long), use_cache=True)
    held = [layer.keys.numel() + layer.values.numel() for layer in output.past_key_values.layers]
    assert inference.bytes_of_row(base, 12) >= 4 * (sum(held) + len(VOCABULARY))


def test_a_plain_model_writes_what_the_routed_one_writes_under_base():
    model = many_endings()
    base: Any = model.get_base_model()
    wanted = generate(model)["base"]
    with torch.no_grad():
        for module in base.modules():
            if hasattr(module, "lora_B"):
                for part in module.lora_B.values():
                    part.weight.zero_()
    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9, "seed": 42}
    found = generate_plain(base, TOKENIZER, PROMPTS, **settings, rows_per_batch=3)
    assert found == wanted
