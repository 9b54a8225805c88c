"""How the cost of a step grows: with its tokens, with adapters, with layers.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --long      # up to 64k tokens a step

The 2M model. Tokens: rows of 128 tokens in micro-batches of 8, so that memory does not grow, and
the cost of a token against that in a step of 1k. Adapters: 2, 4 and 8 of rank 64 in all. Layers:
against PEFT's one adapter on as many.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import measuring
import shapes
import steps
from measuring import Bound, Seconds

ROW, MICRO = 128, 8
FIRST = "1k tokens a step"
ADAPTERS = (2, 4, 8)
LAYERS = (2, 4, 8)


def tokens(thousands: Sequence[int], rounds: int, seed: int) -> dict:
    """The cost per token of steps of so many thousand tokens."""
    of = shapes.Shape("", shapes.SIZES["2M"], MICRO, ROW)
    model = shapes.routed_model(shapes.base(of.size))
    act = steps.routed_step(model, "anchored")
    ids = steps.label_ids("anchored")
    batches = [shapes.batch(of, ids, seed + at) for at in range(max(thousands))]
    variants = {f"{n}k tokens a step": (lambda n=n: act(batches[:n])) for n in thousands}
    times = measuring.interleaved(variants, rounds, seed, warm=1)
    each = {
        name: Seconds(*([value / n for value in clock] for clock in times[name]))
        for name, n in zip(variants, thousands, strict=True)
    }
    bounds = [Bound(name, FIRST, 1.10) for name in variants if name != FIRST]
    title = "tokens a step, cost of 1k tokens"
    return measuring.table(title, each, FIRST, seed=seed, bounds=bounds)


def adapters(table: str, rounds: int, seed: int) -> dict:
    """The cost of a step with 2, 4 and 8 adapters of the same rank in all."""
    of = shapes.shape("2M-16x128")
    base = shapes.base(of.size)
    variants = {}
    for count in ADAPTERS:
        model = shapes.routed_model(base, count)
        rules = steps.policy(table, tuple(model.peft_config))
        labels = [name for name in model.peft_config if name != "good"]
        # Every other example is labeled: with each behavior in turn, and as good.
        names = [
            labels[at // 4 % len(labels)] if at % 4 == 0 else shapes.LABELS[at % 4]
            for at in range(of.examples)
        ]
        batch = shapes.batch(of, rules.label_ids(names), seed)
        variants[f"{count} adapters"] = steps.routed(model, [batch], table)
    first = f"{ADAPTERS[0]} adapters"
    times = measuring.interleaved(variants, rounds, seed)
    bounds = [Bound(name, first, 1.05) for name in variants if name != first]
    return measuring.table(
        f"adapters of rank 64 in all, {table}", times, first, seed=seed, bounds=bounds
    )


def layers(rounds: int, seed: int) -> list[dict]:
    """Gradroute's step against PEFT's, as the model gets deeper."""
    found = []
    for count in LAYERS:
        size = replace(shapes.SIZES["2M"], layers=count)
        of = shapes.Shape("", size, 16, 64)
        base = shapes.base(size)
        batch = shapes.batch(of, steps.label_ids("anchored"), seed)
        variants = {
            "PEFT, one adapter": steps.plain(base, batch),
            "gradroute, anchored": steps.ours(base, batch, "anchored"),
        }
        times = measuring.interleaved(variants, rounds, seed)
        title = f"{count} layers, 16 examples of 64 tokens"
        found.append(measuring.table(title, times, "PEFT, one adapter", seed=seed))
    return found


def all_three(rounds: int, seed: int) -> list[dict]:
    """Tokens up to 16k a step, adapters, and layers."""
    return [
        tokens((1, 4, 16), rounds, seed),
        adapters("anchored", rounds, seed),
        adapters("freeze", rounds, seed),
        *layers(rounds, seed),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all three; `--long` the tokens alone, up to 64k."""
    given = list(sys.argv[1:] if argv is None else argv)
    long = argparse.ArgumentParser(add_help=False)
    long.add_argument("--long", action="store_true")
    found, rest = long.parse_known_args(given)
    asked = measuring.options(__doc__, rest)
    question = "How does the cost of a step grow?"
    if found.long:
        thousands = (1, 4, 16, 64)
        measuring.answer(
            "scaling_long", question, asked, lambda: [tokens(thousands, asked.rounds, asked.seed)]
        )
    else:
        measuring.answer("scaling", question, asked, lambda: all_three(asked.rounds, asked.seed))


if __name__ == "__main__":
    main()
