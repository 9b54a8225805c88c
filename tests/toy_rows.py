"""Rows, a base and an oracle for the tests of trainers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from byte_tokenizer import byte_tokenizer
from datasets import Dataset
from oracles import OracleResult, Table, Weights
from routing.tiny import adapter_weights_of, tiny_base
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback

from gradroute.routing.adapters import AdapterSpec

TABLE: Table = {
    "bad": {"good": "freeze", "bad": {"update": 2.0}},
    "unlabeled": {"good": "update", "bad": "update"},
    "good": {"good": "update", "bad": "ablate"},
    "odd": {"good": "detach", "bad": "update"},
}
SPECS = {"good": AdapterSpec(rank=3, alpha=2.0), "bad": AdapterSpec(rank=2, alpha=3.0)}
LABELS = ["bad", "unlabeled", "good", "odd", None, "good"]
TEXTS = ["abab", "cd efg", "the fox", "a b c d", "xyz", "hello you"]


def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def base(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Two layers and a word for each of the tokenizer's, the same weights every time."""
    return tiny_base(dtype=dtype, vocabulary=len(tokenizer()))


def settings(folder: Path, **others: Any) -> dict[str, Any]:
    """What every trainer of the tests is given."""
    common = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": len(TEXTS),
        "max_steps": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "activation_checkpointing": False,
        "bf16": False,
        "dataloader_pin_memory": False,
    }
    return common | others


def text_rows(labels: Sequence[str | None] = LABELS, times: int = 1) -> Dataset:
    return Dataset.from_dict({"text": TEXTS * times, "label": [*labels] * times})


def weights_of(model: nn.Module) -> Weights:
    """Copies of A and B: adapter -> module -> (A, B)."""
    return {
        name: {path: (a.detach().clone(), b.detach().clone()) for path, (a, b) in own.items()}
        for name, own in adapter_weights_of(model).items()
    }


class Gradients(TrainerCallback):
    """Keeps the gradients and the weights of every step as the optimizer finds them."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, Tensor | None], Weights]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        gradients = {
            name: None if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        self.steps.append((gradients, weights_of(model)))


def gradients_of_last_step(trainer: Trainer) -> tuple[dict[str, Tensor | None], Weights]:
    """Train; the gradients of the last step by the names of parameters, and the weights then."""
    kept = Gradients()
    trainer.add_callback(kept)
    trainer.train()
    return kept.steps[-1]


def largest_error(found: dict[str, Tensor | None], reference: OracleResult) -> float:
    """Largest difference of any adapter's gradient from the reference's; a missing one is 0."""
    errors = []
    for adapter, modules in reference.gradients.items():
        for path, pair in modules.items():
            for side, wanted in zip("AB", pair, strict=True):
                grad = found[f"base_model.model.{path}.lora_{side}.{adapter}.weight"]
                errors.append(float(((0 if grad is None else grad) - wanted).abs().max()))
    assert len(errors) == len(found)
    return max(errors)


class ExactHead:
    """TRL's head of log-probabilities in the dtype of the model; its own computes in float32."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        logits = torch.nn.functional.linear(hidden, weight, bias) * scale / temperature
        said = logits.log_softmax(-1)
        entropy = -(said.exp() * said).sum(-1) if "entropy" in outputs else None
        top = (logits.argmax(-1) == targets) if "is_top1" in outputs else None
        mean = logits.mean(-1) if "mean_logits" in outputs else None
        return said.gather(-1, targets[:, None])[:, 0], entropy, None, mean, top
