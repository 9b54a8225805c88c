"""`RoutedDPOTrainer`: TRL's direct preference optimization with routed adapters."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from trl.trainer.dpo_trainer import DPOTrainer

from gradroute.errors import ConfigError
from gradroute.integrations.labels import ROUTING_IDS
from gradroute.integrations.routing import AttachAdapters, RoutedTraining


class RoutedDPOTrainer(  # pyright: ignore[reportIncompatibleMethodOverride]
    RoutedTraining, DPOTrainer, AttachAdapters
):
    """`trl.DPOTrainer` with routed adapters; its arguments, and those of `RoutedTraining`.

    A pair has one label, or one for each side: `label_column` names the column of both, and a data
    set with the columns `<label_column>_chosen` and `<label_column>_rejected` has two. The side's
    label decides which adapters are computed for its tokens and what they learn from them.

    The reference is the base: its log-probabilities are those of the model with adapters disabled.
    """

    def _label_columns(self, column: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        if arguments.get("ref_model") is not None:
            raise ConfigError(
                "ref_model= is not supported: the reference is the base, which is the model with "
                "adapters disabled and needs no second copy. Leave it out."
            )
        sides = (f"{column}_chosen", f"{column}_rejected")
        dataset = arguments.get("train_dataset")
        names = dataset.column_names if isinstance(dataset, Dataset | IterableDataset) else None
        return sides if names and set(sides) <= set(names) else (column, column)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        self.routing.columns.check(dataset, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _prepared(self, dataset: Dataset) -> Any:
        args: Any = self.args
        prepared: Any = self._prepare_dataset(dataset, self.processing_class, args, "eval")
        if self.precompute_ref_logps:
            size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
            prepared = self._precompute_ref_logps(prepared, "eval", size)
        return prepared

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The base's log-probabilities of a batch."""
        return super().compute_ref_log_probs(
            model, {key: value for key, value in inputs.items() if key != ROUTING_IDS}
        )
