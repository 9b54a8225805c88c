"""What routing costs inside TRL's trainer, and what our own loop saves.

    python benchmarks/trainers.py
    python benchmarks/trainers.py --rounds 3 --shapes 2M-16x256

A step of `trl.SFTTrainer` with one LoRA adapter of the whole rank, of `RoutedSFTTrainer` with two,
and of `gradroute train`: same rows, adapters on all linear layers, rank 64 in all, float32, one
thread. A trainer's step is its own: loss with metrics, backward, clipping, optimizer.
"""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import measuring
import shapes
import steps
import torch
from datasets import Dataset
from measuring import Bound
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gradroute.data.batches import Batch
from gradroute.integrations import RoutedSFTTrainer
from gradroute.routing.adapters import AdapterSpec

PLAIN, ROUTED, OURS = "TRL, one adapter", "RoutedSFTTrainer", "gradroute train"
BOUNDS = {
    name: [Bound(ROUTED, PLAIN, 1.05), Bound(OURS, ROUTED, 0.85)]
    for name in ("2M-16x256", "135M-4x64")
}


def settings(folder: str, of: shapes.Shape) -> SFTConfig:
    """The same arguments for both trainers."""
    return SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=of.examples,
        max_length=of.tokens,
        learning_rate=steps.RATE,
        max_grad_norm=1.0,
        max_steps=1,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def rows(batch: Batch) -> Dataset:
    """The batch's rows as a data set that is tokenized, with a label for each."""
    labels = steps.policy("anchored").labels
    ids = batch.input_ids.tolist()
    own = [labels[label] for label in batch.label_ids.tolist()]
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "label": own})


def step_of(trainer: SFTTrainer) -> Callable[[], float]:
    """A step of a trainer on its first batch, as `train` does it between loading and logging."""
    trainer.create_optimizer()
    model, optimizer = trainer.model, trainer.optimizer
    assert model is not None and isinstance(optimizer, torch.optim.Optimizer)
    trainer.current_gradient_accumulation_steps = 1
    [inputs] = list(trainer.get_train_dataloader())
    tokens = (inputs["labels"][:, 1:] != -100).sum()

    def step() -> float:
        loss = trainer.training_step(model, dict(inputs), tokens)
        trainer._get_grad_norm(model, trainer._clip_grad_norm(model))
        optimizer.step()
        model.zero_grad()
        return loss.item()

    return step


def plain(base: LlamaForCausalLM, batch: Batch, of: shapes.Shape, folder: str) -> Callable:
    """TRL with one adapter of the whole rank, which learns from every row."""
    lora = LoraConfig(
        r=2 * shapes.RANK,
        lora_alpha=4 * shapes.RANK,
        target_modules=list(shapes.LINEAR),
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        shapes.sharing(base),
        settings(folder, of),
        train_dataset=rows(batch).remove_columns("label"),
        processing_class=_tokenizer(of),
        peft_config=lora,
    )
    return step_of(trainer)


def routed(base: LlamaForCausalLM, batch: Batch, of: shapes.Shape, folder: str) -> Callable:
    """The same with two adapters of half the rank, routed by label."""
    spec = AdapterSpec(rank=shapes.RANK)
    trainer = RoutedSFTTrainer(
        shapes.sharing(base),
        settings(folder, of),
        policy="anchored",
        adapters={"good": spec, "bad": spec},
        layers="all",
        train_dataset=rows(batch),
        processing_class=_tokenizer(of),
    )
    return step_of(trainer)


def _tokenizer(of: shapes.Shape) -> Any:
    tokenizer = shapes.tokenizer(of.size)
    tokenizer.pad_token, tokenizer.eos_token = "w0", "w2"
    return tokenizer


def measure(name: str, rounds: int, seed: int) -> dict:
    """The table of one shape."""
    of = shapes.shape(name)
    base = shapes.base(of.size)
    batch = shapes.batch(of, steps.label_ids("anchored"), seed)
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            PLAIN: plain(base, batch, of, folder),
            ROUTED: routed(base, batch, of, folder),
            OURS: steps.ours(base, batch, "anchored"),
        }
        times = measuring.interleaved(variants, rounds, seed, warm=1)
    return measuring.table(name, times, PLAIN, seed=seed, bounds=BOUNDS.get(name, ()))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the shapes that are asked for."""
    asked = measuring.options(__doc__, argv, shapes=tuple(BOUNDS))
    question = "What does routing cost inside TRL's trainer, and what does our own loop save?"
    measuring.answer(
        "trainers",
        question,
        asked,
        lambda: [measure(name, asked.rounds, asked.seed) for name in asked.shapes],
    )


if __name__ == "__main__":
    main()
