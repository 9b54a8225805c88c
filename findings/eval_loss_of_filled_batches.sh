#!/usr/bin/env bash
# transformers 5.23.0: eval_loss on two processes counts some rows more often than others
#
# Where two meet: batches that accelerate 1.15.0 fills up with rows from the start of the data set, so that every
# process has as many, and Trainer.evaluate of transformers 5.23.0, which repeats the mean of a batch for each of its rows.
# Guess, written down before it was run: the eval_loss of three rows of equal length is the same on one process and on
# two, because gather_for_metrics cuts off what was filled up.
# Seen: on one process it is the mean of the three rows, 6.439. On two processes with two rows a batch it is 6.391: row 0
# counts 1.5 times, row 2 half. Nothing is printed about it.
# Output: the loss of each row, their mean, the weighted mean, and eval_loss, on one process and on each of two.
# Source: evaluation_loop in transformers/trainer.py gathers `loss.repeat(batch_size)`. The filled row is inside the mean
# of its batch (rows 2 and 0); cutting the gathered list to three entries drops one copy of that mean, and not the row.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cat > look.py <<'PYTHON'
import os

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.5))
rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (3, 8)).tolist()]
with torch.no_grad():
    tokens = [torch.tensor([row["labels"]]) for row in rows]
    losses = [model(input_ids=own, labels=own).loss.item() for own in tokens]
arguments = TrainingArguments(
    output_dir="out", use_cpu=True, report_to="none", per_device_eval_batch_size=2, disable_tqdm=True
)
found = Trainer(model, arguments, eval_dataset=rows).evaluate()["eval_loss"]
mean = sum(losses) / 3
weighted = (1.5 * losses[0] + losses[1] + 0.5 * losses[2]) / 3
rank, size = (int(os.environ.get(key, number)) for key, number in (("RANK", 0), ("WORLD_SIZE", 1)))
told = " ".join(f"{loss:.3f}" for loss in losses)
line = f"rows {told}, mean {mean:.3f}, weighted {weighted:.3f}, eval_loss {found:.3f}\n"
open(f"{size}-{rank}.txt", "w").write(line)
assert abs(found - (mean if size == 1 else weighted)) < 1e-4 < abs(mean - weighted), line
PYTHON
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
env/bin/python look.py > log.txt 2>&1
timeout 120 env/bin/torchrun --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 look.py >> log.txt 2>&1
printf 'one process:\n%s\ntwo processes:\n%s\n%s\n' "$(cat 1-0.txt)" "$(cat 2-0.txt)" "$(cat 2-1.txt)"
