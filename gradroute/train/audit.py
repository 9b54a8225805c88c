"""An audit: the route that each adapter's layers really ran, for every example of every step.

Three chains are compared, example by example, before the optimizer acts:

    id -> label in the prepared examples     against  the label that the batch carries
    id -> tokens of the tokenized example    against  the tokens, targets and labels by token there
    label -> route in the table              against  the gates that the layers were given, at
                                                      every position

The first difference ends the run. What was seen is kept as integers, one line per step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gradroute.data.batches import IGNORED, Batch, Place, TokenizedExample
from gradroute.errors import DataError
from gradroute.routing.policy import Route, RoutingPolicy
from gradroute.routing.scopes import RoutedScope
from gradroute.system.files import append_line, read_lines

CODES = ("ablate", "detach", "freeze", "update")
"""A route's code in `audit.jsonl` is its position here."""

_Gates = dict[str, Float[Tensor, "r t 3"]]
_Line = list[int | list[list[int]]]  # place, label id, codes; of labels by token a list of such


class Audit:
    """The trace of one run; it changes nothing that training computes.

    A line of the file is {"step": s, "rows": [[place, label id, code of each adapter, ...], ...]},
    with the adapters and label ids of the policy and the places of `rows`. An example whose tokens
    have labels of their own has one more list at the end of its row, for each of these labels
    [label id, number of positions, code of each adapter, ...].

    Args:
        path: Where the lines go.
        rows: The tokenized training examples, as the trainer has them.
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
        self._seen: list[_Line] = []
        if len(self._places) != len(rows):
            raise DataError(
                "the training examples cannot be audited: some have the same id. Give each its own."
            )
        strange = sorted(self._places.keys() - labels.keys())
        if strange:
            raise DataError(
                f"the training example {strange[0]!r} has no label, which the audit needs."
            )

    def begin(self) -> None:
        """A step begins, or begins again."""
        self._seen = []

    def check(self, batch: Batch, scope: RoutedScope) -> None:
        """Compare one micro-batch after its forward pass.

        Raises:
            DataError: A row has another label, other tokens or another route than it should.
        """
        routes = self._routes(scope, batch.input_ids.shape)
        label_ids = batch.label_ids.tolist()
        for at, (name, label_id) in enumerate(zip(batch.ids, label_ids, strict=True)):
            place = self._places.get(name)
            if place is None:
                raise DataError(f"audit: {name!r} is not an example of this run.")
            row = self._rows[place]
            self._check_label(name, self._labels[name], label_id)
            self._check_tokens(name, row, batch, at)
            runs = self._check_routes(row, batch.places[at], label_id, routes)
            # The last position has no target, so that the example's own label is among them.
            codes = next(codes for own, _, *codes in runs if own == label_id)
            line: _Line = [place, label_id, *codes]
            self._seen.append([*line, runs] if row.label_ids else line)
        self._check_nothing_else(batch)

    def write(self, step: int, places: Sequence[int]) -> None:
        """The step is done: keep its line.

        Args:
            step: Its number, from 1.
            places: The examples that make up the step, as the order of the data has them.

        Raises:
            DataError: Others were trained.
            MachineError: The disk refuses.
        """
        if sorted(place for place, *_ in self._seen if isinstance(place, int)) != sorted(places):
            raise DataError("audit: the trained examples are not the examples of this step.")
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

    def _routes(self, scope: RoutedScope, shape: torch.Size) -> _Gates:
        """Adapter -> the gates that every layer ran it with, at every position."""
        found: _Gates = {}
        for adapter, gates in scope.ran():
            by_row = gates.view(*shape, 3)
            if not torch.equal(by_row, found.setdefault(adapter, by_row)):
                raise DataError(
                    f"audit: the adapter '{adapter}' ran with several routes in one place."
                )
        missing = [name for name in self._policy.adapters if name not in found]
        if missing:
            raise DataError(f"audit: the adapter '{missing[0]}' ran in no layer.")
        return found

    def _check_routes(
        self, row: TokenizedExample, place: Place, label_id: int, routes: _Gates
    ) -> list[list[int]]:
        """For each label of the example's positions: its id, how many have it, a code by adapter.

        Raises:
            DataError: A position ran with other gates than its label's route.
        """
        labels = torch.tensor(row.label_ids or [label_id] * len(row.input_ids))
        runs = []
        for own in labels.unique().tolist():
            here = labels == own
            codes = []
            for adapter in self._policy.adapters:
                gates = routes[adapter][place.row, place.start : place.end][here]
                if not bool((gates == gates[0]).all()):
                    raise DataError(
                        f"audit: the adapter '{adapter}' ran with several routes in the row of "
                        f"example {row.id!r}."
                    )
                label = self._policy.labels[own]
                due = self._policy.table[label][adapter]
                codes.append(_route_code(row.id, label, adapter, gates[0], due))
            runs.append([own, int(here.sum()), *codes])
        return runs

    def _check_label(self, name: str, label: str, label_id: int) -> None:
        labels = self._policy.labels
        trained = labels[label_id] if 0 <= label_id < len(labels) else f"number {label_id}"
        if trained != label:
            raise DataError(
                f"audit: the example {name!r} is labeled {label} and was trained as {trained}."
            )

    def _check_nothing_else(self, batch: Batch) -> None:
        rows = [self._rows[self._places[name]] for name in batch.ids]
        tokens = sum(len(row.input_ids) for row in rows)
        targets = sum(row.target_count for row in rows)
        found = int(batch.attention_mask.sum()), int((batch.targets != IGNORED).sum())
        if found != (tokens, targets):
            raise DataError(
                f"audit: the batch has {found[0]} tokens and {found[1]} targets, its examples have "
                f"{tokens} and {targets}."
            )

    def _check_tokens(self, name: str, row: TokenizedExample, batch: Batch, at: int) -> None:
        """The example's own tokens, targets and labels are where the batch says it stands."""
        place = batch.places[at]
        here = slice(place.start, place.end)
        same = (
            bool(batch.attention_mask[place.row, here].all())
            and batch.input_ids[place.row, here].tolist() == [*row.input_ids]
            and batch.targets[place.row, here].tolist() == row.targets
        )
        if batch.factors is not None:
            factors = batch.factors[place.row, here].tolist()
            same = same and factors == [*(row.factors or [1.0] * len(row.input_ids))]
        if batch.position_ids is not None:
            positions = batch.position_ids[place.row, here].tolist()
            same = same and positions == [*range(len(row.input_ids))]
        if not same:
            raise DataError(f"audit: the row of example {name!r} holds other tokens than its own.")
        if batch.token_label_ids is None:
            found = [row.label_id] * len(row.input_ids)
        else:
            found = batch.token_label_ids[place.row, here].tolist()
        if found != [*(row.label_ids or [row.label_id] * len(row.input_ids))]:
            raise DataError(f"audit: tokens of example {name!r} have other labels than their own.")


def _route_code(name: str, label: str, adapter: str, gates: Float[Tensor, " 3"], due: Route) -> int:
    forward, update, passes = gates.tolist()
    # In float32: a device without float64 rounds the weight of an update.
    weight = torch.tensor([update, due.update], dtype=torch.float32)
    if (forward, passes) != (due.forward, due.passes) or weight[0] != weight[1]:
        raise DataError(
            f"audit: the example {name!r}, labeled {label}, ran adapter '{adapter}' with the "
            f"gates forward {forward:g}, update {update:g}, passes {passes:g}; the table says "
            f"{due.name}, which is {float(due.forward):g}, {due.update:g}, {float(due.passes):g}."
        )
    # A weight of 0 makes an update a freeze.
    seen = "ablate" if not forward else "update" if update else "freeze" if passes else "detach"
    return CODES.index(seen)
