"""The checks of a proof, each with its finding and its bound."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the check, as `proof.json` has it.
        passed: Whether it holds.
        text: What was found beside what is needed, in words.
        numbers: The same as plain values.
    """

    name: str
    passed: bool
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """The check as plain values."""
        return {"name": self.name, "passed": self.passed, "text": self.text, **self.numbers}
