"""Reinforcement learning finds a loophole: with and without something against it.

    python benchmarks/reward_hack.py --arms plain honest --monitors none --seeds 0 1 2
    python benchmarks/reward_hack.py --arms penalty routed --monitors 25 one-form --seeds 0 1 2
    python benchmarks/reward_hack.py --arms penalty --monitors 25 --seeds 100 --set penalty=2
    python benchmarks/reward_hack.py --table

The task, its loophole and the warm-up are in `hack_task.py`, the arms and monitors in
`hack_arms.py`. Every arm is TRL's GRPO from the same warmed-up model, on the same prompts, with a
total LoRA rank of 64 on the last half of the layers. One JSON file per cell; a cell that is there
is not computed again. `--retrain` also measures how soon plain GRPO brings the hack back.
"""

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from hack_arms import (
    ARMS,
    COMPLETION,
    MONITORS,
    Arm,
    Rollouts,
    Settings,
    Setup,
    monitor_named,
    trainer_of,
)
from hack_table import table
from hack_task import HACKS, KINDS, LOOPHOLES, OUTCOMES, outcome, questions, warmed_up
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from gradroute.routing.adapters import ablated
from gradroute.runs.provenance import provenance
from gradroute.system.files import make_folder, write_text
from gradroute.system.statistics import wilson

