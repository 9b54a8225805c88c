"""Checkpoints of two small adapters, for what is done to them."""

import hashlib
import json
from functools import cache

import torch
from small_llama import small_llama

from gradroute.errors import MachineError as MachineError
from gradroute.models.checkpoint import save_checkpoint
from gradroute.routing.adapters import AdapterSpec, attach_adapters


def model(seed=0, rank=3, names=("good", "bad"), targets="all-linear"):
    shape = AdapterSpec(rank=rank, alpha=6.0)
    shapes = dict.fromkeys(names, shape)
    return attach_adapters(small_llama(), shapes, layers="all", targets=targets, seed=seed)


@cache
def _usual(seed):
    return model(seed)


def save(folder, step, seed=0, of=None, moment=None, **more):
    moments = {"weight/exp_avg": torch.full((2, 2), float(step) if moment is None else moment)}
    return save_checkpoint(
        folder,
        step,
        of or _usual(seed),
        moments,
        config_text="run_name: x\n",
        policy={"name": "absorb"},
        **more,
    )


def signed(checkpoint, changes=None):
    """Make the manifest fit whatever is in the folder now, as somebody who tampers would."""
    path = checkpoint.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {
        str(file.relative_to(checkpoint.path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files_of(checkpoint)
        if file != path
    }
    path.write_text(json.dumps(manifest | (changes or {})))
    return checkpoint


def files_of(checkpoint):
    return sorted(path for path in checkpoint.path.rglob("*") if path.is_file())
