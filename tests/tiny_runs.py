"""Whole runs that train in a second, for what is done to finished ones."""

from pathlib import Path

from gradroute.config.run_config import find_config, load_config
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder

TINY = (
    "train.max_steps=3",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "data.train_examples=60",
    "data.max_length=32",
    "data.behavior_fraction=0.5",
    "adapters.good.rank=3",
    "evaluate.prompts=3",
    "evaluate.max_new_tokens=5",
    "evaluate.held_out=6",
)
TWO = ("adapters.bad.rank=2",)
UNROUTED = (*TWO, "routing=none")
ONE = ("adapters.bad=null", "routing=none", "data.drop=labeled_bad")


def tiny_run(root: Path, name: str, *overrides: str) -> RunFolder:
    """Train `root/<name>`: a few steps on the embedded model."""
    config = load_config(find_config("caps"), [*TINY, *overrides, f"run_name={name}"])
    return train_run(config, root, if_exists="resume", bar=False)
