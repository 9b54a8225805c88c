"""A row of a file of examples, after reading."""

from typing import NamedTuple

from gradroute.data.examples import Span


class Place(NamedTuple):
    """Where a row stands."""

    file: str
    line: int


class Row(NamedTuple):
    """One row as it stands in the file; None is what the row leaves open.

    Attributes:
        hashed: The id of a row without one, from what it says: of a conversation its messages, for
            its text depends on the model.
        group: What it shares with rows that stay on one side of the held-out split.
        facts: What is counted of it, see `spoken.chat_notes`.
    """

    place: Place
    id: str | None
    text: str
    prompt: str
    label: str | None
    true_label: str | None
    hashed: str
    weight: float = 1.0
    spans: tuple[Span, ...] = ()
    context: tuple[tuple[int, int], ...] = ()
    ends: bool = False
    asks: tuple[int, int] | None = None
    lead: str | None = None
    factors: tuple[tuple[int, int, float], ...] = ()
    group: str = ""
    facts: tuple[str, ...] = ()

    @property
    def is_one_of_several(self) -> bool:
        """Whether it is one answer of a conversation that became a row for each of its answers."""
        return "#" in self.hashed


class BadRow(NamedTuple):
    """A row that cannot be used: where it stands and why."""

    file: str
    line: int
    reason: str
