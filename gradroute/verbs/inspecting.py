"""`data inspect`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradroute.verbs.arguments import Verbs


def add(verbs: "Verbs") -> None:
    """Add the verb that shows rows as training sees them."""
