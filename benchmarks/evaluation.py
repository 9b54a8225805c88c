"""Completions under several ablation modes: one batched generation against PEFT's `generate` calls.

    python benchmarks/evaluation.py

Three modes of 16 prompts and five modes of 128 prompts, 64 new tokens, greedy, no end token, so
that every way writes the same number of tokens; that they are the same tokens is checked. A curve
of 11 scales writes 16 new tokens. As many rows of the base without adapters say what no evaluation
of several modes can go below.
"""

import argparse
import random
from collections.abc import Sequence
from contextlib import nullcontext

import measuring
import shapes
import torch
from measuring import Bound
from peft import PeftModel
from peft.tuners import lora
from transformers import LlamaForCausalLM

from gradroute.evaluate.generation import Prompt, generate_modes
from gradroute.routing.adapters import route_adapters
from gradroute.routing.policy import AblationMode

PEFT = "PEFT, a generate call per mode"
OURS = "gradroute, all modes at once"
FLOOR = "gradroute, as many modes of the base alone"
FEW, MANY, WORDS = 16, 128, 32
BOUNDS = {
    ("2M", 3): 0.40,
    ("15M", 3): 0.65,
    ("2M", 5): 0.50,
    ("15M", 5): 0.50,
    ("2M", 11): 0.33,
}
"""(Size, number of modes) -> the largest ratio that is wanted."""
ROWS = 256  # as many rows at once as the configuration allows by itself
Scales = dict[str, float]


def trained(base: LlamaForCausalLM, seed: int) -> tuple[PeftModel, PeftModel]:
    """The same two adapters with weights that matter, as PEFT's model and as a routed one."""
    pair = []
    for _ in range(2):
        model = shapes.peft_model(base, {"good": shapes.RANK, "bad": shapes.RANK})
        shapes.fill(model, seed)
        pair.append(model.eval())
    return pair[0], route_adapters(pair[1])


def by_peft(model: PeftModel, prompts: torch.Tensor, modes: Sequence[Scales], new: int):
    """New tokens under each mode, one after another, with PEFT's own means."""
    layers = [module for module in model.modules() if isinstance(module, lora.LoraLayer)]
    found = []
    for scales in modes:
        model.base_model.set_adapter([name for name, scale in scales.items() if scale])
        for name, scale in scales.items():
            for layer in layers:
                layer.set_scale(name, scale)
        alone = nullcontext() if any(scales.values()) else model.disable_adapter()
        with torch.no_grad(), alone:
            output = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        found.append(output[:, prompts.shape[1] :].tolist())
    return found


def measure(size: str, modes: dict[str, Scales], count: int, new: int, rounds: int, seed: int):
    """The table of one size, for so many prompts."""
    size_of = shapes.SIZES[size]
    base = shapes.base(size_of)
    base.generation_config.eos_token_id = None
    theirs, model = trained(base, seed)
    tokenizer = shapes.tokenizer(size_of)
    draw = random.Random(seed)
    ids = [[draw.randrange(3, size_of.vocabulary) for _ in range(WORDS)] for _ in range(count)]
    prompts = [Prompt(str(at), tokenizer.decode(row)) for at, row in enumerate(ids)]
    asked = [AblationMode(name, scales) for name, scales in modes.items()]

    def ours(some: Sequence[AblationMode]) -> dict[str, list[list[int]]]:
        written = generate_modes(
            model,
            tokenizer,
            prompts,
            some,
            max_new_tokens=new,
            temperature=0.0,
            top_p=1.0,
            seed=seed,
            rows_per_batch=ROWS,
        )
        return {
            name: [tokenizer.encode(one.text, add_special_tokens=False) for one in completions]
            for name, completions in written.items()
        }

    def reference() -> list[list[list[int]]]:
        return by_peft(theirs, torch.tensor(ids), list(modes.values()), new)

    same = list(ours(asked).values()) == reference()
    nothing = {"good": 0.0, "bad": 0.0}
    bare = [AblationMode(name, nothing) for name in modes]
    variants = {PEFT: reference, OURS: lambda: ours(asked), FLOOR: lambda: ours(bare)}
    times = measuring.interleaved(variants, rounds, seed, warm=0)  # both have just run
    title = f"{size}, {len(modes)} modes, {count} prompts, {new} new tokens"
    most = BOUNDS.get((size, len(modes)))
    bounds = () if most is None else [Bound(OURS, PEFT, most)]
    return measuring.table(title, times, PEFT, seed=seed, bounds=bounds, same_tokens=same)


MODES: dict[str, Scales] = {
    "full": {"good": 1.0, "bad": 1.0},
    "bad_ablated": {"good": 1.0, "bad": 0.0},
    "good_ablated": {"good": 0.0, "bad": 1.0},
}
FIVE = MODES | {"good_x2": {"good": 2.0, "bad": 0.0}, "base": {"good": 0.0, "bad": 0.0}}
CURVE: dict[str, Scales] = {f"bad_{tenth}": {"good": 1.0, "bad": tenth / 10} for tenth in range(11)}


def tables(asked: argparse.Namespace) -> list[dict]:
    """A table of every size, and of a curve of scales."""
    found = []
    for modes, count in ((MODES, FEW), (FIVE, MANY)):
        for size in asked.sizes:
            found.append(measure(size, modes, count, 64, asked.rounds, asked.seed))
    if "2M" in asked.sizes:
        found.append(measure("2M", CURVE, FEW, 16, asked.rounds, asked.seed))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the sizes that are asked for, and a curve of scales."""
    asked = measuring.options(__doc__, argv, sizes=("2M", "15M"))
    question = "What do completions under several ablation modes cost?"
    measuring.answer("evaluation", question, asked, lambda: tables(asked))


if __name__ == "__main__":
    main()
