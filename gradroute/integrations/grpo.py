"""`RoutedGRPOTrainer`: TRL's group relative policy optimization with routed adapters."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from gradroute.errors import ConfigError
from gradroute.integrations.labels import ROUTING_IDS
from gradroute.integrations.monitors import (
    GOOD,
    UNLABELED,
    ImperfectMonitor,
    Monitor,
    counted,
    labels_of,
    text_of,
)
from gradroute.integrations.output_rows import answer
from gradroute.integrations.routing import AttachAdapters, RoutedTraining
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode
from gradroute.system.ranks import Ranks

KEPT_ROLLOUTS = 512
"""Completions that become rows of the run in the output folder: so many last ones."""


class RoutedGRPOTrainer(  # pyright: ignore[reportIncompatibleMethodOverride]
    RoutedTraining, GRPOTrainer, AttachAdapters
):
    """`trl.GRPOTrainer` with routed adapters; its arguments, and those of `RoutedTraining`.

    A completion's label comes from a monitor, once per rollout batch, or from the label column of
    its prompt. Completions of one group may have different labels: the advantage is that of the
    whole group, and each completion's gradient goes where its label says.

    The reference is the base: with `beta` above 0 its log-probabilities are those of the model with
    adapters disabled.

    Args:
        model: The base model, or its path.
        reward_funcs: As for `trl.GRPOTrainer`.
        args: See there.
        monitor: (prompts, completions, rewards, columns) -> a label for each completion, see
            `monitors`; None takes the label column.
        anchor_share: Share of each group whose completions are sampled under `anchor_mode`. One
            that the monitor leaves unlabeled is labeled good, so that it is also trained without
            the ablated adapter.
        anchor_mode: The ablation mode of these.
        others: What `RoutedTraining` and the trainer take.

    Raises:
        ConfigError: An option moves weights or samples past the routed layers (vLLM, continuous
            batching), or anchors are asked for with steps that reuse rollouts.
    """

    def __init__(
        self,
        model: nn.Module | str,
        reward_funcs: Any,
        args: GRPOConfig | None = None,
        *,
        monitor: Monitor | None = None,
        anchor_share: float = 0.0,
        anchor_mode: str = "bad_ablated",
        **others: Any,
    ) -> None:
        settings = GRPOConfig() if args is None else copy(args)
        _check_settings(settings)
        if not 0.0 <= anchor_share < 1.0:
            raise ConfigError(f"anchor_share is {anchor_share}; it must be from 0 to below 1.")
        self.monitor = monitor
        self._group = settings.num_generations or 1
        self._anchors = round(anchor_share * self._group)
        self._label_ids: list[int] = []
        self._sampler: object = None
        # TRL would load a second base as the reference of a model that has no adapters yet.
        beta, settings.beta = settings.beta, 0.0
        super().__init__(model, settings, reward_funcs=reward_funcs, **others)
        self.beta = settings.beta = beta
        self.anchor_mode = AblationMode.parse(anchor_mode, list(self.routing.adapters))
        _check_anchors(settings, self._anchors, self.ranks)

    def _check_labels(self, dataset: object, which: str) -> None:
        if self.monitor is None:
            super()._check_labels(dataset, which)

    def _eval_parts(self, dataset: Any) -> dict[str, Any]:
        return {"": dataset}

    def _label_collator(self, inner: Any) -> Any:
        return inner  # rows reach the rollout as they are

    def _get_train_sampler(self, dataset: Any = None) -> Any:  # pyright: ignore
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(*args, **kwargs)
        # TRL's sampler draws the order of an epoch from a generator that starts anew in a process
        # that goes on. So the orders of the epochs that are done are drawn first.
        if isinstance(self._sampler, RepeatSampler) and self._sampler.shuffle:
            for _ in range(epochs):
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        return epochs, steps

    def _generate_single_turn(
        self, prompt_ids: Sequence[Sequence[int]], *args: Any, **kwargs: Any
    ) -> Any:
        if not (self._anchors and self.model.training):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        groups = len(prompt_ids) // self._group
        modes = [self.routing.rollout_mode, self.anchor_mode] * groups
        with ablated(self.model, modes, [self._group - self._anchors, self._anchors] * groups):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], ids: Any
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
        if self.model.training:
            weights = self.reward_weights.to(rewards.device)
            first = self.ranks.rank * len(prompts)  # TRL gathers the rewards of all processes
            own_rewards = rewards[first : first + len(prompts)]
            summed = (own_rewards * weights).nansum(dim=1).tolist()
            labels = self._labels(inputs, prompts, completions, summed)
            policy = self.routing.policy
            counts = counted(labels, policy.labels)
            shares = self.ranks.numbers([count / len(labels) for count in counts.values()])
            for label, share in zip(counts, shares, strict=True):
                self._metrics["train"][f"labels/{label}"].append(share / self.ranks.size)
            self._label_ids = policy.label_ids(labels)
            own = zip(prompts, completions, labels, strict=True)
            rows = [
                {**answer(prompt, said), "label": label}
                for prompt, said, label in own
                if text_of(said).strip()
            ]
            self.rollouts = [*self.rollouts, *rows][-KEPT_ROLLOUTS:]
        return rewards

    def _labels(
        self,
        inputs: list[dict[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rewards: Sequence[float],
    ) -> list[str]:
        """The label of every completion of a rollout batch."""
        column = self.routing.columns.names[0]
        if self.monitor is None:
            given = [row.get(column) for row in inputs]
            labels = [UNLABELED if label is None else label for label in given]
        else:
            columns = {key: [row[key] for row in inputs] for key in inputs[0] if key != "prompt"}
            known = self.routing.policy.labels
            labels = labels_of(self.monitor, prompts, completions, rewards, columns, known=known)
        first_anchor = self._group - self._anchors
        return [
            GOOD if label == UNLABELED and at % self._group >= first_anchor else label
            for at, label in enumerate(labels)
        ]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            output[ROUTING_IDS] = torch.tensor(self._label_ids, device=self.accelerator.device)
        return output

    def _counters(self) -> dict[str, int]:
        if isinstance(self.monitor, ImperfectMonitor):
            return {"monitor_calls": self.monitor.calls}
        return {}

    def _set_counters(self, counters: Mapping[str, int]) -> None:
        if isinstance(self.monitor, ImperfectMonitor):
            self.monitor.calls = counters.get("monitor_calls", 0)


def _check_anchors(settings: GRPOConfig, anchors: int, ranks: Ranks) -> None:
    """Refuse anchors where rollouts are used again, or a process has parts of groups.

    Raises:
        ConfigError: So it is.
    """
    if not anchors:
        return
    steps = settings.steps_per_generation or 1
    reused = steps * settings.num_iterations
    if settings.gradient_accumulation_steps % reused:
        raise ConfigError(
            f"anchor_share needs rollouts that one optimizer step uses up: "
            f"gradient_accumulation_steps is {settings.gradient_accumulation_steps}, but "
            f"steps_per_generation * num_iterations is {reused}. Make the first a multiple."
        )
    own, group = settings.per_device_train_batch_size * steps, settings.num_generations or 1
    if ranks.several and own % group:
        raise ConfigError(
            f"anchor_share needs whole groups on each process: a process samples {own} completions "
            f"at a time (per_device_train_batch_size * steps_per_generation), which groups of "
            f"{group} (num_generations) do not divide. Make it a multiple."
        )


def _check_settings(settings: GRPOConfig) -> None:
    """Refuse options under which rollouts do not come from the routed layers.

    Raises:
        ConfigError: Such an option is set.
    """
    if settings.use_vllm:
        raise ConfigError(
            "use_vllm=True merges all adapters into the base for every rollout and takes them out "
            "again, which rounds a bf16 base each time and samples under no ablation mode. Leave "
            "it off."
        )
    if settings.use_transformers_continuous_batching:
        raise ConfigError(
            "use_transformers_continuous_batching mixes the rows of a batch, so that no row has an "
            "ablation mode. Leave it off."
        )
    if settings.sync_ref_model:
        raise ConfigError(
            "sync_ref_model is not supported: the reference is the base with adapters disabled. "
            "Leave it off."
        )
