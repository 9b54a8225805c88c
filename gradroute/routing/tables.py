"""The named routing tables, for a behavior or for several: label -> adapter -> name of a route."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from gradroute.errors import ConfigError

_BOTH = {"good": "update", "bad": "update"}
_BAD_ONLY = {"good": "freeze", "bad": "update"}
_GOOD_ONLY = {"good": "update", "bad": "freeze"}
_GOOD_ALONE = {"good": "update", "bad": "ablate"}

NAMED_POLICIES: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        # Absorption on the unlabeled rest, and the model that will be shipped is trained as it is.
        "anchored": {"bad": _BAD_ONLY, "unlabeled": _BOTH, "good": _GOOD_ALONE},
        # Absorption alone: what the labels missed may still land in `bad`.
        "absorb": {"bad": _BAD_ONLY, "unlabeled": _BOTH, "good": _BOTH},
        # `bad` learns from labeled bad examples only.
        "exclusive": {"bad": _BAD_ONLY, "unlabeled": _GOOD_ONLY, "good": _GOOD_ONLY},
        # Two models in one; no absorption.
        "separate": {"bad": _BAD_ONLY, "unlabeled": _GOOD_ALONE, "good": _GOOD_ALONE},
        # The control: ordinary fine-tuning of all adapters.
        "none": {"bad": _BOTH, "unlabeled": _BOTH, "good": _BOTH},
    }
)


def named_table(
    name: str, adapters: Sequence[str], labels: Sequence[str]
) -> Mapping[str, Mapping[str, str]]:
    """The table of this name for these adapters and labels of behaviors.

    Raises:
        ConfigError: There is none of this name, or the adapters are not `good` and one for every
            label.
    """
    if name not in NAMED_POLICIES:
        raise ConfigError(
            f"the routing table {name!r} does not exist{nearest(name, NAMED_POLICIES)}; name one "
            f"of {', '.join(NAMED_POLICIES)}, or write a table label: {{adapter: route}}."
        )
    table = NAMED_POLICIES[name]
    if name == "none":  # trains whatever adapters there are
        rows = (*labels, *(label for label in table if label != "bad"))
        return {label: dict.fromkeys(adapters, "update") for label in rows}
    if set(adapters) != {"good", *labels}:
        needed = " and ".join([", ".join(["good", *labels[:-1]]), labels[-1]])
        raise ConfigError(
            f"the routing table {name!r} needs the adapters {needed}, this model has "
            f"{', '.join(adapters) or 'none'}; rename them, or write a table of your own."
        )
    return _for_several(table, labels)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, as the end of a sentence; empty if there is none."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _for_several(
    table: Mapping[str, Mapping[str, str]], labels: Sequence[str]
) -> Mapping[str, Mapping[str, str]]:
    """A table of `good` and `bad` with an adapter for each behavior in the place of `bad`.

    An example of one behavior runs without the adapters of the others, so that no adapter learns
    to lean on another: where they ran along frozen, a model without one of them was damaged.
    """
    rows = {}
    for label in labels:
        row = table["bad"]
        rows[label] = {"good": row["good"]} | dict.fromkeys(labels, "ablate") | {label: row["bad"]}
    for label, row in table.items():
        if label != "bad":
            rows[label] = {"good": row["good"]} | dict.fromkeys(labels, row["bad"])
    return rows
