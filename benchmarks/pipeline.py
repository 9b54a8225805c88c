"""The share of data in a step: tokenizing, choosing and collating, beside the step itself.

    python benchmarks/pipeline.py

The embedded model and stories, 16 examples a step as training takes them; tokenizing happens once,
before the first step, and is counted here per 16 examples.
"""

from collections.abc import Sequence

import measuring
import steps
import torch

from gradroute.config.run_config import load_config
from gradroute.data.batches import DataOrder, micro_batches, tokenize
from gradroute.data.examples import Example
from gradroute.data.stories import stories
from gradroute.models.base import load_base
from gradroute.models.trained import attach

STEP = "training step"
SIZE, LONGEST = 16, 256


def measure(rounds: int, seed: int) -> dict:
    """The table."""
    base = load_base("embedded")
    config = load_config(None, ["layers=all"])
    texts = stories("tune", 1024, seed)
    found = [Example(str(at), " ".join(texts[at : at + 3])) for at in range(len(texts) - 3)]
    label_ids = [at % 3 for at in range(len(found))]
    rows, _ = tokenize(found, base.tokenizer, label_ids, LONGEST)
    order = DataOrder(seed, len(rows), tuple(range(len(rows))))
    act = steps.routed_step(attach(base.model.float(), config).train(), "anchored")
    batches = micro_batches(rows[:SIZE], SIZE, base.pad_id, packed_into=None)
    variants = {
        STEP: lambda: act(batches),
        "tokenize 16 examples": lambda: tokenize(
            found[:SIZE], base.tokenizer, label_ids[:SIZE], LONGEST
        ),
        "choose the step's examples": lambda: order.batch(7, SIZE),
        "collate": lambda: micro_batches(rows[:SIZE], SIZE, base.pad_id, packed_into=None),
    }
    times = measuring.interleaved(variants, rounds, seed)
    width = sum(len(row.input_ids) for row in rows[:SIZE]) // SIZE
    return measuring.table(f"embedded model, 16 stories of {width} tokens", times, STEP, seed=seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv)
    torch.manual_seed(asked.seed)
    question = "What share of a step is data?"
    measuring.answer("pipeline", question, asked, lambda: [measure(asked.rounds, asked.seed)])


if __name__ == "__main__":
    main()
