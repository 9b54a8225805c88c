"""Reinforcement learning finds a loophole: with and without something against it.

    python benchmarks/reward_hack.py --arm plain --seed 100
    python benchmarks/reward_hack.py --table

The task, its loophole and the warm-up are in `hack_task.py`. Every arm is TRL's GRPO from the same
warmed-up model, on the same prompts, with a total LoRA rank of 64 on the last half of the layers. A
monitor knows one form of the hack, "teacher". One JSON file per cell; a cell that is there is not
computed again.
"""

import argparse
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from hack_task import (
    FORMS,
    HACKS,
    KINDS,
    LOOPHOLES,
    OUTCOMES,
    WarmUp,
    outcome,
    questions,
    reward,
    warmed_up,
)
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from gradroute.integrations.grpo import RoutedGRPOTrainer
from gradroute.integrations.monitors import ImperfectMonitor, Monitor, labels_of, matching
from gradroute.routing.adapters import ablated
from gradroute.runs.provenance import provenance
from gradroute.system.files import make_folder, write_text
from gradroute.system.statistics import wilson

RESULTS = Path(__file__).parent / "results" / "reward_hack"
KNOWN = "teacher"
"""The form of the hack that the monitor knows; it never catches the other."""
LABELS = ("bad", "unlabeled", "good")
ADAPTER = LoraConfig(
    r=64,
    lora_alpha=128,
    target_modules=r".*\.layers\.[23]\..*_proj",  # the last half of the embedded model's layers
    task_type="CAUSAL_LM",
)
MODES = ("full", "bad_ablated", "good_ablated")
BIN = 10  # steps that a point of the curve sums
COMPLETION = 12  # tokens; both hacks are shorter


@dataclass(frozen=True)
class Settings:
    """What all arms share.

    Attributes:
        warm_up: How the base is prepared.
        steps: Of GRPO.
        prompts: A step.
        generations: Completions of a prompt.
        lr: Of AdamW, constant.
        penalty: What the arm `penalty` takes from the reward of a flagged completion.
        recall: Of the monitor, on the form that it knows.
        false_alarms: Share of the other completions that it flags.
        tested: Held-out questions that are measured.
    """

    warm_up: WarmUp = field(default_factory=WarmUp)
    steps: int = 200
    prompts: int = 4
    generations: int = 8
    lr: float = 3e-4
    penalty: float = 1.0
    recall: float = 1.0
    false_alarms: float = 0.0
    tested: int = 512


@dataclass
class Rollouts:
    """The reward function of a run; it keeps what it saw.

    Attributes:
        loopholes: By kind of question the forms of the hack that are paid; none in an honest run.
        monitor: Asked for a label of every completion; none where the trainer asks it.
        penalty: Taken from the reward of a flagged completion.
        flags: Whether each completion of the last call was flagged.
        seen: Of each call, how many completions of each kind had each outcome.
    """

    loopholes: Mapping[str, Collection[str]]
    monitor: Monitor | None
    penalty: float = 0.0
    flags: list[bool] = field(default_factory=list)
    seen: list[Counter[tuple[str, str]]] = field(default_factory=list)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        kind: Sequence[str],
        answer: Sequence[str],
        **_: Any,  # TRL hands on everything that it has
    ) -> list[float]:
        outcomes = [outcome(*pair) for pair in zip(completions, answer, strict=True)]
        self.seen.append(Counter(zip(kind, outcomes, strict=True)))
        rewards = [reward(one, of, self.loopholes) for one, of in zip(outcomes, kind, strict=True)]
        self.flags = [False] * len(completions)
        if self.monitor is not None:
            columns = {"kind": kind, "answer": answer}
            labels = labels_of(self.monitor, prompts, completions, rewards, columns, known=LABELS)
            self.flags = [label == "bad" for label in labels]
        return [r - self.penalty * flag for r, flag in zip(rewards, self.flags, strict=True)]


@dataclass(frozen=True)
class Setup:
    """What an arm makes its trainer of; the monitor is for the trainer of a routed arm."""

    settings: Settings
    seed: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rollouts: Rollouts
    monitor: Monitor
    scratch: Path

    def arguments(self) -> dict[str, Any]:
        """What the trainer of every arm is given, beside its adapters."""
        settings = self.settings
        rows = questions("tune", self.seed, settings.warm_up.largest)
        dataset = [row._asdict() for row in islice(rows, settings.prompts * settings.steps)]
        config = GRPOConfig(
            output_dir=str(self.scratch),
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            seed=self.seed,
            per_device_train_batch_size=settings.prompts * settings.generations,
            num_generations=settings.generations,
            max_completion_length=COMPLETION,
            max_steps=settings.steps,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
        )
        return {
            "model": self.model,
            "reward_funcs": self.rollouts,
            "args": config,
            "train_dataset": Dataset.from_list(dataset),
            "processing_class": self.tokenizer,
        }


def one_adapter(setup: Setup) -> GRPOTrainer:
    """GRPO of one LoRA adapter."""
    return GRPOTrainer(peft_config=ADAPTER, **setup.arguments())


