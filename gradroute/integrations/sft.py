"""`RoutedSFTTrainer`: TRL's supervised fine-tuning with routed adapters."""

from copy import copy
from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gradroute.errors import ConfigError
from gradroute.integrations.labels import ROUTING_IDS, LabelCollator
from gradroute.integrations.routing import AttachAdapters, RoutedTraining


class RoutedSFTTrainer(  # pyright: ignore[reportIncompatibleMethodOverride]
    RoutedTraining, SFTTrainer, AttachAdapters
):
    """`trl.SFTTrainer` with routed adapters; its arguments, and those of `RoutedTraining`.

    A packed data set has a label for each token. Its rows are those that TRL packs.
    """

    def _label_collator(self, inner: Any) -> LabelCollator:
        return LabelCollator(inner, self.routing.columns, flattened=self.padding_free)

    def _prepared(self, dataset: Dataset) -> Any:
        args: Any = self.args
        packing = args.packing if args.eval_packing is None else args.eval_packing
        return self._prepare_dataset(
            dataset, self.processing_class, args, packing, self._formatting_func, "eval"
        )

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        self.routing.columns.check(dataset, dataset_name)
        if not packing:
            return super()._prepare_dataset(
                dataset, processing_class, args, False, formatting_func, dataset_name
            )
        if args.max_length is None:
            raise ConfigError("packing needs max_length, the tokens of a packed row.")
        # TRL keeps tokens and targets alone when it packs. So it prepares the rows unpacked here,
        # and packs them with an id for each token.
        rows = copy(args)
        rows.max_length, rows.shuffle_dataset = None, False
        prepared = super()._prepare_dataset(
            dataset, processing_class, rows, False, formatting_func, dataset_name
        )
        ids = self.routing.columns.ids
        column = self.routing.columns.names[0]

        def with_token_ids(row: dict[str, Any]) -> dict[str, Any]:
            return {ROUTING_IDS: ids([row[column]]) * len(row["input_ids"])}

        prepared = prepared.map(with_token_ids)
        prepared = prepared.select_columns(["input_ids", "labels", ROUTING_IDS])
        if args.shuffle_dataset:
            prepared = prepared.shuffle(seed=args.seed)
        assert isinstance(prepared, Dataset | IterableDataset)
        packed = pack_dataset(prepared, args.max_length, args.packing_strategy)  # pyright: ignore
        return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed
