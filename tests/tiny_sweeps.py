"""Sweeps of a few cells that train in a second each, for what is done with whole grids."""

from pathlib import Path

from gradroute.experiments.sweep.cells import Sweep, read_sweep
from gradroute.experiments.sweep.folder import Record, SweepFolder, record_of

TINY = """\
  train.max_steps: 2
  train.warmup_steps: 0
  train.batch_size: 4
  data.train_examples: 60
  data.max_length: 32
  data.behavior_fraction: 0.5
  adapters.good.rank: 2
  adapters.bad.rank: 2
  evaluate.prompts: 3
  evaluate.max_new_tokens: 4
  evaluate.held_out: 6
"""


def sweep_file(folder: Path, rest: str, settings: str = "") -> Path:
    """Write the file of a tiny sweep; its runs go to `folder/runs/tiny`."""
    path = folder / "tiny.yaml"
    path.write_text(f"recipe: caps\nset:\n{TINY}{settings}{rest}", encoding="utf-8")
    return path


def started(folder: Path, rest: str, settings: str = "") -> tuple[SweepFolder, Record, Sweep]:
    """A sweep whose record and cells are written, none of them run."""
    sweep = read_sweep(sweep_file(folder, rest, settings))
    place = SweepFolder(folder / "runs" / sweep.name)
    record = record_of(sweep, place)
    place.write(sweep, record)
    return place, record, sweep
