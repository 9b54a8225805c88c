"""TRL's supervised trainer with routed adapters, against an oracle one row at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import reference_of_rows
from routing.tiny import randomise, scalings_of
from toy_rows import (
    LABELS,
    SPECS,
    TABLE,
    TEXTS,
    ExactHead,
    base,
    gradients_of_last_step,
    largest_error,
    settings,
    text_rows,
    tokenizer,
    weights_of,
)
from transformers import BitsAndBytesConfig, LlamaForCausalLM
from trl.trainer.sft_config import SFTConfig

from gradroute.errors import DataError
from gradroute.integrations import RoutedSFTTrainer


def trainer_of(folder: Path, dataset: Any = None, **options: Any) -> RoutedSFTTrainer:
    own = {"max_length": 32, "max_grad_norm": 0.0, "dataset_num_proc": None}
    return RoutedSFTTrainer(
        base(),
        SFTConfig(**settings(folder, **own | options)),
        policy=TABLE,
        adapters=SPECS,
        layers="all",
        train_dataset=text_rows() if dataset is None else dataset,
        processing_class=tokenizer(),
    )


def token_mean(rows: list[torch.Tensor]) -> torch.Tensor:
    return -torch.cat(rows).mean()


@pytest.fixture
def exact_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", ExactHead)


BATCHES: dict[str, dict[str, Any]] = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    "checkpointed": {"activation_checkpointing": True},
    "padding_free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "packing_strategy": "bfd", "max_length": 40},
    "packed_split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 40},
    "streamed": {"dataset": text_rows().to_iterable_dataset()},
}


@pytest.mark.parametrize("options", BATCHES.values(), ids=BATCHES)
def test_gradients_on_mixed_labels_are_those_of_the_table_one_row_at_a_time(
    tmp_path: Path, options: dict[str, Any], exact_head: None
):
    trainer = trainer_of(tmp_path, **options)
    randomise(trainer.model)
    weights, scalings = weights_of(trainer.model), scalings_of(trainer.model)
    rows = [[*tokenizer()(f"{text}</s>")["input_ids"]] for text in TEXTS]
    named = ["unlabeled" if label is None else label for label in LABELS]
    labels = [[name] * len(ids) for name, ids in zip(named, rows, strict=True)]
    wanted = reference_of_rows(base(), weights, scalings, TABLE, rows, labels, token_mean)
    assert largest_error(gradients_of_last_step(trainer)[0], wanted) < 1e-10


def test_adapters_on_a_base_in_4_bits_stay_fp32_and_the_base_as_it_was_loaded(tmp_path: Path):
    base(torch.float32).save_pretrained(tmp_path / "base")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=bits)
    before = {name: p.dtype for name, p in model.named_parameters()}
    trainer = RoutedSFTTrainer(
        model,
        SFTConfig(**settings(tmp_path, max_steps=2)),
        policy=TABLE,
        adapters=SPECS,
        layers="all",
        train_dataset=text_rows(),
        processing_class=tokenizer(),
    )
    start = weights_of(trainer.model)
    trainer.train()
    end = weights_of(trainer.model)
    parts = [pair for own in end.values() for pair in own.values()]
    assert {weight.dtype for pair in parts for weight in pair} == {torch.float32}
    assert not any(
        torch.equal(end[name][path][1], start[name][path][1]) for name in end for path in end[name]
    )
    now = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p.dtype
        for name, p in trainer.model.named_parameters()
        if "lora_" not in name
    }
    assert now == before


def test_rows_that_are_cut_across_texts_have_the_label_of_each_target(
    tmp_path: Path, exact_head: None
):
    trainer = trainer_of(tmp_path, packing=True, packing_strategy="wrapped", max_length=13)
    randomise(trainer.model)
    weights, scalings = weights_of(trainer.model), scalings_of(trainer.model)
    tokens = [
        (token, label or "unlabeled")
        for text, label in zip(TEXTS, LABELS, strict=True)
        for token in tokenizer()(f"{text}</s>")["input_ids"]
    ]
    cut = [tokens[at : at + 13] for at in range(0, len(tokens), 13)]
    assert len(cut) > 3 and any(len({label for _, label in row}) > 1 for row in cut)
    rows = [[token for token, _ in row] for row in cut]
    labels = [[label for _, label in [*row[1:], row[-1]]] for row in cut]
    wanted = reference_of_rows(base(), weights, scalings, TABLE, rows, labels, token_mean)
    assert largest_error(gradients_of_last_step(trainer)[0], wanted) < 1e-10


def test_a_streamed_row_without_a_label_column_is_an_error_before_the_first_step(tmp_path: Path):
    rows = text_rows().remove_columns("label").to_iterable_dataset()
    trainer = trainer_of(tmp_path, rows)
    with pytest.raises(DataError, match="a row has no column 'label' for its label"):
        trainer.train()
    assert trainer.state.global_step == 0
