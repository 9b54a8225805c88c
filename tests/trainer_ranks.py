"""What the ranks of a routed trainer do in a test: each is a child of the fork server."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from toy_rows import SPECS, TABLE, TEXTS, base, settings, text_rows, tokenizer
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from gradroute.integrations import (
    RoutedDPOTrainer,
    RoutedGRPOTrainer,
    RoutedSFTTrainer,
    RoutedTrainer,
)
from gradroute.integrations.monitors import scored
from gradroute.routing.adapters import adapter_parameters
from gradroute.system.launcher import own_rank

ROUTED: dict[str, Any] = {"policy": TABLE, "adapters": SPECS, "layers": "all"}


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Tokens and targets of rows with a text."""
    batch = tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def in_float64(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The mean over targets; transformers' own computes in float32."""
    said = outputs["logits"][:, :-1].flatten(0, 1)
    total = F.cross_entropy(said, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total / num_items_in_batch


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, moments and step counts of every adapter."""
    assert trainer.model is not None
    optimizer: Any = trainer.optimizer
    state: Mapping[Any, Mapping[str, Any]] = optimizer.state
    found: dict[str, Tensor] = {}
    for name, weights in adapter_parameters(trainer.model).items():
        for at, weight in enumerate(weights):
            found[f"{name}/{at}"] = weight.detach().clone()
            for key, value in state.get(weight, {}).items():
                found[f"{name}/{at}/{key}"] = torch.as_tensor(value).clone()
    return found


def make(kind: str, out: Path, labels: Sequence[str | None], options: Mapping[str, Any]) -> Trainer:
    """A trainer of the toy base; `plain` in float64."""
    given = settings(out / "trained", **options)
    rows = text_rows(labels)
    if kind == "plain":
        return RoutedTrainer(
            base(),
            TrainingArguments(remove_unused_columns=False, **given),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collate,
            compute_loss_func=in_float64,
            **ROUTED,
        )
    words, model = tokenizer(), base(torch.float32)
    if kind == "sft":
        args = SFTConfig(**given)
        return RoutedSFTTrainer(model, args, train_dataset=rows, processing_class=words, **ROUTED)
    if kind == "dpo":
        sides = {"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS[::-1], "label": [*labels]}
        pairs = Dataset.from_dict(sides)
        args = DPOConfig(**given)
        return RoutedDPOTrainer(model, args, train_dataset=pairs, processing_class=words, **ROUTED)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text))) for text in completions]

    def monitor(prompts: Any, completions: Any, rewards: Any, columns: Any) -> Sequence[str]:
        assert [*rewards] == reward(completions)  # those of the completions that are here
        return by_reward(prompts, completions, rewards, columns)

    by_reward = scored(lambda text, _: len(set(text)), low=2.0, high=3.5)
    own = {"num_generations": 3, "max_completion_length": 4, "beta": 0.1}
    return RoutedGRPOTrainer(
        model,
        reward,
        GRPOConfig(**given | own),
        train_dataset=Dataset.from_dict({"prompt": ["tell ", "says ", "what ", "then "]}),
        processing_class=words,
        monitor=monitor,
        **ROUTED,
    )


def trained(
    kind: str,
    out: str,
    labels: Sequence[str | None] = (),
    options: Mapping[str, Any] | None = None,
    start: str = "",
    seeds: Sequence[int] = (),
    evaluate: bool = False,
) -> None:
    """Train; leave the state of this rank, and what it logged."""
    torch.set_num_threads(1)
    folder, rank = Path(out), own_rank()
    given = {**(options or {}), **({"seed": seeds[rank]} if seeds else {})}
    trainer = make(kind, folder, labels, given)
    trainer.train(resume_from_checkpoint=start or None)
    metrics = trainer.evaluate() if evaluate else {}
    save_file(state_of(trainer), folder / f"state-{rank}.safetensors")
    told = {"log": trainer.state.log_history, "evaluated": metrics}
    (folder / f"told-{rank}.json").write_text(json.dumps(told, default=float))
