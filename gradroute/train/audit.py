"""An audit: for every example of every step, which route each adapter's layers really ran.

Three chains are compared, row by row, before the optimizer acts:

    id -> label in the prepared examples     against  the label that the batch carries
    id -> tokens of the tokenised example    against  the tokens and targets in the batch
    label -> route in the table              against  the gates that the layers were given

The first difference ends the run. What was seen is kept as integers, one line per step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradroute.data.batches import IGNORED, Batch, TokenizedExample
from gradroute.errors import DataError
from gradroute.files import append_line, read_lines
from gradroute.routing.policy import Route, RoutingPolicy
from gradroute.routing.scopes import RoutedScope

CODES = ("ablate", "detach", "freeze", "update")
"""A route's code in `audit.jsonl` is its position here."""


class Audit:
    """The trace of one run; it changes nothing that training computes.

    A line of the file is {"step": s, "rows": [[place, label id, code of each adapter, ...], ...]},
    with the adapters and label ids of the policy and the places of `rows`.

    Args:
        path: Where the lines go.
        rows: The tokenised training examples, as the trainer has them.
        labels: Id -> label name, from the prepared examples themselves.
        policy: The routing table.

    Raises:
        DataError: Two examples have the same id, or one has no label.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[TokenizedExample],
        labels: Mapping[str, str],
        policy: RoutingPolicy,
    ):
        self.path = path
        self._rows = rows
        self._labels = labels
        self._policy = policy
        self._places = {row.id: place for place, row in enumerate(rows)}
        self._seen: list[list[int]] = []
        if len(self._places) != len(rows):
            raise DataError(
                "the training examples cannot be audited: some have the same id. Give each its own."
            )
        strange = sorted(self._places.keys() - labels.keys())
        if strange:
            raise DataError(f"the training example {strange[0]!r} has no label to audit it by.")

    def begin(self) -> None:
        """A step begins, or begins again."""
        self._seen = []

    def check(self, batch: Batch, scope: RoutedScope) -> None:
        """Compare one micro-batch after its forward pass.

        Raises:
            DataError: A row has another label, other tokens or another route than it should.
        """
        routes = self._routes(scope, len(batch.ids))
        label_ids = batch.label_ids.tolist()
        for at, (name, label_id) in enumerate(zip(batch.ids, label_ids, strict=True)):
            place = self._places.get(name)
            if place is None:
                raise DataError(f"audit: {name!r} is not an example of this run.")
            label = self._labels[name]
            self._check_label(name, label, label_id)
            self._check_tokens(name, self._rows[place], batch, at)
            codes = []
            for adapter in self._policy.adapters:
                due = self._policy.table[label][adapter]
                codes.append(_checked_code(name, label, adapter, routes[adapter][at], due))
            self._seen.append([place, label_id, *codes])

    def write(self, step: int, places: Sequence[int]) -> None:
        """The step is done: keep its line.

        Args:
            step: Its number, from 1.
            places: The examples that make up the step, as the order of the data has them.

        Raises:
            DataError: Others were trained.
            MachineError: The disk refuses.
        """
        if sorted(row[0] for row in self._seen) != sorted(places):
            raise DataError("audit: the examples that were trained are not those of this step.")
        append_line(self.path, {"step": step, "rows": self._seen})

    def summary(self, steps: int) -> str:
        """A sentence over the whole file.

        Args:
            steps: That the run has done.
        """
        counts = [len(line["rows"]) for line in read_lines(self.path)]
        of = "" if len(counts) == steps else f" of {steps:,}"
        return (
            f"audit: {sum(counts):,} rows in {len(counts):,}{of} steps, every route as the table "
            "says."
        )

    def _routes(self, scope: RoutedScope, rows: int) -> dict[str, Float[Tensor, "b 3"]]:
        """Adapter -> per row the gates that every layer ran it with."""
        found: dict[str, Tensor] = {}
        for adapter, gates in scope.ran():
            by_row = gates.view(rows, -1, 3)
            one = found.setdefault(adapter, by_row[:, 0])
            if not bool((by_row == one[:, None]).all()):
                raise DataError(f"audit: the adapter '{adapter}' ran with several routes in a row.")
        missing = [name for name in self._policy.adapters if name not in found]
        if missing:
            raise DataError(f"audit: the adapter '{missing[0]}' ran in no layer.")
        return found

    def _check_label(self, name: str, label: str, label_id: int) -> None:
        labels = self._policy.labels
        trained = labels[label_id] if 0 <= label_id < len(labels) else f"number {label_id}"
        if trained != label:
            raise DataError(
                f"audit: the example {name!r} is labelled {label} and was trained as {trained}."
            )

    def _check_tokens(self, name: str, row: TokenizedExample, batch: Batch, at: int) -> None:
        length = len(row.input_ids)
        tokens = torch.tensor(row.input_ids)
        targets = torch.full((batch.targets.shape[1],), IGNORED)
        targets[row.target_start : length - 1] = tokens[row.target_start + 1 :]
        mask: Int[Tensor, " t"] = batch.attention_mask[at].cpu()
        same = (
            int(mask.sum()) == length
            and torch.equal(batch.input_ids[at].cpu()[mask == 1], tokens)
            and torch.equal(batch.targets[at].cpu(), targets)
        )
        if not same:
            raise DataError(f"audit: the row of example {name!r} holds other tokens than its own.")


def _checked_code(
    name: str, label: str, adapter: str, gates: Float[Tensor, " 3"], due: Route
) -> int:
    forward, update, passes = gates.tolist()
    # In float32: a device without float64 rounds the weight of an update.
    weight = torch.tensor([update, due.update], dtype=torch.float32)
    if (forward, passes) != (due.forward, due.passes) or weight[0] != weight[1]:
        raise DataError(
            f"audit: the example {name!r}, labelled {label}, ran adapter '{adapter}' with the "
            f"gates forward {forward:g}, update {update:g}, passes {passes:g}; the table says "
            f"{due.name}, which is {float(due.forward):g}, {due.update:g}, {float(due.passes):g}."
        )
    # A weight of 0 makes an update a freeze.
    seen = "ablate" if not forward else "update" if update else "freeze" if passes else "detach"
    return CODES.index(seen)
