#!/usr/bin/env bash
# torch 2.13.0: fully_shard on gloo averages gradients, but asked not to divide them it cannot reduce
#
# Where two meet: FSDPModule.set_gradient_divide_factor and the gloo backend.
# Guess, written down before it was run: a factor of 1.0 turns the average over ranks into a sum, on gloo as on
# NCCL, since a sum is what every backend has.
# Seen: without a factor the backward pass averages. With 1.0 it raises "Cannot use ReduceOp.PREMUL_SUM with
# Gloo". With set_force_sum_reduction_for_comms(True) beside it, it sums.
# Output: the gradient of one weight for each of the three; both of two ranks give 1.0 to it.
# Source: _get_gradient_divide_factors in torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py takes
# _make_nccl_premul_sum for any factor that is not the number of ranks, whatever the backend.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 numpy==2.4.6
cat > look.py <<'PYTHON'
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

distributed.init_process_group("gloo")


def gradient(factor, force):
    layer = nn.Linear(2, 2, bias=False)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    layer.set_force_sum_reduction_for_comms(force)
    if factor is not None:
        layer.set_gradient_divide_factor(factor)
    layer(torch.ones(1, 2)).sum().backward()
    return float(layer.weight.grad.full_tensor()[0, 0])


told = []
for factor, force in ((None, False), (1.0, False), (1.0, True)):
    try:
        told.append(str(gradient(factor, force)))
    except RuntimeError as error:
        told.append(str(error).strip().splitlines()[0])
if distributed.get_rank() == 0:
    print("\n".join(told))
distributed.destroy_process_group()
PYTHON
found=$(OMP_NUM_THREADS=1 timeout 120 env/bin/torchrun --nproc-per-node=2 --rdzv-backend=c10d \
    --rdzv-endpoint=127.0.0.1:0 look.py 2> err.txt || cat err.txt)
echo "$found"
[ "$found" = "1.0
Cannot use ReduceOp.PREMUL_SUM with Gloo
2.0" ]
