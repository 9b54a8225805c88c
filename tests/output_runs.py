"""Tiny trainers whose output folders are runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import processors
from toy_rows import base, settings, tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl.trainer.sft_config import SFTConfig

from gradroute.integrations import (
    RoutedSFTTrainer,
)
from gradroute.integrations.routing import RoutedTraining
from gradroute.routing.adapters import AdapterSpec
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results

ROUTED: dict[str, Any] = {
    "policy": "anchored",
    "adapters": {"good": AdapterSpec(rank=3), "bad": AdapterSpec(rank=2, dropout=0.1)},
    "layers": "all",
}
TRAIN = {
    "text": ["aa b", "OH NO OH NO", "ccc d", "NO WAY", "xx y"],
    "label": ["good", "bad", "unlabeled", "bad", None],
}
HELD_OUT = {
    "text": ["zz tt", "MY OH MY OH", "hello x", "BAD ONE"],
    "label": ["good", "bad", None, "bad"],
}


def save_base(folder: Path) -> Path:
    """A base with 256 positions and a tokenizer that puts nothing behind a text."""
    model, words = base(torch.float32), tokenizer()
    model.config.max_position_embeddings = 256
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def words_of(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def rows(columns: Mapping[str, Any]) -> Dataset:
    return Dataset.from_dict(dict(columns))


def sft(out: Path, model: PreTrainedModel, words: Any, **others: Any) -> RoutedSFTTrainer:
    usual = {"train_dataset": rows(TRAIN), "eval_dataset": rows(HELD_OUT), "behavior": "caps"}
    options = {"assistant_only_loss": others.pop("assistant_only_loss", False), "max_length": 64}
    arguments = settings(out, max_steps=2, per_device_eval_batch_size=8, **options)
    return RoutedSFTTrainer(
        model, SFTConfig(**arguments), processing_class=words, **ROUTED, **usual | others
    )


def shorten(folder: RunFolder) -> None:
    text = folder.config.read_text().replace("max_new_tokens: 64", "max_new_tokens: 12")
    folder.config.write_text(text)


def folder_of(trainer: RoutedTraining) -> RunFolder:
    return RunFolder(Path(str(trainer.args.output_dir)))


def losses(folder: RunFolder, mode: str) -> float:
    """Loss per token over all held-out rows, bad ones too."""
    lines = [json.loads(line) for line in folder.losses.read_text().splitlines()]
    own = [line for line in lines if line["mode"] == mode]
    return sum(line["nll"] for line in own) / sum(line["tokens"] for line in own)


def measured(folder: RunFolder, metric: str) -> dict[tuple[str, str], float]:
    found, _ = read_results(folder.results)
    return {(r.mode, r.dataset): r.value for r in found if r.metric == metric}  # pyright: ignore
