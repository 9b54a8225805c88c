"""Runs to export, and what is done to them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import signed

from benchmarks.exports import short_run
from gradroute.config.run_config import load_config
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.models.checkpoint import Checkpoint, latest_checkpoint
from gradroute.runs.folder import RunFolder


def run(root: Path, family: str = "llama", *overrides: str) -> RunFolder:
    """A finished run of three steps on a tiny model of a family."""
    few = ("evaluate.prompts=4", "evaluate.max_new_tokens=4", "train.max_steps=3")
    return short_run(root, family, *few, *overrides)


def copied(folder: RunFolder, root: Path) -> RunFolder:
    """A run of one's own."""
    return RunFolder(shutil.copytree(folder.path, root / folder.name))


def checkpoint_of(folder: RunFolder) -> Checkpoint:
    """The newest."""
    found = latest_checkpoint(folder.checkpoints)
    assert found is not None
    return found


def export(folder: RunFolder, out: Path, form: str, *keep: str, dtype=None, evaluate=False) -> Path:
    """Export a run; where to."""
    wanted = ExportRequest(keep or ("good",), form, out, dtype=dtype, evaluate=evaluate)
    export_run(folder, wanted, repo=None, public=False)
    return out


def change_bad(folder: RunFolder) -> None:
    """Give the adapter bad other weights, in a checkpoint whose manifest says so."""
    checkpoint = checkpoint_of(folder)
    path = checkpoint.path / "bad" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(5)
    changed = {
        key: torch.randn(tensor.shape, generator=generator)
        for key, tensor in load_file(path).items()
    }
    save_file(changed, path)
    signed(checkpoint)


def proof_of(out: Path) -> dict:
    """The checks of a proof by name."""
    proof = json.loads((out / "proof.json").read_text(), parse_constant=None)
    return proof | {check["name"]: check for check in proof["checks"]}


def adapters_of(folder: RunFolder) -> tuple[str, ...]:
    """Of the run."""
    return tuple(load_config(folder.config).adapters)
