"""The order of the data: the examples of each step."""

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, eq=False)
class DataOrder:
    """Which examples make up a step: a function of its fields alone, so nothing is to be saved.

    The data are endless: epoch after epoch, each a permutation of all examples by (seed, epoch).
    Step s takes the places s * batch_size up to (s + 1) * batch_size, so that every example
    comes exactly once an epoch and a batch may hold the end of one epoch and the start of the next.

    Attributes:
        seed: Seed of the run.
        total: Number of examples before any was left out.
        places: Place of each example among those; examples that are left out leave the order of the
            others as it is, so that a run and its controls see the same order.
        first_rows: Rows (indices into `places`) that come early in the first epoch.
        front_load: How early, from 0 (no earlier than others) to 1 (before all others); in between
            they are spread evenly over the first 1 - front_load of the epoch.
        window: Steps among which examples trade places so that those of like lengths share one, for
            less padding; 0 leaves them where they were drawn. In each run of so many steps of an
            epoch the examples are sorted by length and cut into steps, which come in an order of
            their own by (seed, epoch). A step that holds the end of one epoch and the start of the
            next stays as drawn. Then the order follows from `batch_size` and `lengths` too, and
            where examples are left out, the others move within such windows.
        lengths: Tokens of each row; needed for a window.
    """

    seed: int
    total: int
    places: tuple[int, ...]
    first_rows: frozenset[int] = frozenset()
    front_load: float = 0.0
    window: int = 0
    lengths: tuple[int, ...] = ()

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Rows of one step.

        Args:
            step: Step, from 0.
            batch_size: Examples per step.

        Raises:
            ValueError: If step is negative, batch_size is below 1, or there are no rows.
        """
        size = len(self.places)
        if step < 0 or batch_size < 1 or size < 1:
            raise ValueError(
                f"step must be at least 0, batch_size and the number of rows at least 1, got step "
                f"{step}, batch_size {batch_size}, {size} rows"
            )
        places = range(step * batch_size, (step + 1) * batch_size)
        if self.window:
            return [_by_length(self, at // size, batch_size)[at % size] for at in places]
        return [_epoch(self, at // size)[at % size] for at in places]

    def visited(self, steps: int, batch_size: int) -> list[int]:
        """The rows that so many steps take, each once, in the order of the rows."""
        found: set[int] = set()
        for step in range(steps):
            found.update(self.batch(step, batch_size))
            if len(found) == len(self.places):
                break
        return sorted(found)


@lru_cache(maxsize=4)
def _by_length(order: DataOrder, epoch: int, batch_size: int) -> tuple[int, ...]:
    rows = _epoch(order, epoch)
    head = min(len(rows), -epoch * len(rows) % batch_size)  # what the step before still takes
    tail = head + (len(rows) - head) // batch_size * batch_size
    draws = _draws(f"{order.seed}:{epoch}:steps")
    found = [*rows[:head]]
    for start in range(head, tail, order.window * batch_size):
        end = min(start + order.window * batch_size, tail)
        part = sorted(rows[start:end], key=lambda row: order.lengths[row])
        steps = [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        keys = [draws.random() for _ in steps]
        for at in sorted(range(len(steps)), key=keys.__getitem__):
            found += steps[at]
    return (*found, *rows[tail:])


@lru_cache(maxsize=4)
def _epoch(order: DataOrder, epoch: int) -> tuple[int, ...]:
    keys = _order_keys(order.seed, epoch, order.total)
    if not (order.front_load and epoch == 0):
        return tuple(sorted(range(len(order.places)), key=lambda row: keys[order.places[row]]))
    pull = 1 - order.front_load

    def key(row: int) -> tuple[float, float]:
        place = keys[order.places[row]]
        return (place * pull if row in order.first_rows else place, place)

    return tuple(sorted(range(len(order.places)), key=key))


@lru_cache(maxsize=4)
def _order_keys(seed: int, epoch: int, size: int) -> tuple[float, ...]:
    draws = _draws(f"{seed}:{epoch}:order")
    return tuple(draws.random() for _ in range(size))


def _draws(of: str) -> random.Random:
    # Python promises the stream of Random.random() for good, but not that of Random.shuffle().
    return random.Random(int.from_bytes(hashlib.sha256(of.encode()).digest()))
