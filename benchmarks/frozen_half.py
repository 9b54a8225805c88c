"""What need not be computed again: adapters on the last half of the layers, the rest kept.

    python benchmarks/frozen_half.py

The reference is PEFT's LoRA of the same rank on the same layers. Reading the kept states from their
file is part of the step that is timed, as it is in training.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import measuring
import shapes
import steps
from measuring import Bound
from peft import PeftModel
from transformers import LlamaForCausalLM

from gradroute.data.batches import TokenizedExample, collate
from gradroute.models.hidden_state_cache import HiddenStateCache

PLAIN = "PEFT, one adapter, last half"
OURS = "gradroute"
KEPT = "gradroute, states kept"
WHOLE = "gradroute, all logits"
KEPT_WHOLE = "gradroute, states kept, all logits"
BOUNDS = {
    "135M-4x64": [Bound(KEPT, PLAIN, 0.80)],
    "15M-deep-8x128": [Bound(KEPT, PLAIN, 0.80)],
}


def ways(
    base: LlamaForCausalLM, rows: Sequence[TokenizedExample], folder: Path
) -> dict[str, steps.Step]:
    """The steps on the last half of the layers."""
    batch = collate(rows, pad_id=0)
    return {
        PLAIN: steps.plain(base, batch, shapes.half(base)),
        OURS: steps.ours(base, batch, "anchored", layers="last-half"),
        KEPT: kept(shapes.routed_model(base, layers="last-half"), rows, folder),
        WHOLE: steps.with_all_logits(steps.ours(base, batch, "anchored", layers="last-half")),
        KEPT_WHOLE: steps.with_all_logits(
            kept(shapes.routed_model(base, layers="last-half"), rows, folder)
        ),
    }


def kept(model: PeftModel, rows: Sequence[TokenizedExample], folder: Path) -> steps.Step:
    """Gradroute's step on states that were computed once."""
    tokens = [row.input_ids for row in rows]
    states = HiddenStateCache(folder, model, {"identity": "random"}, tokens, print)
    states.fill(tokens)

    act = steps.routed_step(model, "anchored")
    return lambda: act([collate(rows, pad_id=0).with_states(states.of(tokens))])


def measure(name: str, rounds: int, seed: int) -> dict:
    """The table of one shape."""
    of = shapes.shape(name)
    base = shapes.base(of.size)
    rows = shapes.rows(of, steps.label_ids("anchored"), seed)
    with tempfile.TemporaryDirectory() as folder:
        variants = ways(base, rows, Path(folder))
        times = measuring.interleaved(variants, rounds, seed, warm=1)
    return measuring.table(name, times, PLAIN, seed=seed, bounds=BOUNDS.get(name, ()))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the shapes that are asked for."""
    asked = measuring.options(__doc__, argv, shapes=tuple(BOUNDS))
    question = "What does a step cost when the layers below the adapters are not run again?"
    measuring.answer(
        "frozen_half",
        question,
        asked,
        lambda: [measure(name, asked.rounds, asked.seed) for name in asked.shapes],
    )


if __name__ == "__main__":
    main()
