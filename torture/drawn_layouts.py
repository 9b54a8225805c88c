"""Layouts of data: a file of examples, and a configuration that orders, cuts and groups them."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.stories import stories
from gradroute.models.base import embedded_model
from gradroute.routing.policy import NAMED_POLICIES
from torture.reference import Row
from torture.routings import Table, draw_table, due_updates, meaning

SORTED = ("shuffled", "by length", "by label", "as drawn")
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Layout:
    """A file of examples and a configuration to train on it.

    Attributes:
        examples: the rows of the file.
        table: label -> adapter -> route.
        config: of the run.
        dtype: of base and adapters.
        room: rows that there is memory for at a time, and from which step and which of its
            forward passes on.
        kinds: what was drawn, in words.
    """

    examples: Sequence[dict[str, str]]
    table: Table
    config: RunConfig
    dtype: torch.dtype
    room: tuple[int, int, int]
    kinds: Sequence[str]


def draw_layout(draw: random.Random, folder: Path) -> Layout:
    """Write a file of examples and draw a configuration for it."""
    folder.mkdir(parents=True)
    adapters: list[str] = ["good", "bad"]
    table: Table
    routing: Any = draw.choice([*NAMED_POLICIES, None, None, None, None, None])
    if routing is not None:
        table = {label: dict(row) for label, row in NAMED_POLICIES[routing].items()}
    else:
        adapters = ["good", "bad", "style", "tone"][: draw.randint(1, 4)]
        routing = table = _distinct_table(draw, adapters)
    examples = _examples(draw, list(table))
    order = draw.choice(SORTED)
    if order == "shuffled":
        draw.shuffle(examples)
    elif order == "by length":
        examples.sort(key=lambda example: len(example["text"]), reverse=draw.random() < 0.5)
    elif order == "by label":
        examples.sort(key=lambda example: example["label"])
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in examples), encoding="utf-8")
    drop = draw.choice(["none", "none", "true_bad"])
    settings = {
        "run_name": folder.name,
        "seed": draw.randrange(1000),
        "layers": draw.choice(["all", "last-half"]),
        "routing": json.dumps(routing) if isinstance(routing, dict) else routing,
        "adapters": json.dumps({n: {"rank": draw.randint(1, 5), "clip": None} for n in adapters}),
        "data.path": str(path),
        "data.eval_fraction": draw.choice([0.05, 0.1]),
        "data.max_length": draw.choice([8, 12, 64]),
        "data.front_load": draw.choice([0, 0.5, 1]),
        "data.drop": drop,
        "train.max_steps": 2,
        "train.batch_size": draw.randint(1, 5),
        "train.gradient_accumulation": draw.randint(1, 4),
        "train.learning_rate": 1e-2,
        "train.loss_mean": draw.choice(["token", "example"]),
        "train.save_every": 0,
        "train.log_gradients_every": 0,
    }
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    dtype = draw.choice(DTYPES)
    kinds = (
        f"order: {order}",
        f"table: {config.routing if isinstance(config.routing, str) else 'custom'}",
        f"dtype: {str(dtype).removeprefix('torch.')}",
        *(f"{key}: {settings[f'data.{key}']}" for key in ("drop", "front_load", "max_length")),
        *(
            f"{key}: {settings[f'train.{key}']}"
            for key in ("batch_size", "gradient_accumulation", "loss_mean")
        ),
    )
    room = (config.train.batch_size, 1, 0)
    if draw.random() < 0.4:
        room = (draw.randint(1, config.train.batch_size), draw.randint(1, 2), draw.randint(0, 1))
    shrinks = "yes" if room[0] < config.train.batch_size else "no"
    return Layout(examples, table, config, dtype, room, (*kinds, f"memory runs out: {shrinks}"))


def _distinct_table(draw: random.Random, adapters: Sequence[str]) -> Table:
    """A table in which no two labels mean the same, and every adapter learns from some label."""
    labels = draw.choice([("bad", "unlabeled", "good"), ("alpha", "beta", "gamma", "delta")])
    while True:
        table = draw_table(draw, labels, adapters)
        if len(set(map(meaning, table.values()))) == len(labels) and due_updates(
            table, labels
        ) == set(adapters):
            return table


def _examples(draw: random.Random, labels: list[str]) -> list[dict[str, str]]:
    """Examples of many lengths; the first two words of each are its own."""
    words = list(_words())
    draw.shuffle(words)
    examples = []
    sure = labels * 4  # held out are fewer, so that every label stays
    for number in range(len(sure) + draw.randint(0, 15)):
        own = " ".join(words[2 * number : 2 * number + 2])
        rest = draw.choices(words, k=draw.choice([1, 2, 4, 9]))
        prompt = draw.random() < 0.4
        text = " ".join(rest)
        label = sure[number] if number < len(sure) else draw.choice(labels)
        truly_bad = "bad" in labels and number >= len(sure) and draw.random() < 0.3
        examples.append(
            {
                "id": f"example {number}",
                "prompt": f"{own} " if prompt else "",
                "text": text if prompt else f"{own} {text}",
                "label": label,
                "true_label": "bad" if truly_bad else labels[-1],
            }
        )
    return examples


def tokens_of(layout: Layout) -> dict[tuple[int, ...], Row]:
    """What each example reads as -> its row; an example whose text is all cut is left out."""
    tokenizer, longest = the_tokenizer(), layout.config.data.max_length
    found: dict[tuple[int, ...], Row] = {}
    for example in layout.examples:
        prompt = example["prompt"]
        whole = tokenizer(
            prompt + example["text"], add_special_tokens=False, return_offsets_mapping=True
        )
        # A token that begins with the prompt's last space and goes on is the text's first.
        before = sum(end <= len(prompt) for _, end in whole["offset_mapping"])
        tokens = (tokenizer.bos_token_id, *whole.input_ids, tokenizer.eos_token_id)[:longest]
        row = Row(example["id"], tokens, 1 + before)
        if row.targets > 0:
            if tokens in found:
                raise RuntimeError(f"two examples read the same: {example}")
            found[tokens] = row
    return found


@cache
def the_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_model())


@cache
def _words() -> tuple[str, ...]:
    """Words of the embedded stories, without marks."""
    text = " ".join(stories("tune", 300))
    return tuple(word for word, _ in groupby(sorted(text.split())) if word.isalpha())
