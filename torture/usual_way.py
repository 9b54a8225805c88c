"""The usual way to train an adapter, as its guides show it: transformers' Trainer on a PEFT model.

What the children of `torture.usual` do. The same base, texts, steps, accumulation, dropout and
saving interval as the runs of `torture.runs`, two checkpoints kept as there.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import get_last_checkpoint

from torture.runs import SAVE_EVERY, STEPS

LENGTH = 24
ASKED = 75


def train(ground: str, out: str, adapters: int = 1, steps: int = STEPS) -> int:
    """In a child: train, or go on from the last checkpoint; 75 where a signal stopped it."""
    set_seed(0)  # before the adapter draws its weights
    trainer = _trainer(Path(ground), Path(out), adapters)
    trainer.add_callback(_Steps(Path(out) / "steps", steps))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, JITCheckpointCallback) and callback.jit_manager is not None:
            callback.jit_manager.kill_wait = 0  # three seconds are longer than this whole run
    there = get_last_checkpoint(out)
    if there:
        print(f"goes on after {Path(there).name}", file=sys.stderr, flush=True)
    trainer.train(resume_from_checkpoint=there is not None)
    if trainer.state.global_step < min(steps, STEPS):
        return ASKED
    (Path(out) / "final.json").write_text(json.dumps(_finals(trainer)), encoding="utf-8")
    return 0


def _trainer(ground: Path, out: Path, adapters: int) -> Trainer:
    model = AutoModelForCausalLM.from_pretrained(ground / "base", dtype=torch.float32)
    config = LoraConfig(
        r=5, lora_alpha=10, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config, adapter_name="good")
    if adapters == 2:
        model.add_adapter("bad", config)
        tuner: Any = model.base_model
        tuner.set_adapter(["good", "bad"])
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        lr_scheduler_type="cosine",
        save_steps=SAVE_EVERY,
        save_total_limit=2,
        logging_steps=1,
        seed=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        enable_jit_checkpoint=True,
        dataloader_num_workers=0,
    )
    return Trainer(model=model, args=arguments, train_dataset=_Rows(ground))  # pyright: ignore


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The examples, padded; what is padding is not learned."""

    def __init__(self, ground: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(ground / "base")
        lines = (ground / "data.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines[:96]]
        self.rows = []
        for text in texts:
            ids = tokenizer(text)["input_ids"][:LENGTH]
            rest = LENGTH - len(ids)
            self.rows.append(
                {
                    "input_ids": ids + [0] * rest,
                    "attention_mask": [1] * len(ids) + [0] * rest,
                    "labels": ids + [-100] * rest,
                }
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return self.rows[at]


class _Steps(TrainerCallback):
    """A line per step, for whoever watches; and an end where one is wanted."""

    def __init__(self, path: Path, last: int) -> None:
        self.path, self.last = path, last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with self.path.open("ab") as stream:
            stream.write(b".\n")
        if state.global_step >= self.last:
            control.should_training_stop = True


def _finals(trainer: Trainer) -> dict[str, str]:
    model, optimizer = trainer.model, trainer.optimizer
    assert isinstance(model, PeftModel)
    assert isinstance(optimizer, AcceleratedOptimizer)
    weights = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    moments = [
        value
        for state in optimizer.state.values()
        for _, value in sorted(state.items())
        if isinstance(value, torch.Tensor)
    ]
    kept = ("step", "loss", "grad_norm", "learning_rate")
    losses = [{key: row.get(key) for key in kept} for row in trainer.state.log_history]
    return {
        "weights": _digest(weights),
        "moments": _digest(moments),
        "losses": hashlib.sha256(json.dumps(losses[:STEPS]).encode()).hexdigest(),
    }


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