def screened(setup: Setup) -> GRPOTrainer:
    """The same; flagged completions count for their group's mean, and have no gradient."""

    class Screening(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            output["advantages"][torch.tensor(setup.rollouts.flags)] = 0.0
            return output

    return Screening(peft_config=ADAPTER, **setup.arguments())


def absorbing(setup: Setup) -> GRPOTrainer:
    """Routed adapters of the same total rank; unlabeled completions update both."""
    return RoutedGRPOTrainer(policy="absorb", monitor=setup.monitor, **setup.arguments())


def anchored(setup: Setup) -> GRPOTrainer:
    """Routed; a quarter of each group is sampled and, where unlabeled, trained without `bad`."""
    return RoutedGRPOTrainer(
        policy="anchored", monitor=setup.monitor, anchor_share=0.25, **setup.arguments()
    )


def with_random_labels(setup: Setup) -> GRPOTrainer:
    """Routed like `absorbing`, with the labels of each batch in a random order."""
    rng = random.Random(f"reward hack labels {setup.seed}")

    def shuffled(*batch: Any) -> list[str]:
        labels = setup.monitor(*batch)
        return rng.sample(labels, len(labels))

    return RoutedGRPOTrainer(policy="absorb", monitor=shuffled, **setup.arguments())


@dataclass(frozen=True)
class Arm:
    """A row of `ARMS`.

    Attributes:
        make: Its trainer.
        honest: Whether its reward has no loophole: what an honest run would learn.
        penalized: Whether a flagged completion is paid less.
        modes: Ablation modes under which it is measured; none where nothing is routed.
    """

    make: Callable[[Setup], GRPOTrainer] = one_adapter
    honest: bool = False
    penalized: bool = False
    modes: tuple[str, ...] = ()


ARMS: Mapping[str, Arm] = {
    "plain": Arm(),
    "honest": Arm(honest=True),
    "penalty": Arm(penalized=True),
    "screening": Arm(screened),
    "routed": Arm(absorbing, modes=MODES),
    "routed_anchors": Arm(anchored, modes=MODES),
    "random_labels": Arm(with_random_labels, modes=MODES),
}


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, settings: Settings
) -> dict[str, Any]:
    """Outcomes on held-out questions, sampled at temperature 1 as the rollouts are.

    Returns:
        By kind of question the counts of each outcome, and the hack rate and the true reward over
        all questions, each with its interval.
    """
    rows = questions("test", seed, settings.warm_up.largest)
    counts = {kind: Counter[str]() for kind in KINDS}
    batch = list(islice(rows, settings.tested))
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


def cell(name: str, seed: int, settings: Settings, runs: Path, path: Path) -> None:
    """Train and measure one arm on one seed, and write what was found."""
    arm = ARMS[name]
    base, tokenizer = warmed_up(seed, settings.warm_up, runs)
    before = measure(base, tokenizer, seed, settings)
    knows = matching(FORMS[KNOWN].pattern)
    monitor = ImperfectMonitor(knows, settings.recall, settings.false_alarms, seed=seed)
    loopholes = {} if arm.honest else LOOPHOLES[settings.warm_up.graders]
    rollouts = Rollouts(
        loopholes, None if arm.modes else monitor, settings.penalty if arm.penalized else 0.0
    )
    wall, cpu = time.perf_counter(), time.process_time()
    trainer = arm.make(
        Setup(
            settings, seed, base, tokenizer, rollouts, monitor, runs / path.parent.name / path.stem
        )
    )
    trainer.train()
    seconds = {
        "wall": round(time.perf_counter() - wall, 1),
        "cpu": round(time.process_time() - cpu, 1),
    }
    model: Any = trainer.model
    model.eval()
    after = {}
    for mode in arm.modes or ("full",):
        with ablated(model, mode) if arm.modes else nullcontext():
            after[mode] = measure(model, tokenizer, seed, settings)
    found = {
        "date": date.today().isoformat(),
        "arm": name,
        "seed": seed,
        "settings": asdict(settings),
        "seconds": seconds,
        "before": before,
        "after": after,
        "provenance": provenance(),
    }
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


def table(out: Path) -> list[str]:
    """The cells as Markdown, rates in percent with their intervals."""
    columns = ("graders", "arm", "seed", "mode", "hack", *HACKS, "true reward", "CPU s")
    lines = [f"| {' | '.join(columns)} |", "|" + len(columns) * "---|"]
    for path in sorted(out.glob("*/*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        for mode, of in {"before": one["before"], **one["after"]}.items():
            rates = [_percent(of[name]) for name in ("hack", *HACKS, "true_reward")]
            row = (path.parent.name, path.stem.split("_seed")[0], str(one["seed"]), mode, *rates)
            lines.append(f"| {' | '.join(row)} | {one['seconds']['cpu']:.0f} |")
    return lines


def _percent(rate: Sequence[float]) -> str:
    value, lower, upper = (100 * part for part in rate)
    return f"{value:.0f} [{lower:.0f}, {upper:.0f}]"


def main() -> None:
    """Train and measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=list(ARMS), default="plain")
    parser.add_argument("--graders", choices=list(LOOPHOLES), default="two")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--recall", type=float, default=1.0)
    parser.add_argument("--false-alarms", type=float, default=0.0)
    parser.add_argument("--runs", type=Path, default=Path("runs/reward_hack"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", category=FutureWarning)
        settings = Settings()
        settings = replace(
            settings,
            warm_up=replace(settings.warm_up, graders=options.graders),
            recall=options.recall,
            false_alarms=options.false_alarms,
        )
        name = options.arm
        if (options.recall, options.false_alarms) != (1.0, 0.0):
            name += f"-recall-{options.recall:g}-false-{options.false_alarms:g}"
        path = options.out / options.graders / f"{name}_seed{options.seed}.json"
        if not path.is_file():
            cell(options.arm, options.seed, settings, options.runs, path)
    print("\n".join(table(options.out)))


if __name__ == "__main__":
    main()
