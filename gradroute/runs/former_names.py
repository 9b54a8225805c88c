"""Names and values that an earlier gradroute wrote, and those that replaced them.

Files are read through here, so that every other module knows the present names only.
"""

from collections.abc import Sequence
from typing import Any

FORMER_VALUES = {"nothing": "none"}
"""Value of a choice in a configuration -> the one that replaced it."""
FORMER_SECTIONS = {"ground": "identity"}
"""First part of an `--override` key -> the one that replaced it."""
# Of manifest.json and of what is computed from it.
_FORMER_LABELS = {"labelled_bad": "labeled_bad"}
_FORMER_COUNT, _COUNT = " labelled ", " labeled "


def current_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the present names in `labels` and `examples`; all else is as it was."""
    current = dict(manifest)
    if isinstance(labels := manifest.get("labels"), dict):
        current["labels"] = {_FORMER_LABELS.get(key, key): n for key, n in labels.items()}
    if isinstance(examples := manifest.get("examples"), dict):
        current["examples"] = {
            key.replace(_FORMER_COUNT, _COUNT): count for key, count in examples.items()
        }
    return current


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """The keys of `--override` under their present names, in order."""
    split = (key.partition(".") for key in overrides)
    return [f"{FORMER_SECTIONS.get(first, first)}{dot}{rest}" for first, dot, rest in split]
