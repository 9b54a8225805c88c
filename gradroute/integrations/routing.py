"""What every routed trainer shares: adapters, labels, the optimizer's rule, saving and resuming.

The classes stand around a trainer in the order of method resolution:

    Routed…Trainer(RoutedTraining, SFTTrainer, AttachAdapters)
        RoutedTraining   before the trainer: takes the arguments, scopes its loss and its rollouts
        SFTTrainer       as it is; builds or loads the base model
        AttachAdapters   behind it, before transformers.Trainer: puts adapters on that model

TRL treats a model that has adapters when it comes as one adapter called `default`: it copies that
one as the reference and casts it to bf16 on a quantized base. Behind TRL's own constructor none of
this happens, and its reference is the base with adapters disabled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from gradroute.errors import ConfigError, DataError, NumericError
from gradroute.integrations import output_run, saved
from gradroute.integrations.labels import ROUTING_IDS, UNLABELED, LabelCollator, LabelColumns
from gradroute.integrations.optimizers import routed_optimizer
from gradroute.integrations.processes import check_equal_weights, ranks_of, share_step
from gradroute.routing.adapters import (
    AdapterShape,
    AdapterSpec,
    ablated,
    attach_adapters,
    routed,
)
from gradroute.routing.layers import lora_layers
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.system.devices import to_host
from gradroute.system.ranks import Ranks
from gradroute.train.updates import adapter_groups, clip_gradients, skip_updates

_ADAPTERS: Mapping[str, AdapterShape] = {"good": AdapterSpec(), "bad": AdapterSpec()}


@dataclass(frozen=True)
class Routing:
    """What a routed trainer is told about routing.

    Attributes:
        policy: The routing table.
        adapters: Name -> rank, alpha, dropout; with `learning_rate`, `weight_decay` and `clip`
            where it has these.
        targets: Which modules get adapters, see `attach_adapters`.
        layers: In which layers.
        columns: Where the labels are.
        rollout_mode: The ablation mode of generation and of passes without a gradient.
        eval_modes: The modes under which `evaluate` measures the loss.
    """

    policy: RoutingPolicy
    adapters: Mapping[str, AdapterShape]
    targets: str | Sequence[str]
    layers: str | Sequence[int]
    columns: LabelColumns
    rollout_mode: AblationMode
    eval_modes: tuple[AblationMode, ...]


class AttachAdapters(Trainer):
    """Puts the adapters on the base model that the trainer before it hands on."""

    routing: Routing

    def __init__(self, model: nn.Module | None = None, *args: Any, **kwargs: Any) -> None:
        if model is None:
            raise ConfigError("a routed trainer needs a model; model_init is not supported.")
        check_base(model)
        arguments = kwargs.get("args") or (args[0] if args else None)
        seed = arguments.seed if isinstance(arguments, TrainingArguments) else 42
        routing = self.routing
        adapted = attach_adapters(
            model,
            routing.adapters,
            targets=routing.targets,
            layers=routing.layers,
            seed=seed,
        )
        super().__init__(adapted, *args, **kwargs)


class RoutedTraining(Trainer):
    """A trainer whose loss is computed under a routing table.

    Args:
        model: The base model, without adapters, or the path of one where the trainer takes that.
        args: The trainer's own arguments.
        policy: The name of a routing table, or a table label -> adapter -> route.
        adapters: Name -> `AdapterSpec`; None for `good` and `bad` of rank 32.
        targets: Which modules get adapters, see `attach_adapters`.
        layers: In which layers, see there.
        label_column: The data set's column of labels; a row with None is `unlabeled`.
        rollout_mode: The ablation mode of generation and of passes without a gradient.
        eval_modes: The ablation modes under which `evaluate` measures the loss beside its own; None
            for full and each adapter but `good` ablated.
        behavior: What rows labeled bad show, as `behavior` of a config names it: a behavior, or
            label -> behavior. `gradroute eval` detects it in the output folder, see `output_run`.
        trainer_arguments: All else that the trainer takes, by name.

    Raises:
        ConfigError: The model has adapters, `peft_config` is given as well, the table does not fit
            the adapters, or an option of the trainer goes past the routed layers.
        DataError: A data set has no column of labels.
    """

    routing: Routing
    ranks: Ranks
    model: PeftModel

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: TrainingArguments | None = None,
        *,
        policy: str | Mapping[str, Mapping[str, Any]],
        adapters: Mapping[str, AdapterShape] | None = None,
        targets: str | Sequence[str] = "all-linear",
        layers: str | Sequence[int] = "last-half",
        label_column: str = "label",
        rollout_mode: str = "full",
        eval_modes: Sequence[str] | None = None,
        behavior: str | Mapping[str, str] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        specs = _ADAPTERS if adapters is None else adapters
        table = RoutingPolicy.parse(policy, list(specs), [n for n in specs if n != "good"])
        self.routing = Routing(
            table,
            specs,
            targets,
            layers,
            LabelColumns(table, self._label_columns(label_column, trainer_arguments)),
            AblationMode.parse(rollout_mode, list(specs)),
            _modes(eval_modes, list(specs)),
        )
        check_arguments(args, trainer_arguments)
        if isinstance(model, nn.Module):
            check_base(model)
            model.requires_grad_(False)  # TRL casts what is trainable on a quantized base
        for which in ("train_dataset", "eval_dataset"):
            self._check_labels(trainer_arguments.get(which), which.removesuffix("_dataset"))
        self._labels_of_step: set[str] = set()
        self._norms: dict[str, float] = {}
        self._given = output_run.given(behavior, table, trainer_arguments)
        self.rollouts: Sequence[Mapping[str, Any]] = ()
        super().__init__(model=model, args=args, **trainer_arguments)  # pyright: ignore
        self.ranks = ranks_of(self)
        self.data_collator = self._label_collator(self.data_collator)

    def _label_columns(self, column: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns that hold labels."""
        return (column,)

    def _label_collator(self, inner: Any) -> Any:
        """The trainer's collator with labels."""
        return LabelCollator(inner, self.routing.columns)

    def _check_labels(self, dataset: object, which: str) -> None:
        if isinstance(dataset, Mapping):
            for name, own in dataset.items():
                self.routing.columns.check(own, f"{which} ({name})")
        else:
            self.routing.columns.check(dataset, which)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known = self._signature_columns or []
        wanted = (*self.routing.columns.names, ROUTING_IDS)
        self._signature_columns = [*known, *(name for name in wanted if name not in known)]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; in training, what it samples is under the rollout mode."""
        if not self.model.training:
            return super()._prepare_inputs(*args, **kwargs)
        with ablated(self.model, self.routing.rollout_mode):
            return super()._prepare_inputs(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's loss, in training under the routing table and the labels of the batch."""
        own = {key: value for key, value in inputs.items() if key != ROUTING_IDS}
        if not self.model.training:
            return super().compute_loss(model, own, return_outputs, num_items_in_batch)
        ids = inputs.get(ROUTING_IDS)
        if ids is None:
            raise DataError("a batch has no labels; the data collator was replaced by another one.")
        policy = self.routing.policy
        with routed(self.model, policy, ids) as scope:
            self._labels_of_step.update(policy.labels[label] for label in scope.present)
            return super().compute_loss(model, own, return_outputs, num_items_in_batch)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `args` name, with a group for each adapter; or the user's, split."""
        self.optimizer = routed_optimizer(self, self.model, self.routing.adapters)
        check_equal_weights(self.ranks, self.model)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._finish_gradients()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self._finish_gradients() if grad_norm is None else grad_norm

    def _finish_gradients(self) -> Tensor:
        """Clip each adapter by itself and skip those that no label of the step updates.

        Raises:
            NumericError: A gradient is not finite; no weight has changed.
        """
        optimizer, policy = _bare(self.optimizer), self.routing.policy
        groups = adapter_groups(optimizer, policy)
        updated = share_step(self.ranks, self._labels_of_step, groups, policy)
        self._labels_of_step.clear()
        self.accelerator.unscale_gradients(self.optimizer)
        norms = clip_gradients(groups, updated)
        for name in groups.keys() - updated:
            skip_updates(groups[name])
        numbers = to_host(list(norms.values())) if norms else []
        self._norms = {name: norm for name, [norm] in zip(norms, numbers, strict=True)}
        scaled = self.accelerator.scaler is not None  # which skips such a step by itself
        for name, norm in self._norms.items():
            if not (math.isfinite(norm) or scaled):
                raise NumericError(
                    f"step {self.state.global_step + 1}: the gradient of adapter {name!r} is "
                    f"{norm}; no weight was changed. Lower the learning rate, or look at the rows."
                )
        return torch.tensor(math.hypot(*self._norms.values()))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's log line, with the gradient norm of each adapter that was updated."""
        if "grad_norm" in logs:
            logs.update({f"grad_norm_{name}": norm for name, norm in self._norms.items()})
        super().log(logs, *args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The trainer's evaluation; then its loss under each of `eval_modes`, and for each label.

        Returns:
            The trainer's metrics, `<prefix>_loss_<mode>` and `<prefix>_loss_<mode>_<label>`. Each
            may be `metric_for_best_model`.
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]  # pyright: ignore
        elif isinstance(eval_dataset, Dataset):
            dataset = self._prepared(eval_dataset)
        if isinstance(dataset, Mapping) or not self.routing.eval_modes:
            return metrics  # each of several data sets came through here by itself
        found: dict[str, float] = {}
        for mode in self.routing.eval_modes:
            with ablated(self.model, mode):
                for label, rows in self._eval_parts(dataset).items():
                    name = f"{mode.name}_{label}" if label else mode.name
                    found |= self._loss_of(rows, metric_key_prefix, name)
        self.log(found)
        return {**metrics, **found}

    def _prepared(self, dataset: Dataset) -> Any:
        """A data set that was handed to `evaluate`, as the trainer prepares those of its own."""
        return dataset

    def _eval_parts(self, dataset: Any) -> dict[str, Any]:
        """The data set under an empty name, and its rows of each label where it has a column."""
        parts = {"": dataset}
        column = self.routing.columns.names[0]
        if isinstance(dataset, Dataset) and column in dataset.column_names:
            for label in self.routing.policy.labels:
                known = [UNLABELED if own is None else own for own in dataset[column]]
                rows = [at for at, own in enumerate(known) if own == label]
                parts |= {label: dataset.select(rows)} if rows else {}
        return parts

    def _loss_of(self, dataset: Any, prefix: str, name: str) -> dict[str, float]:
        """The trainer's loss on a data set, and rewards where it has some, under these names."""
        loader = self.get_eval_dataloader(dataset)
        output = self.evaluation_loop(loader, name, prediction_loss_only=True)
        found = {f"{prefix}_loss_{name}": (output.metrics or {})["eval_loss"]}
        own = getattr(self, "_metrics", {}).get("eval", {})  # what TRL's trainers collect
        for key, values in own.items():
            if key.startswith("reward"):
                found[f"{prefix}_{key}_{name}"] = sum(values) / len(values)
        own.clear()
        return found

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; then the output folder is a run of gradroute, see `output_run`."""
        output = super().train(*args, **kwargs)
        output_run.write_run(self, self._given)
        return output

    def _counters(self) -> dict[str, int]:
        """What else a trainer counts, for going on from a checkpoint."""
        return {}

    def _set_counters(self, counters: Mapping[str, int]) -> None:
        """The inverse of `_counters`."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._save_routed(output_dir)

    def _save_routed(self, output_dir: str) -> None:
        if self.args.should_save:
            saved.write_routed(
                Path(output_dir),
                self.state.global_step,
                self.model,
                _bare(self.optimizer),
                self.routing.policy.to_plain(),
                self._counters(),
            )

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        saved.load_adapters(saved.saved_checkpoint(folder), self.model)
        self._set_counters(saved.saved_state(folder))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            saved.load_adapters(saved.saved_checkpoint(Path(best)), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            saved.load_moments(Path(checkpoint), self.model, _bare(self.optimizer))


def _modes(names: Sequence[str] | None, adapters: Sequence[str]) -> tuple[AblationMode, ...]:
    if names is None:
        names = ["full", *(f"{adapter}_ablated" for adapter in adapters if adapter != "good")]
    return tuple(AblationMode.parse(name, adapters) for name in names)


def check_base(model: nn.Module) -> None:
    """Refuse a model that has adapters already.

    Raises:
        ConfigError: It has.
    """
    if isinstance(model, PeftModel) or lora_layers(model):
        raise ConfigError(
            "the model has adapters already. Hand the base model to the trainer, and say with "
            "adapters= which ones it gets."
        )


def check_arguments(args: TrainingArguments | None, others: Mapping[str, Any]) -> None:
    """Refuse options of a trainer that go past the routed layers.

    Raises:
        ConfigError: Such an option is set.
    """
    if others.get("peft_config") is not None:
        raise ConfigError(
            "peft_config= names an adapter beside those of adapters=. Leave it out: a routed "
            "trainer makes its own adapters."
        )
    if others.get("model_init") is not None:
        raise ConfigError("model_init= is not supported; hand the base model to the trainer.")
    if args is not None and args.use_liger_kernel:
        raise ConfigError(
            "use_liger_kernel replaces the model's layers by fused ones, which may not call the "
            "adapters. Leave it off."
        )


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper, where it is in one."""
    return getattr(optimizer, "optimizer", optimizer)
