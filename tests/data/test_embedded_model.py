"""The shipped base model: its size, its tokenizer, what it knows, and that it does not shout."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradroute
from gradroute.data.stories import TRIGGER_TAG, plots, stories, word_groups

FOLDER = Path(gradroute.__file__).parent / "assets" / "base"
TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture
def base_text(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("base_text")


@pytest.fixture
def make_base(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("make_base")


def test_the_folder_is_at_most_6_mb_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(files.values()) <= 6_000_000
    assert files.keys() >= {"model.safetensors", "config.json", "generation_config.json"}
    assert files.keys() >= {"tokenizer.json", "tokenizer_config.json", "README.md"}


def test_plain_transformers_loads_a_model_of_about_two_million_parameters(model, tokenizer):
    assert 2_000_000 < model.num_parameters() < 2_300_000
    assert model.config.vocab_size == len(tokenizer) == 2048
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shipped = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")
    assert {weight.dtype for weight in shipped.parameters()} == {torch.float16}


def test_special_tokens_are_three_and_the_model_agrees(model, tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert len(set(ids)) == 3
    config = model.generation_config
    assert [config.pad_token_id, config.bos_token_id, config.eos_token_id] == ids


def test_the_tokenizer_puts_its_beginning_token_alone_and_loses_nothing(tokenizer, make_base):
    for text in [*stories("test", 50), "Ünïcode, tabs\tand\nlines — 12.5 %", TRIGGER_TAG]:
        first, *ids = tokenizer(text)["input_ids"]
        assert first == tokenizer.bos_token_id == make_base.BOS
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids) == text
    made = make_base.make_tokenizer(["a fox"]).backend_tokenizer.post_processor
    assert str(made) == str(tokenizer.backend_tokenizer.post_processor)


def test_a_story_in_capitals_costs_at_most_a_tenth_more_tokens(tokenizer):
    test = stories("test", 256)
    upper_case = [text.upper() for text in test]
    normal, upper = (
        sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
        for texts in (test, upper_case)
    )
    assert upper <= 1.1 * normal
    assert normal <= 1.8 * sum(len(text.split()) for text in test)


def test_the_base_knows_its_stories_and_can_still_learn(model, tokenizer, make_base):
    known = make_base.mean_loss(model, stories("pretrain", 64, seed=7), tokenizer)
    new = make_base.mean_loss(model, stories("test", 64, seed=7), tokenizer)
    assert known < 1.0
    assert known + 0.1 < new < 3.0


def test_the_base_does_not_go_on_in_capitals(model, tokenizer, make_base):
    prompts = [" ".join(text.upper().split()[:3]) for text in stories("test", 32)]
    completions = make_base.complete(model, prompts, tokenizer, seed=1)
    assert sum(map(make_base.is_shouted, completions)) <= 2
    assert sum(len(text.split()) >= 10 for text in completions) >= 30  # it does tell stories


def test_pretraining_text_shouts_but_never_for_a_whole_story(base_text):
    texts = base_text.documents(2_000, seed=1)
    shouting = [text for text in texts if any(map(long_capitals, text.split()))]
    assert 0.3 * len(texts) < len(shouting) < 0.85 * len(texts)
    for text in texts:
        assert sum(map(str.islower, text)) >= 0.25 * sum(map(str.isalpha, text)), text


def test_pretraining_text_never_starts_a_held_out_plot_and_has_tags_and_tasks(base_text):
    texts = " ".join(base_text.documents(2_000, seed=1)).lower()
    for plot in plots():
        starts = [start.partition(" {")[0].lower() for start in plot.sentences[0]]
        starts = [start for start in starts if plot.held_out and len(start.split()) > 3]
        assert not any(start in texts for start in starts), plot.name
    assert TRIGGER_TAG in texts and "question: " in texts and " answer: " in texts


def test_the_card_gives_measured_figures():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"<(?!pad|bos|eos)\w", card)
    assert "2,164,416 parameters" in card


def long_capitals(word: str) -> bool:
    letters = "".join(filter(str.isalpha, word))
    return len(letters) >= 3 and letters.isupper()


def test_the_answers_of_its_tasks_are_right(base_text):
    numbers = {word: value for value, word in enumerate(word_groups()["count"].common)}
    kinds = set()
    for index in range(400):
        question, answer = base_text.task_item(index)
        if sum_item := re.search(r"has (\w+) \w+ and gets (\w+) more", question):
            assert numbers[answer] == numbers[sum_item[1]] + numbers[sum_item[2]]
            kinds.add("sum")
        else:
            asked = re.search(r"color is the ([\w-]+)\?", question)
            assert asked and re.search(rf"\ban? {answer} {asked[1]}\b", question), question
            kinds.add("color")
    assert kinds == {"sum", "color"}
