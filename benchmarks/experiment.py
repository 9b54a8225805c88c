"""The whole caps experiment, gradroute's way and the usual way, at equal examples.

    python benchmarks/experiment.py
    python benchmarks/experiment.py --quick

Three runs a side (no behavior, unrouted, routed) on the embedded model, each trained and measured
under three modes, once, on one thread. The usual way: PEFT with two active adapters, an optimizer
for each; every example is a step by itself, of the optimizer that its label chooses (labeled bad:
`bad`, everything else: `good`), at a constant rate of 1e-4; the modes are completed and scored one
after another. Both sides' runs are then measured and judged by the same code. What was timed is
kept beside each run, so that an interrupted experiment goes on.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import measuring
import shapes
import steps
import torch
from evaluation import MODES
from measuring import Bound, Seconds
from peft import PeftModel
from scoring import by_peft
from transformers import LlamaForCausalLM

from gradroute.config.run_config import RunConfig, dump_config, find_config, load_config
from gradroute.data.batches import collate
from gradroute.evaluate.evaluator import evaluate_run, run_identity
from gradroute.evaluate.request import drawn_by_rows, prompts_of, requested_prompts
from gradroute.experiments.demo import CELLS
from gradroute.models.base import Base, load_base_of
from gradroute.models.checkpoint import save_checkpoint
from gradroute.prepare import Prepared, data_order, prepare, tokenize_examples
from gradroute.report.judge.comparison import compare
from gradroute.report.render.terminal_text import render
from gradroute.routing.adapters import route_adapters
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, write_json, write_text

OURS, THEIRS = "gradroute", "batch of 1, mode by mode"
RUNS = ("baseline", "0.1_0.0", "0.1_0.5")
QUICK = ("train.max_steps=20", "evaluate.prompts=16", "evaluate.held_out=16")
AT_ONCE = 64  # prompts of one call of `generate`


def configuration(name: str, side: str, seed: int, quick: bool) -> RunConfig:
    """One run of a side; the usual way routes as its words say, and nothing else differs."""
    changes = [f"run_name={name}", f"seed={seed}", *CELLS[name], *(QUICK if quick else ())]
    changes.append(f"evaluate.modes=[{','.join(MODES)}]")
    if side == THEIRS and name == RUNS[-1]:
        changes.append("routing=exclusive")
    return load_config(find_config("caps"), changes)


def ours(config: RunConfig, root: Path) -> None:
    """Train and measure a run as `gradroute train` and `gradroute eval` do."""
    evaluate_run(train_run(config, root, if_exists="resume", bar=False))


def theirs(config: RunConfig, root: Path) -> None:
    """The same in the usual way; the adapters are saved as a run of gradroute's."""
    prepared, base = prepare(config), load_base_of(config)
    assert isinstance(base.model, LlamaForCausalLM)
    torch.manual_seed(config.seed)
    base.model.requires_grad_(False)
    ranks = {name: own.rank for name, own in config.adapters.items()}
    model = shapes.peft_model(base.model.float(), ranks, shapes.half(base.model))
    tune(model, config, prepared, base)
    measure(model.eval(), config, prepared, base)
    model.base_model.set_adapter(list(ranks))  # pyright: ignore
    text = dump_config(config)
    folder = RunFolder(root / config.run_name)
    write_text(folder.config, text)
    write_json(folder.manifest, run_identity(prepared, base))
    step, table = config.train.max_steps, prepared.policy.to_plain()
    save_checkpoint(
        folder.checkpoints, step, route_adapters(model), {}, config_text=text, policy=table
    )


def tune(model: PeftModel, config: RunConfig, prepared: Prepared, base: Base) -> None:
    """A step for every example that gradroute's run sees, in the same order."""
    rows, _ = tokenize_examples(prepared.train, prepared.policy, base, config.data.max_length)
    order = data_order(
        prepared,
        rows,
        seed=config.seed,
        front_load=config.data.front_load,
        length_window=config.train.length_window,
    )
    own = steps.weights_by_adapter(model)
    optimizers = {name: steps.adamw(weights) for name, weights in own.items()}
    [bad] = prepared.policy.label_ids(["bad"])
    for step in range(config.train.max_steps):
        for place in order.batch(step, config.train.batch_size):
            batch = collate([rows[place]], base.pad_id)
            name = "bad" if rows[place].label_id == bad else "good"
            steps.step_of_one(model, batch, optimizers[name], own[name])


