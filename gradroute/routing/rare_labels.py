"""Labels that few examples have: a note, and the weight that makes up for it.

An adapter learns a behavior from the examples labeled with it before it can absorb it from others.
Where a step seldom has such an example, a weight on its route takes the place of more of them.
AdamW cancels a weight on all that an adapter learns from, but not one on a few examples.
"""

from gradroute.routing.policy import RoutingPolicy

RARE = 0.03
"""Share of the examples below which a label is rare."""
WEIGHED = 0.18
"""Share of all examples that those of a rare label should weigh. Chosen on seeds 100 to 102 of
`wrong_pronouns` (34 of 6,000 examples; weights 1, 8, 32 and 128), tried on `caps` (60 and 12)."""


def weight_for(count: int, total: int) -> int:
    """The weight with which `count` of `total` examples weigh `WEIGHED` of all, at least 1."""
    return max(1, round(WEIGHED * total / count))


def rare_label_note(policy: RoutingPolicy, label: str, count: int, total: int) -> str | None:
    """A sentence about a label that few examples have; None where enough have it, or weigh enough.

    Args:
        policy: The routing table; it has a row for the label.
        label: Of a behavior.
        count: Examples with it.
        total: All examples.
    """
    weights = [route.weight for route in policy.table[label].values() if route.name == "update"]
    if count >= RARE * total or max(weights, default=1.0) * count >= WEIGHED / 2 * total:
        return None
    note = (
        f"only {count} of {total} training examples ({100 * count / total:.2g} %) are labeled "
        f"{label}: most steps see none of them."
    )
    if not weights:
        return note
    weight = weight_for(count, total)
    return f"{note} Give them a weight in the table, {label}: {{{label}: {{update: {weight}}}}}."
