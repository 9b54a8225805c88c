"""The cost of a training step: gradroute's against the other ways to do it.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --rounds 3 --shapes 2M-16x32

Models of random weights with LoRA on all linear layers, rank 64 in all, float32, one thread. The
ways are those of `steps.py`. `2M-16x32` is a step of 16 examples of 32 tokens.
"""

from collections.abc import Callable, Sequence

import measuring
import shapes
import steps
from measuring import Bound
from transformers import LlamaForCausalLM

from gradroute.data.batches import Batch

PLAIN, TWO, SEED = "PEFT, one adapter", "PEFT, two adapters", "batch of 1, optimizer by label"
OURS, ABSORB = "gradroute, anchored", "gradroute, absorb"
ALONE = "gradroute, anchored, layer by layer"
PURE, TWICE, FLOOR = "micro-batches of one label", "two backward passes", "frozen base alone"

Make = Callable[[LlamaForCausalLM, Batch], steps.Step]
WAYS: dict[str, Make] = {
    FLOOR: steps.floor,
    PLAIN: steps.plain,
    TWO: steps.two_adapters,
    SEED: steps.one_by_one,
    PURE: steps.pure_batches,
    TWICE: steps.two_backwards,
    OURS: lambda base, batch: steps.ours(base, batch, "anchored"),
    ALONE: lambda base, batch: steps.layer_by_layer(base, batch, "anchored"),
    ABSORB: lambda base, batch: steps.ours(base, batch, "absorb"),
}
# What is slow and not asked about is left out of the large shapes.
LEFT_OUT = {
    "2M-16x256": {ABSORB, ALONE},
    "15M-8x128": {SEED, TWICE, ABSORB, ALONE},
    "135M-4x64": {SEED, TWICE, PURE, FLOOR, ABSORB},
}
AGAIN = {"2M-16x32": 2}  # times as many rounds, where they are short
BOUNDS = {
    "2M-16x32": [
        Bound(OURS, PLAIN, 0.95),
        Bound(OURS, TWO, 1.0),
        Bound(OURS, SEED, 1 / 4.5),
        Bound(OURS, ALONE, 1.0),
    ],
    "2M-16x256": [Bound(OURS, PLAIN, 1.05), Bound(OURS, TWO, 0.9), Bound(OURS, SEED, 1 / 1.35)],
    "15M-8x128": [Bound(OURS, PLAIN, 1.05), Bound(OURS, TWO, 1.0)],
    "135M-4x64": [Bound(OURS, PLAIN, 1.10), Bound(OURS, TWO, 1.0)],
}


def measure(name: str, rounds: int, seed: int) -> dict:
    """The table of one shape."""
    of = shapes.shape(name)
    base = shapes.base(of.size)
    batch = shapes.batch(of, steps.label_ids("anchored"), seed)
    ways = {way: make for way, make in WAYS.items() if way not in LEFT_OUT.get(name, ())}
    variants = {way: make(base, batch) for way, make in ways.items()}
    rounds *= AGAIN.get(name, 1)
    times = measuring.interleaved(variants, rounds, seed, warm=1)
    return measuring.table(name, times, PLAIN, seed=seed, bounds=BOUNDS.get(name, ()))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the shapes that are asked for."""
    asked = measuring.options(__doc__, argv, shapes=tuple(BOUNDS))
    question = "What does a training step cost, against the other ways to do it?"
    measuring.answer(
        "training_step",
        question,
        asked,
        lambda: [measure(name, asked.rounds, asked.seed) for name in asked.shapes],
    )


if __name__ == "__main__":
    main()
