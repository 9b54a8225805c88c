#!/usr/bin/env bash
# accelerate 1.15.0: under torchrun on a machine without a GPU each process takes itself for the only one
#
# Where two meet: torchrun of torch 2.13.0, which sets RANK and WORLD_SIZE, and PartialState of accelerate
# 1.15.0.
# Guess, written down before it was run: in a script that torchrun starts twice, PartialState() opens a gloo
# group and says 2 processes, as it does with NCCL on two GPUs.
# Seen: it opens a group, and both say 1 process, rank 0, main; nothing is printed about it. With cpu=True they
# say 2, and rank 1 is not main. So a script that writes "on the main process" writes twice.
# Output: what each of two processes says, without and with cpu=True.
# Source: PartialState in accelerate/state.py calls init_process_group wherever LOCAL_RANK is set, with the backend
# that _prepare_backend found; without a GPU and without cpu=True (or ACCELERATE_USE_CPU, which `accelerate
# launch --cpu` sets) that is None, from which torch makes gloo and PartialState "no distributed training".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cat > look.py <<'PYTHON'
import os
import sys

import torch
from accelerate import PartialState

cpu = {"cpu": True} if sys.argv[1] == "cpu" else {}
state = PartialState(**cpu)
told = [state.num_processes, state.process_index, state.is_main_process]
opened = torch.distributed.is_initialized()
line = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: {told}, group {opened}\n"
open(f"{sys.argv[1]}-{os.environ['RANK']}.txt", "w").write(line)
PYTHON
run() {
    CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 timeout 120 env/bin/torchrun --nproc-per-node=2 \
        --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 look.py "$1" > log.txt 2>&1
    cat "$1-0.txt" "$1-1.txt"
}
plain=$(run plain)
cpu=$(run cpu)
printf 'PartialState():\n%s\nPartialState(cpu=True):\n%s\n' "$plain" "$cpu"
[ "$plain" = "rank 0 of 2: [1, 0, True], group True
rank 1 of 2: [1, 0, True], group True" ]
[ "$cpu" = "rank 0 of 2: [2, 0, True], group True
rank 1 of 2: [2, 1, False], group True" ]
