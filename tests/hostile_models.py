"""Untrusted model folders: a tiny model with one thing wrong in its files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gradroute.models.base import embedded_model
from torture.bases import save_base

CANARY = "canaryword"
"""Stands in files outside of the folder that nobody may read."""


def tiny_model(folder: Path) -> Path:
    """A tiny Llama with the embedded tokenizer, saved in Hugging Face format."""
    return save_base(folder, 2048, 32)


def change(path: Path, **settings: Any) -> None:
    """Set keys of a JSON file; the file is made where it is not there."""
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**value, **settings}))


def without(path: Path) -> Path:
    """The folder of a file that is now gone."""
    path.unlink()
    return path.parent


def plant(outside: Path) -> None:
    """What a folder beside the model holds: secrets, a tokenizer and weights."""
    outside.mkdir(exist_ok=True)
    (outside / ".env").write_text(f"a b\n{CANARY} secret\nc d\n")
    tokenizer = json.loads((Path(embedded_model()) / "tokenizer.json").read_text())
    token = {"id": 2048, "content": CANARY, "single_word": False, "lstrip": False}
    token |= {"rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append(token)
    (outside / "tokenizer.4.0.0.json").write_text(json.dumps(tokenizer))


def pickled(folder: Path, name: str) -> list[str]:
    """Replace the weights by a pickle file of them; their names."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / name)  # noqa: TID251
    (folder / "model.safetensors").unlink()
    return list(weights)


def moved_out(folder: Path, outside: Path) -> list[str]:
    """Move the weights to a folder outside; their names."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights, outside / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").unlink()
    return list(weights)


def write_index(folder: Path, names: list[str], file: Any) -> None:
    """An index that says that all weights are in one file."""
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
