"""TRL's preference trainer with routed adapters, against an oracle one row at a time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
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
    weights_of,
)
from trl.trainer.dpo_config import DPOConfig

from gradroute.integrations import RoutedDPOTrainer

# TRL 1.16 asks transformers 5.23 for a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

PROMPTS = ["tell ", "say it ", "why ", "go "]
CHOSEN = ["abab", "cd efg", "the fox", "xyz"]
REJECTED = ["no", "a b c d", "you", "hello you"]
BY_SIDE = (["good", "unlabeled", "odd", "good"], ["bad", "bad", "unlabeled", "good"])


def pairs(labels: Mapping[str, Sequence[str]]) -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED, **labels})


def trainer_of(
    folder: Path, dataset: Dataset | IterableDataset, **options: Any
) -> RoutedDPOTrainer:
    own = {"max_grad_norm": 0.0, "per_device_train_batch_size": 4, "beta": 0.3}
    return RoutedDPOTrainer(
        base(),
        DPOConfig(**settings(folder, **own | options)),
        policy=TABLE,
        adapters=SPECS,
        layers="all",
        train_dataset=dataset,
        processing_class=tokenizer(),
    )


def sigmoid_loss(
    prompts: Sequence[int], base_says: list[Tensor], smoothing: float
) -> Callable[[list[Tensor]], Tensor]:
    """DPO's loss (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    With smoothing the robust one (Chowdhury et al. 2024, arXiv 2403.00409, equation 12), where TRL
    applies its `label_smoothing`.
    """

    def loss(rows: list[Tensor]) -> Tensor:
        gains = [
            own[start - 1 :].sum() - ref[start - 1 :].sum()
            for own, ref, start in zip(rows, base_says, [*prompts, *prompts], strict=True)
        ]
        chosen, rejected = torch.stack(gains).chunk(2)
        margin = 0.3 * (chosen - rejected)
        kept, flipped = F.logsigmoid(margin), F.logsigmoid(-margin)
        return (((smoothing - 1) * kept + smoothing * flipped) / (1 - 2 * smoothing)).mean()

    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("sides", [False, True])
def test_gradients_on_mixed_labels_are_those_of_the_table_one_row_at_a_time(
    tmp_path: Path,
    smoothing: float,
    precomputed: bool,
    sides: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", ExactHead)
    chosen, rejected = BY_SIDE if sides else (BY_SIDE[1], BY_SIDE[1])
    columns = {"label_chosen": chosen, "label_rejected": rejected} if sides else {"label": chosen}
    trainer = trainer_of(
        tmp_path,
        pairs(columns),
        loss_type=["robust" if smoothing else "sigmoid"],
        label_smoothing=smoothing,
        precompute_ref_log_probs=precomputed,
    )
    assert trainer.ref_model is None
    randomise(trainer.model)
    weights, scalings = weights_of(trainer.model), scalings_of(trainer.model)
    data = trainer.train_dataset
    rows = [p + c for p, c in zip(data["prompt_ids"], data["chosen_ids"], strict=True)]
    rows += [p + r for p, r in zip(data["prompt_ids"], data["rejected_ids"], strict=True)]
    labels = [[name] * len(ids) for name, ids in zip([*chosen, *rejected], rows, strict=True)]
    with torch.no_grad():
        model = base()
        says = [model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for ids in rows]
    of_base = [
        own.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        for own, ids in zip(says, rows, strict=True)
    ]
    loss = sigmoid_loss([len(p) for p in data["prompt_ids"]], of_base, smoothing)
    wanted = reference_of_rows(base(), weights, scalings, TABLE, rows, labels, loss)
    # TRL keeps precomputed log-probabilities in float32.
    limit = 1e-5 if precomputed else 1e-10
    assert largest_error(gradients_of_last_step(trainer)[0], wanted) < limit


def test_streamed_pairs_teach_what_pairs_in_memory_do(tmp_path: Path):
    chosen, rejected = BY_SIDE
    dataset = pairs({"label_chosen": chosen, "label_rejected": rejected})
    found = []
    for rows, folder in ((dataset, "memory"), (dataset.to_iterable_dataset(), "stream")):
        trainer = trainer_of(tmp_path / folder, rows)
        assert trainer.routing.columns.names == ("label_chosen", "label_rejected")
        randomise(trainer.model)
        found.append(gradients_of_last_step(trainer)[0])
    memory, stream = found
    assert memory.keys() == stream.keys()
    assert max(float((memory[name] - stream[name]).abs().max()) for name in memory) < 1e-12
