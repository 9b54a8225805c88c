"""What routing costs on a GPU: one step of gemma-3-1b's shape and of a 135M one, in several ways.

    python benchmarks/gpu.py        # or make bench-gpu; without CUDA one line, and nothing is done

Weights are random and made here, the base is in bf16, the adapters in fp32, every row is full. The
ways take turns, in an order of its own in each round; a ratio is one of a round's wall clock, with
the device waited for before and after. Sized for eight minutes on an H100.

| way | what it is |
|---|---|
| floor | the frozen base alone: forward and backward |
| plain | PEFT, one adapter of the whole rank |
| two | PEFT, two active adapters, no routing |
| ours | gradroute's step, products with A and B in fp32 |
| ours bf16 | the same with them in bf16 (`train.low_rank_dtype`) |
| compiled | forward and backward of `ours bf16` under torch.compile, in a loop of one's own |
"""

import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import measuring
import shapes
import steps
import torch
from peft import PeftModel
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from gradroute.data.batches import Batch
from gradroute.routing.adapters import low_rank_products, routed

TABLE = "anchored"
STEPS = 3  # of a round, timed together
GEMMA = Gemma3TextConfig(  # google/gemma-3-1b-pt's config.json, by its numbers
    vocab_size=262144,
    hidden_size=1152,
    intermediate_size=6912,
    num_hidden_layers=26,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    sliding_window=512,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
)
BOUNDS = (
    measuring.Bound("ours", "plain", 0.95),
    measuring.Bound("ours", "floor", 1.25),
    measuring.Bound("ours bf16", "plain", 0.95),
    measuring.Bound("ours bf16", "floor", 1.25),
)
Step = Callable[[], object]


def gemma() -> PreTrainedModel:
    """A frozen model of gemma-3-1b's shape with random weights, in bf16."""
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(GEMMA).bfloat16()
    model.requires_grad_(False)
    return model


def small() -> PreTrainedModel:
    """The same of SmolLM2-135M's shape."""
    return shapes.base(shapes.SIZES["135M"]).bfloat16()


def ways(base: Any, batch: Batch, *, compiled: bool) -> dict[str, Step]:
    """Every way to do a step on this base and this batch, which are on one device."""
    found: dict[str, Step] = {
        "floor": steps.floor(base, batch),
        "plain": steps.plain(base, batch),
        "two": steps.two_adapters(base, batch),
        "ours": steps.ours(base, batch, TABLE),
        "ours bf16": _in_bf16(shapes.routed_model(base), batch),
    }
    if compiled:
        found["compiled"] = _compiled(shapes.routed_model(base), batch)
    return found


def _in_bf16(model: PeftModel, batch: Batch) -> Step:
    step = steps.routed(model, [batch], TABLE)

    def run() -> None:
        with low_rank_products(model, torch.bfloat16):
            step()

    return run


def _compiled(model: PeftModel, batch: Batch) -> Step:
    rules = steps.policy(TABLE)
    optimizer = steps.adamw([weight for weight in model.parameters() if weight.requires_grad])
    fast = torch.compile(model)
    places = batch.input_ids.shape

    def run() -> None:
        with low_rank_products(model, torch.bfloat16), routed(model, rules, batch.routing_ids) as s:
            s.groups(places, batch.input_ids.device, list(rules.adapters))  # outside of the graph
            fast(**batch.inputs, labels=batch.input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def timed(
    found: Mapping[str, Step], rounds: int, seed: int, device: torch.device
) -> dict[str, measuring.Seconds]:
    """Seconds of a step by wall clock, every way once a round."""
    draw = random.Random(f"order {seed}")
    for step in found.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name in draw.sample(list(found), len(found)):
            _wait(device)
            began = time.perf_counter()
            for _ in range(STEPS):
                found[name]()
            _wait(device)
            seconds[name].append((time.perf_counter() - began) / STEPS)
    return {name: measuring.Seconds(values, values) for name, values in seconds.items()}


def peaks(found: Mapping[str, Step], device: torch.device) -> dict[str, float]:
    """GiB that a step takes at most, above what is held between steps."""
    if device.type != "cuda":
        return {}
    taken = {}
    for name, step in found.items():
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        step()
        _wait(device)
        taken[name] = round((torch.cuda.max_memory_allocated(device) - held) / 2**30, 3)
    return taken


def waits(step: Step, device: torch.device) -> int | None:
    """How often the CPU waits for the device in a step, as CUDA's own guard counts it."""
    if device.type != "cuda":
        return None
    _wait(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def compare(
    title: str,
    base: Any,
    shape: shapes.Shape,
    device: torch.device,
    *,
    rounds: int,
    seed: int,
    compiled: bool,
) -> dict[str, Any]:
    """The table of one shape."""
    base = base.to(device)
    batch = shapes.batch(shape, steps.label_ids(TABLE), seed).to(device)
    found = ways(base, batch, compiled=compiled)
    facts = {}
    if compiled:
        try:
            found["compiled"]()
        except Exception as error:
            facts["compiled"] = f"not measured: {str(error).splitlines()[0][:200]}"
            del found["compiled"]
    times = timed(found, rounds, seed, device)
    return measuring.table(
        title,
        times,
        "plain",
        seed=seed,
        bounds=BOUNDS if shape.name.startswith("gemma") else (),
        peak_gib=peaks(found, device),
        waits_in_a_step=waits(found["ours"], device),
        **facts,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both shapes."""
    asked = measuring.options(__doc__, argv)
    if not torch.cuda.is_available():
        print("bench-gpu: there is no CUDA here, so nothing is measured.")
        return 0
    load, device = measuring.load_average(), torch.device("cuda")
    few = shapes.Size(GEMMA.vocab_size, 0, 0, 0, 0, 0)  # a batch asks for the vocabulary only
    tables = []
    for title, make, shape, compiled in (
        ("gemma-3-1b 16x256", gemma, shapes.Shape("gemma-16x256", few, 16, 256), False),
        ("135M 16x256", small, shapes.shape("135M-16x256"), True),
    ):
        print(f"{title} on {torch.cuda.get_device_name(device)}", flush=True)
        tables.append(
            compare(
                title,
                make(),
                shape,
                device,
                rounds=asked.rounds,
                seed=asked.seed,
                compiled=compiled,
            )
        )
        torch.cuda.empty_cache()
    measuring.write("gpu", "what does a routed step cost on a GPU?", tables, asked, load)
    return 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
