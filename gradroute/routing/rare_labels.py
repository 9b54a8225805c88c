"""The weight of the labels that few examples have: a note where it is too low or too high.

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

HEAVY = 0.5
"""Share of all examples from which those of a label weigh too much. 34 flags of 6,000 examples of
`wrong_pronouns` with weight 128 weigh 0.73 of all, and 171 with weight 32 weigh 0.91."""


def label_weight_note(policy: RoutingPolicy, label: str, count: int, total: int) -> str | None:
    """A sentence about the weight of a label's examples; None where it is neither low nor high.

    Args:
        policy: The routing table; it has a row for the label.
        label: Of a behavior.
        count: Examples with it, at least one.
        total: All examples.
    """
    return rare_label_note(policy, label, count, total) or _heavy_note(policy, label, count, total)


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
    weights = _weights(policy, label)
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


def _heavy_note(policy: RoutingPolicy, label: str, count: int, total: int) -> str | None:
    highest = max(_weights(policy, label), default=1.0)
    if highest <= 1 or highest * count < HEAVY * total:
        return None
    share = f"{100 * highest * count / total:.0f} %"
    return (
        f"{count} of {total} training examples are labeled {label} and have the weight "
        f"{highest:g} in the table, so they weigh {share} of all: what {label} is routed to then "
        f"learns ordinary text too. {100 * WEIGHED:.0f} % is enough, a weight of "
        f"{weight_for(count, total)}."
    )


def _weights(policy: RoutingPolicy, label: str) -> list[float]:
    return [route.weight for route in policy.table[label].values() if route.name == "update"]