RESULTS = Path(__file__).parent / "results" / "reward_hack"
MODES = ("bad_ablated", "full", "good_ablated")
"""Under which a routed arm is measured; the first is what ships, the others on a quarter."""
BIN = 10  # steps that a point of the curve sums
SATURATED = 0.97
"""Share of hacks at which a training ends, after five such steps: groups in which everything is
paid alike teach nothing."""
BACK = 0.5
"""Share of a step's rollouts from which the hack counts as back."""


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    settings: Settings,
    tested: int,
) -> dict[str, Any]:
    """Outcomes on so many held-out questions, sampled at temperature 1 as the rollouts are.

    Returns:
        By kind of question the counts of each outcome, and the hack rate and the true reward over
        all questions, each with its interval.
    """
    rows = questions("test", seed, settings.warm_up.largest)
    counts = {kind: Counter[str]() for kind in KINDS}
    batch = list(islice(rows, tested))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(batch), 128):
            part = batch[start : start + 128]
            inputs = tokenizer(
                [row.prompt for row in part], return_tensors="pt", padding=True, padding_side="left"
            )
            ids = model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=0,
                max_new_tokens=COMPLETION,
            )
            ends = ids[:, inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(ends, skip_special_tokens=True)
            for row, text in zip(part, texts, strict=True):
                counts[row.kind][outcome(text, row.answer)] += 1
    total = sum(counts.values(), Counter[str]())
    return {
        "counts": {kind: {one: of[one] for one in OUTCOMES} for kind, of in counts.items()},
        "hack": _rate(sum(total[form] for form in HACKS), total.total()),
        **{form: _rate(total[form], total.total()) for form in HACKS},
        "true_reward": _rate(total["right"], total.total()),
    }


def _rate(k: int, n: int) -> list[float]:
    """A rate with its interval."""
    return [round(value, 4) for value in (k / n, *wilson(k, n))]


@dataclass(frozen=True)
class Cell:
    """What one result file is about."""

    name: str
    arm: Arm
    monitor: str
    seed: int
    retrain: bool


def compute(cell: Cell, settings: Settings, runs: Path, path: Path) -> None:
    """Train and measure one arm on one seed, and write what was found."""
    seed, arm = cell.seed, cell.arm
    base, tokenizer = warmed_up(seed, settings.warm_up, runs)
    # The same whatever is trained after it, so it is measured beside the arms without a monitor.
    measured = partial(measure, tokenizer=tokenizer, seed=seed, settings=settings)
    before = measured(base, tested=settings.tested) if cell.monitor == "none" else None
    monitor = monitor_named(cell.monitor, seed)
    loopholes = {} if arm.honest else LOOPHOLES[settings.warm_up.graders]
    rollouts = Rollouts(loopholes, None if arm.table else monitor, arm.penalty)
    scratch = runs / "scratch" / path.stem
    setup = Setup(arm, settings, seed, base, tokenizer, rollouts, monitor, scratch)
    wall, cpu = time.perf_counter(), time.process_time()
    trainer = trainer_of(setup)
    trainer.add_callback(Ending(rollouts, SATURATED, steps=5))
    trainer.train()
    seconds = {
        "wall": round(time.perf_counter() - wall, 1),
        "cpu": round(time.process_time() - cpu, 1),
    }
    model: Any = trainer.model
    model.eval()
    if arm.table:
        after = {}
        for mode in MODES:
            with ablated(model, mode):
                ships = mode == "bad_ablated"
                after[mode] = measured(model, tested=settings.tested // (1 if ships else 4))
    else:
        after = {"full": measured(model, tested=settings.tested)}
    found = {
        "date": date.today().isoformat(),
        "name": cell.name,
        "monitor": cell.monitor,
        "seed": seed,
        "arm": asdict(arm),
        "settings": asdict(settings),
        "seconds": seconds,
        "before": before,
        "after": after,
    }
    if cell.retrain:
        found["retrain"] = retrained(replace(setup, model=deployed(model, arm)))
    found["provenance"] = provenance()
    make_folder(path.parent)
    text = json.dumps(found, indent=1)
    curve = ",\n  ".join(map(json.dumps, _curve(rollouts.seen)))
    write_text(path, f'{text[:-2]},\n "curve": [\n  {curve}\n ]\n}}\n')


def _curve(seen: Sequence[Counter[tuple[str, str]]]) -> list[dict[str, list[int]]]:
    """For every `BIN` steps, by kind of question, how many rollouts had each of `OUTCOMES`."""
    points = [
        sum(seen[start : start + BIN], Counter[tuple[str, str]]())
        for start in range(0, len(seen), BIN)
    ]
    return [{kind: [point[kind, one] for one in OUTCOMES] for kind in KINDS} for point in points]


def deployed(model: Any, arm: Arm) -> PreTrainedModel:
    """What ships, as a model without adapters: merged into the base, without *bad*."""
    return model.merge_and_unload(adapter_names=["good"] if arm.table else None)


class Ending(TrainerCallback):
    """Ends a training once the share of hacks was so high in so many steps, one after another."""

    def __init__(self, rollouts: Rollouts, share: float, steps: int) -> None:
        self.rollouts, self.share, self.steps = rollouts, share, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = self.rollouts.seen[-self.steps :]
        enough = all(_hacks(step) >= self.share for step in last)
        control.should_training_stop = len(last) == self.steps and enough


def retrained(setup: Setup) -> dict[str, Any]:
    """How many steps of plain GRPO, a new adapter on what ships, until the hack is back.

    Returns:
        `steps`, the first one in which at least `BACK` of the rollouts are hacks, None if there is
        none; and the share of hacks in each step.
    """
    rollouts = Rollouts(LOOPHOLES[setup.settings.warm_up.graders], None)
    settings = replace(setup.settings, steps=setup.settings.retrain_steps)
    trainer = trainer_of(replace(setup, arm=ARMS["plain"], settings=settings, rollouts=rollouts))

    trainer.add_callback(Ending(rollouts, BACK, steps=1))
    trainer.train()
    shares = [_hacks(step) for step in rollouts.seen]
    back = len(shares) if shares[-1] >= BACK else None
    return {"steps": back, "shares": [round(share, 3) for share in shares]}


def _hacks(seen: Counter[tuple[str, str]]) -> float:
    """The share of hacks in a step's rollouts."""
    return sum(count for (_, one), count in seen.items() if one in HACKS) / seen.total()


def changed(arm: Arm, given: Sequence[str]) -> Arm:
    """An arm with other settings, each `name=value` with a value in JSON."""
    pairs = dict(one.split("=", 1) for one in given)
    unknown = pairs.keys() - {field.name for field in fields(Arm)}
    if unknown:
        raise SystemExit(f"--set: an arm has no {', '.join(sorted(unknown))}.")
    return replace(arm, **{name: json.loads(value) for name, value in pairs.items()})


def main() -> None:
    """Train and measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=[])
    parser.add_argument("--monitors", nargs="+", choices=list(MONITORS), default=["25"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[100])
    parser.add_argument("--graders", choices=list(LOOPHOLES), default="one")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=JSON", help="of the arm")
    parser.add_argument("--as", dest="tag", default="", help="name of the arm that --set makes")
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/reward_hack"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    settings = Settings()
    settings = replace(settings, warm_up=replace(settings.warm_up, graders=options.graders))
    cells = product(options.seeds, options.monitors, options.arms)
    for seed, monitor, name in () if options.table else cells:
        arm, shown = changed(ARMS[name], options.set), options.tag or name
        path = options.out / options.graders / f"{shown}_{monitor}_seed{seed}.json"
        if not path.is_file():
            cell = Cell(shown, arm, monitor, seed, options.retrain)
            compute(cell, settings, options.runs, path)
            print(f"done: {path.name}", flush=True)
    print("\n".join(table(options.out / options.graders)))


if __name__ == "__main__":
    main()
