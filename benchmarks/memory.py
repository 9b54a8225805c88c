"""Peak memory of a training step, each in a process of its own.

    python benchmarks/memory.py

The peak of the resident set during a step over what was resident before it, after a first step and
with free memory handed back (Linux). Processes are forked after the imports, with the base made.
"""

import ctypes
import gc
import multiprocessing
import random
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import measuring
import shapes
import steps
from measuring import Bound, Seconds
from training_step import OURS, PLAIN, TWO, WAYS
from transformers import LlamaForCausalLM

from gradroute.data.batches import Batch

BOUNDS = {
    "15M-8x128": [Bound(OURS, PLAIN, 0.75)],
    "15M-262k-4x128": [Bound(OURS, PLAIN, 0.5)],
}
AT_ONCE = 2  # processes; what one takes does not depend on its neighbor
# What is slow and not asked about.
LEFT_OUT = {"15M-262k-4x128": {TWO}}


def resident(key: str) -> int:
    """A line of this process's status, in KiB: VmRSS is resident now, VmHWM was at most."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))


def peak(way: str, base: LlamaForCausalLM, batch: Batch, told: Connection) -> None:
    """Tell what the second step takes over what is resident before it, in MiB."""
    step = WAYS[way](base, batch)
    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    idle = resident("VmRSS")
    step()
    told.send((resident("VmHWM") - idle) / 1024)


def measure(name: str, rounds: int, seed: int) -> dict:
    """The table of one shape."""
    of = shapes.shape(name)
    base = shapes.base(of.size)
    batch = shapes.batch(of, steps.label_ids("anchored"), seed)
    draw = random.Random(seed)
    context = multiprocessing.get_context("fork")
    ways = [way for way in (PLAIN, TWO, OURS) if way not in LEFT_OUT.get(name, ())]
    found: dict[str, list[float]] = {way: [] for way in ways}
    order = [way for _ in range(rounds) for way in draw.sample(ways, len(ways))]
    for at in range(0, len(order), AT_ONCE):
        running = []
        for way in order[at : at + AT_ONCE]:
            here, there = context.Pipe()
            process = context.Process(target=peak, args=(way, base, batch, there))
            process.start()
            there.close()
            running.append((way, here, process))
        for way, here, process in running:
            found[way].append(here.recv())
            process.join()
    sizes = {way: Seconds(mib, mib) for way, mib in found.items()}
    return measuring.table(
        name, sizes, PLAIN, seed=seed, bounds=BOUNDS.get(name, ()), unit="MiB", scale=1.0
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the shapes that are asked for."""
    asked = measuring.options(__doc__, argv, shapes=tuple(BOUNDS))
    question = "How much memory does a training step take, beside the model?"
    measuring.answer(
        "memory",
        question,
        asked,
        lambda: [measure(name, asked.rounds, asked.seed) for name in asked.shapes],
    )


if __name__ == "__main__":
    main()
