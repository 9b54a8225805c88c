"""Labels on their way from a data set's column to the routed forward pass.

A data set has a column of labels. Trainers drop columns that the model's forward does not take, and
collators return what they know. So the trainer keeps the column
(`_set_signature_columns_if_needed`), and a collator around its own adds the ids of the labels to
the batch under `ROUTING_IDS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor

from gradroute.errors import DataError
from gradroute.routing.policy import RoutingPolicy

ROUTING_IDS = "routing_ids"
"""Key of a batch under which the label ids are, [b] by row or [b t] by position; also the column of
a packed data set that holds an id for each token."""
UNLABELED = "unlabeled"
"""What a row without a label counts as."""


@dataclass(frozen=True)
class LabelColumns:
    """Where a batch's labels are.

    Attributes:
        policy: The routing table.
        names: Columns; a batch has the rows of the first, then those of the second, and so on.
    """

    policy: RoutingPolicy
    names: tuple[str, ...]

    def ids(self, labels: Sequence[str | None]) -> list[int]:
        """Ids of labels; None is `unlabeled`.

        Raises:
            ConfigError: A label has no row in the table.
        """
        return self.policy.label_ids(UNLABELED if own is None else own for own in labels)

    def check(self, dataset: object, which: str) -> None:
        """See that a data set has the columns, and the table a row for each of their labels.

        Rows of an iterable data set are looked at when they come.

        Raises:
            DataError: A column is missing, or holds something other than text.
            ConfigError: A label has no row in the table.
        """
        if not isinstance(dataset, Dataset):
            return
        if ROUTING_IDS in dataset.column_names:
            return
        for name in self.names:
            if name not in dataset.column_names:
                others = ", ".join(dataset.column_names)
                raise DataError(
                    f"the {which} data set has no column {name!r} for the labels (its columns are "
                    f"{others}). Add one with a label for each row, such as "
                    f"{' or '.join(self.policy.labels)}, or name yours with label_column=."
                )
            values = dataset.unique(name)
            if wrong := [value for value in values if not isinstance(value, str | None)]:
                raise DataError(
                    f"the column {name!r} of the {which} data set holds {wrong[0]!r}; labels are "
                    f"text: {', '.join(self.policy.labels)}."
                )
            self.ids(values)


@dataclass(frozen=True)
class LabelCollator:
    """A collator that adds the label ids of its rows to the batch of another one.

    Attributes:
        inner: The trainer's own collator.
        columns: Where the labels are.
        flattened: `inner` puts all rows of a batch one behind the other (padding-free).
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: LabelColumns
    flattened: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Raises:
            DataError: A row has no label column.
        """
        taken = {*self.columns.names, ROUTING_IDS}
        batch = self.inner([{k: v for k, v in row.items() if k not in taken} for row in rows])
        if ROUTING_IDS in rows[0] or self.flattened:
            tokens = [self._token_ids(row) for row in rows]
            width = batch["input_ids"].shape[1]
            if self.flattened:
                tokens = [[own for row in tokens for own in row]]
            batch[ROUTING_IDS] = torch.stack([by_target(own, width) for own in tokens])
        else:
            batch[ROUTING_IDS] = torch.tensor(self._row_ids(rows))
        return batch

    def _row_ids(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        labels: list[str | None] = []
        for name in self.columns.names:
            if missing := [row for row in rows if name not in row]:
                raise DataError(
                    f"a row has no column {name!r} for its label; it has {', '.join(missing[0])}."
                )
            labels += [row[name] for row in rows]
        return self.columns.ids(labels)

    def _token_ids(self, row: Mapping[str, Any]) -> Sequence[int]:
        if ROUTING_IDS in row:
            return row[ROUTING_IDS]
        return self._row_ids([row]) * len(row["input_ids"])


def by_target(token_ids: Sequence[int], width: int) -> Int[Tensor, " t"]:
    """Ids of tokens -> ids of positions: a position has the id of the token that it predicts.

    The last token's id goes on to the end of the row, where padding has no target.
    """
    following = [*token_ids[1:], *token_ids[-1:]]
    return torch.tensor(following + following[-1:] * (width - len(following)))
