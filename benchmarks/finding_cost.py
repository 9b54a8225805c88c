"""What `gradroute find` costs: 6,000 rows of the embedded model, scored by the adapter.

    python benchmarks/finding_cost.py

A run of the recipe caps is trained for one step (what it learned does not change the cost), and
6,000 other stories are scored as a file: `find` from reading them to the page that it writes.
Beside it the losses of 600 of them, and the same losses one mode at a time. Process CPU seconds, so
what loading Python and its libraries takes is not in it. That the losses agree is checked.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measuring
import torch

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.data.stories import stories
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import read_as_trained, tokenize_examples
from gradroute.probes.finder import FDR, find_rows
from gradroute.routing.policy import AblationMode
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder

ROWS, FEW = 6000, 600
LIMIT = 90.0
"""CPU seconds that finding may take."""
FIND = "gradroute find"
LOSSES = "three modes in one pass, the layers below the adapters once"
ONE_BY_ONE = "a pass per mode"
MODES = ("full", "bad_ablated", "bad_alone")
AGREE = 1e-4  # nats, largest difference of a token's loss
SETTINGS = (
    "run_name=finding",
    "train.max_steps=1",
    "train.warmup_steps=0",
    "data.null_fraction=0.2",
)


def measure(place: Path, rounds: int, seed: int) -> list[dict]:
    """Train the run, write the file, and time finding in it and what the losses take."""
    config = load_config(find_config("caps"), [*SETTINGS, f"seed={seed}"])
    folder = train_run(config, place, if_exists="new", bar=False)
    file = place / "stories.jsonl"
    rows = [json.dumps({"text": text}) for text in stories("tune", ROWS, seed + 1)]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = measuring.interleaved({FIND: lambda: find(folder, file)}, rounds, seed, warm=0)
    spent = measuring.spread(found[FIND].clock, seed)
    table = measuring.table(
        f"{ROWS} rows of the embedded model",
        found,
        FIND,
        seed=seed,
        unit="s",
        scale=1.0,
        note=f"At most {LIMIT:.0f} s are wanted; the rounds took {spent['low']:.0f} to "
        f"{spent['high']:.0f} s.",
    )
    return [table, _losses(config, folder, file, rounds, seed)]


def _losses(config: RunConfig, folder: RunFolder, file: Path, rounds: int, seed: int) -> dict:
    """The table of the losses of the first rows."""
    examples, _ = read_as_trained(config, str(file))
    base, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
    tokens, _ = tokenize_examples(examples.examples[:FEW], None, base, config.data.max_length)
    modes = [AblationMode.parse(name, tuple(model.peft_config)) for name in MODES]

    def losses(*of: AblationMode) -> dict[str, list[torch.Tensor]]:
        return held_out_token_losses(
            model, tokens, of, pad_id=base.pad_id, rows_per_batch=config.evaluate.batch_rows
        )

    def one_by_one() -> dict[str, list[torch.Tensor]]:
        return {mode.name: losses(mode)[mode.name] for mode in modes}

    apart = _apart(losses(*modes), one_by_one())
    variants = {LOSSES: lambda: losses(*modes), ONE_BY_ONE: one_by_one}
    times = measuring.interleaved(variants, rounds, seed, warm=0)  # both have just run
    title = f"losses of {FEW} rows under three modes"
    same = apart <= AGREE
    return measuring.table(
        title, times, ONE_BY_ONE, seed=seed, unit="s", scale=1.0, same_losses=same
    )


def find(folder: RunFolder, file: Path) -> None:
    """Find in the file anew."""
    shutil.rmtree(folder.found, ignore_errors=True)
    find_rows(folder, by="adapter", fdr=FDR, file=str(file))


def _apart(one: dict[str, list[torch.Tensor]], other: dict[str, list[torch.Tensor]]) -> float:
    return max(float((torch.cat(one[name]) - torch.cat(other[name])).abs().max()) for name in one)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv, rounds=3)
    asked.out = asked.out or measuring.RESULTS
    question = "What does it cost to score 6,000 rows by what an adapter explains?"
    with tempfile.TemporaryDirectory() as place:
        measuring.answer(
            "finding_cost",
            question,
            asked,
            lambda: measure(Path(place), asked.rounds, asked.seed),
        )


if __name__ == "__main__":
    main()