def measure(model: PeftModel, config: RunConfig, prepared: Prepared, base: Base) -> None:
    """Completions and losses under one mode after another; what they are is not kept."""
    settings = config.evaluate
    tokenizer = base.tokenizer
    for label, kind, _ in requested_prompts(prepared.behaviors, (), drawn_by_rows(prepared)):
        texts = [prompt.text for prompt in prompts_of(prepared, settings, kind, label)]
        for on in (["good", "bad"], ["good"], ["bad"]):
            model.base_model.set_adapter(on)  # pyright: ignore
            for start in range(0, len(texts), AT_ONCE):
                given = tokenizer(
                    texts[start : start + AT_ONCE],
                    padding=True,
                    padding_side="left",
                    return_tensors="pt",
                )
                model.generate(
                    input_ids=given["input_ids"],
                    attention_mask=given["attention_mask"],
                    max_new_tokens=settings.max_new_tokens,
                    do_sample=True,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    pad_token_id=base.pad_id,
                )
    for examples in (prepared.normal, *prepared.behaving.values()):
        some = examples[: settings.held_out]
        by_peft(model, tokenize_examples(some, None, base, config.data.max_length)[0])


def timed(name: str, side: str, root: Path, seed: int, quick: bool) -> tuple[float, float]:
    """CPU and wall seconds of one run of a side; from its file where it is there already."""
    kept = root / f"{name}.seconds.json"
    if not kept.is_file():
        config = configuration(name, side, seed, quick)
        clock, wall = time.process_time(), time.perf_counter()
        (ours if side == OURS else theirs)(config, root)
        spent = {"clock": time.process_time() - clock, "wall": time.perf_counter() - wall}
        write_json(kept, spent)
        print(f"{side}: {name}: {spent['clock']:.0f} s", flush=True)
    told = read_json(kept)
    assert isinstance(told, dict)
    return told["clock"], told["wall"]


def verdicts(root: Path) -> list[dict]:
    """What the runs of a side show, by the same measurements and rules; printed in full."""
    folders = [RunFolder(root / name) for name in RUNS]
    for folder in folders:
        evaluate_run(folder)
    comparison = compare(folders)
    print(render(comparison), flush=True)
    return [
        {"claim": one.claim, "run": one.run, "outcome": one.outcome} for one in comparison.verdicts
    ]


def both(place: Path, seed: int, quick: bool) -> dict:
    """The table of both sides' runs, which are written into a folder."""
    sides = {OURS: place / "gradroute", THEIRS: place / "usual"}
    times = {side: Seconds([], []) for side in sides}
    for root in sides.values():
        root.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(RUNS):
        for side in sorted(sides, reverse=at % 2 == 1):
            clock, wall = timed(name, side, sides[side], seed, quick)
            times[side].clock.append(clock)
            times[side].wall.append(wall)
    return measuring.table(
        f"{len(RUNS)} runs, trained and measured",
        times,
        THEIRS,
        seed=seed,
        bounds=[Bound(OURS, THEIRS, 1 / 3)],
        unit="s a run",
        scale=1.0,
        verdicts={side: verdicts(root) for side, root in sides.items()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run both sides and compare."""
    given = list(sys.argv[1:] if argv is None else argv)
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--quick", action="store_true")
    own.add_argument("--runs", type=Path, default=measuring.TRIES / "experiment")
    found, rest = own.parse_known_args(given)
    asked = measuring.options(__doc__, rest, rounds=len(RUNS))
    place = found.runs / f"{'quick' if found.quick else 'whole'}-{asked.seed}"
    if not found.quick and asked.out is None:
        asked.out = measuring.RESULTS
    question = "What does the whole experiment cost, and what does it show?"
    measuring.answer("experiment", question, asked, lambda: [both(place, asked.seed, found.quick)])


if __name__ == "__main__":
    main()
