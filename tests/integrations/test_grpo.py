"""TRL's policy optimization with routed adapters, against an oracle one completion at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from oracles import reference_of_rows
from routing.tiny import randomise, scalings_of
from torch import Tensor
from toy_rows import (
    SPECS,
    TABLE,
    ExactHead,
    base,
    gradients_of_last_step,
    largest_error,
    settings,
    tokenizer,
)
from trl.trainer.grpo_config import GRPOConfig

from gradroute.integrations import RoutedGRPOTrainer
from gradroute.integrations.monitors import Monitor

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

# Of one length: left padding shifts rotary angles, which transformers computes in float32.
PROMPTS = ["tell ", "says "]
LABELS = ["bad", "unlabeled", "good", "odd"]


def length_reward(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def by_place(prompts: Sequence[Any], completions: Sequence[Any], *_: Any) -> list[str]:
    return [LABELS[at % 4] for at in range(len(completions))]


def trainer_of(
    folder: Path, monitor: Monitor | None = by_place, anchor_share: float = 0.0, **options: Any
) -> RoutedGRPOTrainer:
    own = {
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "temperature": 1.0,
        "disable_dropout": True,
    }
    return RoutedGRPOTrainer(
        base(),
        length_reward,
        GRPOConfig(**settings(folder, **own | options)),
        policy=TABLE,
        adapters=SPECS,
        layers="all",
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
        monitor=monitor,
        anchor_share=anchor_share,
    )


def says(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    with torch.no_grad():
        found = [model(torch.tensor([list(ids)])).logits[0, :-1].log_softmax(-1) for ids in rows]
    return [
        own.gather(1, torch.tensor(list(ids[1:]))[:, None])[:, 0]
        for own, ids in zip(found, rows, strict=True)
    ]


@pytest.mark.parametrize("beta", [0.0, 0.4])
@pytest.mark.parametrize(
    "options", [{}, {"loss_type": "grpo"}, {"num_iterations": 2, "max_steps": 2}]
)
def test_gradients_on_mixed_labels_in_a_group_are_those_of_the_table_one_completion_at_a_time(
    tmp_path: Path, beta: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", ExactHead)
    trainer = trainer_of(tmp_path, beta=beta, **options)
    assert trainer.ref_model is None
    randomise(trainer.model)
    scalings = scalings_of(trainer.model)
    found, weights = gradients_of_last_step(trainer)
    assert trainer._buffered_inputs is not None
    [batch] = trainer._buffered_inputs
    masks = [batch["prompt_mask"].bool(), batch["completion_mask"].bool()]
    rows = [
        [*prompt[kept].tolist(), *completion[written].tolist()]
        for prompt, completion, kept, written in zip(
            batch["prompt_ids"], batch["completion_ids"], *masks, strict=True
        )
    ]
    starts = [int(mask.sum()) for mask in masks[0]]
    names = [list(TABLE)[at] for at in batch["routing_ids"].tolist()]
    assert set(names) == set(LABELS)
    labels = [[name] * len(ids) for name, ids in zip(names, rows, strict=True)]
    of_base, advantages = says(base(), rows), batch["advantages"].double()
    lengths = [len(ids) - start for ids, start in zip(rows, starts, strict=True)]
    sampled = batch.get("old_per_token_logps")
    clipped = []

    def loss(own: list[Tensor]) -> Tensor:
        """Shao et al. 2024 (arXiv 2402.03300) equations 3 and 4, the KL term times the ratio, as
        TRL has it; the mean is over tokens (DAPO) or over rows."""
        total = torch.zeros((), dtype=torch.float64)
        for at, (row, ref, start) in enumerate(zip(own, of_base, starts, strict=True)):
            said, other = row[start - 1 :], ref[start - 1 :]
            before = said.detach() if sampled is None else sampled[at, : lengths[at]]
            ratio = (said - before).exp()
            bounded = ratio.clamp(0.8, 1.2)
            clipped.append(bool((bounded != ratio).any()))
            gain = torch.minimum(ratio * advantages[at], bounded * advantages[at])
            kl = ratio * ((other - said).exp() - (other - said) - 1)
            by_row = options.get("loss_type") == "grpo"
            share = len(own) * lengths[at] if by_row else sum(lengths)
            total = total - ((gain - beta * kl) / share).sum()
        return total

    wanted = reference_of_rows(base(), weights, scalings, TABLE, rows, labels, loss)
    assert largest_error(found, wanted) < 1e-10
    assert any(clipped) == (sampled is not None)
