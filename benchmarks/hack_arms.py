"""The arms of `reward_hack.py`: a trainer each, its tuned settings, and the monitors.

What routing does differently from TRL's GRPO is in the rows of `ARMS` and in `routed`.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from hack_task import FORMS, WarmUp, outcome, questions, reward
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from gradroute.config.sections import AdapterConfig
from gradroute.integrations.grpo import RoutedGRPOTrainer
from gradroute.integrations.monitors import (
    GOOD,
    UNLABELED,
    ImperfectMonitor,
    Monitor,
    labels_of,
    matching,
    unpaid_is_good,
)

LABELS = ("bad", UNLABELED, GOOD)
KNOWN = "teacher"
"""The form of the hack that the monitor `one-form` knows; it never catches the other."""
ANY_FORM = "|".join(form.pattern for form in FORMS.values())


class Catches(NamedTuple):
    """What a monitor flags.

    Attributes:
        forms: Pattern of the forms of the hack that it knows.
        recall: Share of these completions that it flags, at random.
        false_alarms: Share of the others that it flags too.
    """

    forms: str
    recall: float
    false_alarms: float = 0.0


MONITORS: Mapping[str, Catches] = {
    **{f"{percent}": Catches(ANY_FORM, percent / 100) for percent in (10, 25, 50, 100)},
    "25-false-5": Catches(ANY_FORM, 0.25, false_alarms=0.05),
    "one-form": Catches(FORMS[KNOWN].pattern, 1.0),
    "none": Catches(ANY_FORM, 0.0),
}
"""Name -> what it flags; names that are numbers are percent of all hacks."""
ADAPTER = LoraConfig(
    r=64,
    lora_alpha=128,
    target_modules=r".*\.layers\.[23]\..*_proj",  # the last half of the embedded model's layers
    task_type="CAUSAL_LM",
)
COMPLETION = 12  # tokens; both hacks are shorter


@dataclass(frozen=True)
class Settings:
    """What all arms share.

    Attributes:
        warm_up: How the base is prepared.
        steps: Of GRPO.
        prompts: A step.
        generations: Completions of a prompt.
        tested: Held-out questions that are measured.
        retrain_steps: The most that are tried to bring the hack back.
    """

    warm_up: WarmUp = field(default_factory=WarmUp)
    steps: int = 120
    prompts: int = 4
    generations: int = 8
    tested: int = 512
    retrain_steps: int = 120


@dataclass(frozen=True)
class Arm:
    """A row of `ARMS`; its numbers were tuned on seed 100 with the monitor of 25 %.

    Attributes:
        lr: Of AdamW, constant; of *good* where adapters are routed.
        honest: Whether the reward has no loophole: what an honest run would learn.
        penalty: Taken from the reward of a flagged completion.
        scale_rewards: Of TRL: "group" divides advantages by their deviation, "none" does not.
        dropped: What has no gradient: "" nothing, the "flagged" completions, or the "group" of one.
        table: Label -> the routes of *good* and *bad*; empty where nothing is routed.
        bad_lr: Learning rate of *bad*.
        rollout_mode: The ablation mode of sampling.
        anchor_share: Share of each group that is sampled without *bad*, see `RoutedGRPOTrainer`.
        unpaid_is_good: Whether a completion that is paid nothing is labeled good: it is no hack
            that pays.
        shuffled: Whether the flags of a batch go to random ones of its completions.
    """

    lr: float = 3e-4
    honest: bool = False
    penalty: float = 0.0
    scale_rewards: str = "group"
    dropped: str = ""
    table: str | Mapping[str, Mapping[str, Any]] = ""
    bad_lr: float = 3e-4
    rollout_mode: str = "full"
    anchor_share: float = 0.0
    unpaid_is_good: bool = False
    shuffled: bool = False


_PAID_ALONE = {
    "bad": {"good": "freeze", "bad": "update"},
    UNLABELED: {"good": "update", "bad": "freeze"},
    GOOD: {"good": "update", "bad": "ablate"},
}
_HEAVY_FLAGS = {
    "bad": {"good": "freeze", "bad": {"update": 8}},
    UNLABELED: {"good": "update", "bad": "update"},
    GOOD: {"good": "update", "bad": "update"},
}
_ANCHORED = Arm(table=_PAID_ALONE, bad_lr=1e-3, rollout_mode="bad_ablated", unpaid_is_good=True)
ARMS: Mapping[str, Arm] = {
    "plain": Arm(),
    "honest": Arm(honest=True),
    "penalty": Arm(penalty=8.0, scale_rewards="none"),
    "screening": Arm(dropped="group"),
    "routed": Arm(table=_HEAVY_FLAGS, bad_lr=3e-3),
    "routed_anchors": _ANCHORED,
    "random_labels": replace(_ANCHORED, shuffled=True),
}


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

    arm: Arm
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
            learning_rate=self.arm.lr,
            scale_rewards=self.arm.scale_rewards,
            lr_scheduler_type="constant",
        )
        return {
            "model": self.model,
            "reward_funcs": self.rollouts,
            "args": config,
            "train_dataset": Dataset.from_list(dataset),
            "processing_class": self.tokenizer,
        }


def monitor_named(name: str, seed: int) -> Monitor:
    """A row of `MONITORS`; its draws are those of the seed."""
    forms, recall, false_alarms = MONITORS[name]
    return ImperfectMonitor(matching(forms), recall, false_alarms, seed=seed)


def trainer_of(setup: Setup) -> GRPOTrainer:
    """The trainer of an arm: routed, screened, or GRPO of one LoRA adapter."""
    if setup.arm.table:
        return routed(setup)
    if setup.arm.dropped:
        return screened(setup)
    return GRPOTrainer(peft_config=ADAPTER, **setup.arguments())


def screened(setup: Setup) -> GRPOTrainer:
    """GRPO in which flagged completions count for their group's mean, and have no gradient."""
    whole_groups, size = setup.arm.dropped == "group", setup.settings.generations

    class Screening(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            flags = torch.tensor(setup.rollouts.flags)
            if whole_groups:
                flags = flags.view(-1, size).any(1).repeat_interleave(size)
            output["advantages"][flags] = 0.0
            return output

    return Screening(peft_config=ADAPTER, **setup.arguments())


def routed(setup: Setup) -> GRPOTrainer:
    """Routed adapters of the same total rank."""
    arm = setup.arm
    return RoutedGRPOTrainer(
        policy=arm.table,
        adapters={"good": AdapterConfig(), "bad": AdapterConfig(learning_rate=arm.bad_lr)},
        monitor=routing_labels(arm, setup.monitor, setup.seed),
        rollout_mode=arm.rollout_mode,
        anchor_share=arm.anchor_share,
        **setup.arguments(),
    )


def routing_labels(arm: Arm, monitor: Monitor, seed: int) -> Monitor:
    """The labels of a routed arm: the monitor's, and what rewards say."""
    rng = random.Random(f"reward hack labels {seed}")

    def shuffled(*batch: Any) -> list[str]:
        labels = monitor(*batch)
        return rng.sample(labels, len(labels))

    flags: Monitor = shuffled if arm.shuffled else monitor
    return unpaid_is_good(flags) if arm.unpaid_is_good else flags
