"""What ships a run, and what then still holds its bad adapter: `export` and its kin."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradroute.verbs.arguments import Verbs


def add(verbs: "Verbs") -> None:
    """Add the verbs that ship a run."""
