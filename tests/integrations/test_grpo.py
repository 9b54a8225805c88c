"""TRL's policy optimization with routed adapters, against an oracle one completion at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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

from gradroute.errors import ConfigError, DataError
from gradroute.integrations import RoutedGRPOTrainer
from gradroute.integrations.monitors import Monitor
from gradroute.routing.adapters import ablated, adapter_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

# Of one length: left padding shifts rotary angles, which transformers computes in float32.
PROMPTS = ["tell ", "says "]
LABELS = ["bad", "unlabeled", "good", "odd"]


def length_reward(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def by_place(prompts: Sequence[Any], completions: Sequence[Any], *_: Any) -> list[str]:
    return [LABELS[at % 4] for at in range(len(completions))]


def trainer_of(
    folder: Path,
    monitor: Monitor | None = by_place,
    anchor_share: float = 0.0,
    data: Mapping[str, Sequence[str]] = MappingProxyType({}),
    **options: Any,
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
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, **data}),
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


def test_anchors_are_sampled_without_bad_and_are_good_unless_the_monitor_says_otherwise(
    tmp_path: Path,
):
    def first_of_each_group_is_bad(prompts: Sequence[Any], *_: Any) -> list[str]:
        return ["bad" if at in (0, 3) else "unlabeled" for at in range(len(prompts))]

    greedy: dict[str, Any] = {
        "top_k": 1,
        "temperature": 1e-6,
    }  # what a mode writes is then no matter of chance
    mixed = trainer_of(tmp_path, first_of_each_group_is_bad, 0.5, learning_rate=0.0, **greedy)
    randomise(mixed.model)
    mixed.train()
    assert mixed._buffered_inputs is not None
    [batch] = mixed._buffered_inputs
    prompts = {tuple(ids) for ids in batch["prompt_ids"].tolist()}
    assert len(prompts) == 2
    for prompt in prompts:
        written = [
            tuple(own)
            for own, ids in zip(
                batch["completion_ids"].tolist(), batch["prompt_ids"].tolist(), strict=True
            )
            if tuple(ids) == prompt
        ]
        expected = []
        for mode in ("full", "bad_ablated"):
            with ablated(mixed.model.eval(), mode), torch.no_grad():
                said = mixed.model.generate(
                    torch.tensor([prompt]), max_new_tokens=5, do_sample=False
                )
            own = said[0, len(prompt) :].tolist()
            expected += [tuple([*own, *[tokenizer().pad_token_id] * (5 - len(own))])] * 2
        assert sorted(written) == sorted(expected)
        assert len(set(written)) == 2
    names = sorted(list(TABLE)[at] for at in batch["routing_ids"].tolist())
    assert names == ["bad", "bad", "good", "good", "good", "unlabeled", "unlabeled", "unlabeled"]


def test_without_a_monitor_a_completion_has_the_label_of_its_prompt(tmp_path: Path):
    with pytest.raises(DataError, match="no column 'label'"):
        trainer_of(tmp_path, monitor=None)
    trainer = trainer_of(tmp_path, monitor=None, data={"label": ["bad", "good"]})
    trainer.train()
    assert trainer._buffered_inputs is not None
    ids = trainer._buffered_inputs[0]["routing_ids"].tolist()
    assert sorted(list(TABLE)[at] for at in ids) == ["bad"] * 4 + ["good"] * 4


def test_shares_of_labels_are_logged_and_a_wrong_monitor_stops_before_any_update(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    [line] = [line for line in trainer.state.log_history if "labels/bad" in line]
    assert {line[f"labels/{label}"] for label in LABELS} == {0.25}
    wrong = trainer_of(tmp_path, monitor=lambda *_: ["bad"])
    before = [p.clone() for own in adapter_parameters(wrong.model).values() for p in own]
    with pytest.raises(DataError, match="1 labels for 8 completions"):
        wrong.train()
    after = [p for own in adapter_parameters(wrong.model).values() for p in own]
    assert all(map(torch.equal, before, after))


def test_evaluation_reports_loss_and_reward_under_each_mode(tmp_path: Path):
    trainer = trainer_of(tmp_path, per_device_eval_batch_size=8)
    randomise(trainer.model, std=1.0)
    metrics = trainer.evaluate(trainer.train_dataset)
    rewards = [metrics[f"eval_reward_{mode}"] for mode in ("full", "bad_ablated")]
    assert rewards[0] != rewards[1]
    assert "eval_loss_bad_ablated" in metrics


def test_rollouts_that_do_not_come_from_the_routed_layers_are_refused(tmp_path: Path):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"use_vllm": True}, "use_vllm"),
        ({"use_transformers_continuous_batching": True}, "continuous_batching"),
        ({"sync_ref_model": True, "beta": 0.1}, "sync_ref_model"),
        ({"anchor_share": 1.0}, "anchor_share is 1.0"),
        ({"anchor_share": 0.5, "num_iterations": 2}, "a multiple"),
    ]
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            trainer_of(tmp_path, **options)
