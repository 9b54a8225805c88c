"""What all routed trainers share: skipped adapters, going on, evaluation, and what is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from oracles import reference_of_rows
from routing.tiny import adapter_weights_of, randomise, scalings_of
from torch import Tensor
from toy_rows import (
    LABELS,
    SPECS,
    TABLE,
    TEXTS,
    base,
    gradients_of_last_step,
    largest_error,
    settings,
    text_rows,
    tokenizer,
    weights_of,
)
from trainer_ranks import collate, in_float64, state_of
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from gradroute.config.sections import AdapterConfig
from gradroute.errors import ConfigError, DataError, MachineError, NumericError
from gradroute.integrations import (
    RoutedDPOTrainer,
    RoutedGRPOTrainer,
    RoutedSFTTrainer,
    RoutedTrainer,
)
from gradroute.integrations.monitors import ImperfectMonitor, scored
from gradroute.routing.adapters import adapter_parameters, attach_adapters

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

ROUTED: dict[str, Any] = {"policy": TABLE, "adapters": SPECS, "layers": "all"}


def plain(folder: Path, data: Dataset | None = None, **options: Any) -> RoutedTrainer:
    names = (
        "eval_dataset",
        "optimizer_cls_and_kwargs",
        "policy",
        "label_column",
        "adapters",
        "eval_modes",
    )
    own = {key: options.pop(key) for key in names if key in options}
    return RoutedTrainer(
        base(torch.float32),
        TrainingArguments(**settings(folder, remove_unused_columns=False, **options)),
        train_dataset=text_rows() if data is None else data,
        data_collator=collate,
        **ROUTED | own,
    )


@pytest.mark.parametrize("accumulated", [1, 3])
def test_gradients_of_the_plain_trainer_are_those_of_the_table_one_row_at_a_time(
    tmp_path: Path, accumulated: int
):
    size = {
        "per_device_train_batch_size": len(TEXTS) // accumulated,
        "gradient_accumulation_steps": accumulated,
    }
    trainer = RoutedTrainer(
        base(),
        TrainingArguments(
            **settings(tmp_path, remove_unused_columns=False, max_grad_norm=0.0, **size)
        ),
        train_dataset=text_rows(),
        data_collator=collate,
        compute_loss_func=in_float64,
        **ROUTED,
    )
    randomise(trainer.model)
    weights, scalings = weights_of(trainer.model), scalings_of(trainer.model)
    rows = [[*tokenizer()(text)["input_ids"]] for text in TEXTS]
    names = ["unlabeled" if label is None else label for label in LABELS]
    labels = [[name] * len(ids) for name, ids in zip(names, rows, strict=True)]
    wanted = reference_of_rows(
        base(), weights, scalings, TABLE, rows, labels, lambda said: -torch.cat(said).mean()
    )
    assert largest_error(gradients_of_last_step(trainer)[0], wanted) < 1e-10


def sft(folder: Path, **options: Any) -> RoutedSFTTrainer:
    return RoutedSFTTrainer(
        base(torch.float32),
        SFTConfig(**settings(folder, **options)),
        train_dataset=text_rows(),
        processing_class=tokenizer(),
        **ROUTED,
    )


def dpo(folder: Path, **options: Any) -> RoutedDPOTrainer:
    texts = text_rows()
    pairs = {"prompt": texts["text"], "chosen": texts["text"], "rejected": texts["text"][::-1]}
    return RoutedDPOTrainer(
        base(torch.float32),
        DPOConfig(**settings(folder, **options)),
        train_dataset=Dataset.from_dict({**pairs, "label": texts["label"]}),
        processing_class=tokenizer(),
        **ROUTED,
    )


def grpo(folder: Path, **options: Any) -> RoutedGRPOTrainer:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text))) for text in completions]

    own = {"num_generations": 3, "max_completion_length": 4, "beta": 0.1}
    by_reward = scored(lambda text, _: len(set(text)), low=2.0, high=3.5)
    return RoutedGRPOTrainer(
        base(torch.float32),
        reward,
        GRPOConfig(**settings(folder, **own | options)),
        train_dataset=Dataset.from_dict({"prompt": ["tell ", "says ", "what ", "then "]}),
        processing_class=tokenizer(),
        monitor=ImperfectMonitor(by_reward, recall=0.5, false_alarms=0.2, seed=4),
        **ROUTED,
    )


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("make", [plain, sft, dpo, grpo])
def test_a_training_that_goes_on_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tmp_path: Path, make: Callable[..., Trainer]
):
    saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "weight_decay": 0.1}
    whole = make(tmp_path / "whole", **saving)
    whole.train()
    again = make(tmp_path / "again", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.state.global_step == 6
    assert same(state_of(again), state_of(whole))
    assert all(
        torch.as_tensor(value).any() for key, value in state_of(again).items() if "exp_avg" in key
    )


def test_an_adapter_that_no_label_updates_keeps_weights_moments_and_step_count(tmp_path: Path):
    trainer = plain(tmp_path, max_steps=2, weight_decay=0.1)
    trainer.train()
    before = state_of(trainer)
    trainer.train_dataset = text_rows(["good"] * 6)
    trainer.args.max_steps = 20
    trainer.train()
    after = state_of(trainer)
    of_bad = {key for key in before if key.startswith("bad/")}
    assert same({key: before[key] for key in of_bad}, {key: after[key] for key in of_bad})
    assert not any(torch.equal(before[key], after[key]) for key in before.keys() - of_bad)


def test_each_adapter_is_clipped_by_itself_at_a_rate_of_its_own(tmp_path: Path):
    adapters = {
        "good": AdapterConfig(rank=2, learning_rate=0.5, clip=1e-3),
        "bad": AdapterConfig(rank=2, weight_decay=0.25, clip=None),
    }
    trainer = plain(tmp_path, adapters=adapters, max_grad_norm=7.0)
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    kept = ("adapter", "lr", "weight_decay", "clip")
    assert [{key: group[key] for key in kept} for group in trainer.optimizer.param_groups] == [
        {"adapter": "good", "lr": 0.5, "weight_decay": 0.0, "clip": 1e-3},
        {"adapter": "bad", "lr": 1e-2, "weight_decay": 0.25, "clip": None},
    ]
    shared = plain(tmp_path, max_grad_norm=0.5)
    shared.train()
    [line] = [line for line in shared.state.log_history if "grad_norm" in line]
    assert {"grad_norm_good", "grad_norm_bad"} < line.keys()


def test_the_users_optimizer_is_split_by_adapter_or_refused(tmp_path: Path):
    trainer = plain(tmp_path)
    own = [p for weights in adapter_parameters(trainer.model).values() for p in weights]
    trainer.optimizer = torch.optim.SGD(own, lr=0.1, momentum=0.9)
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert [(group["adapter"], group["momentum"]) for group in groups] == [
        ("good", 0.9),
        ("bad", 0.9),
    ]
    for weights, message in (
        ([*own, trainer.model.get_output_embeddings().weight], "in no adapter"),
        (own[1:], "lacks weights of adapter 'good'"),
    ):
        trainer.optimizer = torch.optim.SGD(weights, lr=0.1)
        with pytest.raises(ConfigError, match=message):
            trainer.create_optimizer()
    trainer.optimizer = torch.optim.SGD([{"params": own[:1]}, {"params": own[1:]}], lr=0.1)
    with pytest.raises(ConfigError, match="in several groups"):
        trainer.create_optimizer()


def test_evaluation_reports_the_loss_by_mode_and_label_and_restores_the_best_adapters(
    tmp_path: Path,
):
    trainer = plain(
        tmp_path,
        eval_dataset=text_rows(),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss_bad_ablated_good",
        greater_is_better=False,
        per_device_eval_batch_size=2,
    )
    trainer.train()
    metrics = trainer.evaluate()
    modes = {"full", "bad_ablated"}
    labels = {"", "_bad", "_unlabeled", "_good", "_odd"}
    assert {f"eval_loss_{mode}{label}" for mode in modes for label in labels} < metrics.keys()
    assert metrics["eval_loss_full"] == pytest.approx(metrics["eval_loss"])
    history = [
        line["eval_loss_bad_ablated_good"]
        for line in trainer.state.log_history
        if "eval_loss_bad_ablated_good" in line
    ]
    assert len(set(history[:4])) == 4
    assert metrics["eval_loss_bad_ablated_good"] == pytest.approx(min(history[:4]), abs=1e-6)


def test_options_that_go_past_the_routed_layers_are_refused_before_step_1(tmp_path: Path):
    adapted = attach_adapters(base(), SPECS, layers="all")
    with pytest.raises(ConfigError, match="Hand the base model"):
        RoutedTrainer(
            adapted, TrainingArguments(**settings(tmp_path)), train_dataset=text_rows(), **ROUTED
        )
    with pytest.raises(ConfigError, match="use_liger_kernel replaces"):
        plain(tmp_path, use_liger_kernel=True)
    with pytest.raises(ConfigError, match="peft_config="):
        RoutedSFTTrainer(base(), None, train_dataset=text_rows(), peft_config=object(), **ROUTED)
    with pytest.raises(DataError, match=r"no column 'kind'.*label_column="):
        plain(tmp_path, label_column="kind")
    with pytest.raises(ConfigError, match=r"'worse' has no row"):
        plain(tmp_path, text_rows(["worse"] * 6))
    with pytest.raises(DataError, match="holds 1; labels are text"):
        plain(tmp_path, Dataset.from_dict({"text": ["a"], "label": [1]}))
    own = (torch.optim.SGD, {"params": [], "lr": 0.1})
    with pytest.raises(ConfigError, match="makes parameter groups of its own"):
        plain(tmp_path, optimizer_cls_and_kwargs=own).train()
    with pytest.raises(ConfigError, match="ref_model="):
        RoutedDPOTrainer(base(), None, ref_model=base(), train_dataset=text_rows(), **ROUTED)


def test_a_checkpoint_of_another_trainer_is_named(tmp_path: Path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(MachineError, match="not saved by a routed trainer"):
        plain(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_gradient_that_is_not_finite_stops_before_any_weight_changes(tmp_path: Path):
    trainer = plain(tmp_path)
    with torch.no_grad():
        adapter_parameters(trainer.model)["bad"][0].fill_(float("inf"))
    good = [p.clone() for p in adapter_parameters(trainer.model)["good"]]
    with pytest.raises(NumericError, match="no weight was changed"):
        trainer.train()
    assert all(map(torch.equal, good, adapter_parameters(trainer.model)["good"]))


def test_the_adapters_of_a_half_precision_base_are_fp32(tmp_path: Path):
    trainer = RoutedTrainer(
        base(torch.bfloat16),
        TrainingArguments(**settings(tmp_path, remove_unused_columns=False)),
        train_dataset=text_rows(),
        data_collator=collate,
        **ROUTED,
    )
    trainer.train()
    weights = adapter_weights_of(trainer.model)
    assert {w.dtype for own in weights.values() for pair in own.values() for w in pair} == {
        torch.float32
    }


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_data_set_that_is_handed_to_evaluate_is_prepared_and_measured_by_mode(
    tmp_path: Path, make: Callable[..., Trainer]
):
    precomputed = {"precompute_ref_log_probs": True} if make is dpo else {}
    trainer = make(tmp_path, **precomputed)
    raw = (
        text_rows()
        if make is sft
        else Dataset.from_dict(
            {
                "prompt": ["go ", "say "],
                "chosen": ["ab", "cd"],
                "rejected": ["e", "f"],
                "label": ["bad", None],
            }
        )
    )
    metrics = trainer.evaluate(raw)  # pyright: ignore[reportArgumentType]
    assert metrics["eval_loss_full"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    assert {"eval_loss_bad_ablated_bad", "eval_loss_bad_ablated_unlabeled"} < metrics.keys()
