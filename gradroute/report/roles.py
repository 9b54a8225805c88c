"""What a run is in a comparison, and which runs it is compared with, read from configurations."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gradroute.routing.policy import RoutingPolicy

Config = Mapping[str, Any]

# Runs that differ in one of these did not do the same task, or were not asked the same.
SAME_TASK = (
    "model",
    "behavior",
    "data.path",
    "data.eval_path",
    "data.max_length",
    "evaluate.prompts",
    "evaluate.prefix_words",
    "evaluate.max_new_tokens",
    "evaluate.temperature",
    "evaluate.top_p",
    "evaluate.seed",
    "evaluate.held_out",
)

# What a control may differ in: that is what makes it one.
TREATMENT = (
    "run_name",
    "routing",
    "adapters",
    "evaluate",
    "data.behavior_fraction",
    "data.labeled_fraction",
    "data.good_labeled_fraction",
    "data.false_positive_rate",
    "data.drop",
)


class Controls(NamedTuple):
    """Names of the runs that a run is compared with; None where there is none."""

    baseline: str | None
    unrouted: str | None
    filter: str | None


def adapter_names(config: Config) -> list[str]:
    """The adapters that a configuration trains."""
    return [name for name, adapter in config["adapters"].items() if adapter is not None]


def role_of(config: Config) -> str:
    """What a run is.

    Returns:
        `routed` (two adapters or more, and labels decide), `baseline` (no example shows the
        behaviour), `filter` (labelled bad examples are dropped), `unrouted` (two adapters or more,
        labels decide nothing) or `other`.
    """
    adapters = adapter_names(config)
    if RoutingPolicy.from_value(config["routing"], adapters).routes_anything:
        return "routed" if len(adapters) > 1 else "other"
    if config["data"]["behavior_fraction"] == 0:
        return "baseline"
    if config["data"]["drop"] == "labeled_bad":
        return "filter"
    return "unrouted" if len(adapters) > 1 else "other"


def find_controls(run: str, configs: Mapping[str, Config]) -> Controls:
    """The runs to compare a run with.

    A control did the same task and was asked the same (`SAME_TASK`); an unrouted run and a filter
    must also have seen as much of the behaviour, a filter as many labels. Of several, one of the
    same seed is taken, then the one whose configuration differs in the fewest fields.
    """
    own = _leaves(configs[run])

    def nearest(role: str, same: tuple[str, ...]) -> str | None:
        found = []
        for name, config in configs.items():
            leaves = _leaves(config)
            if name == run or role_of(config) != role:
                continue
            if all(leaves.get(key) == own.get(key) for key in (*SAME_TASK, *same)):
                differences = sum(leaves.get(key) != own.get(key) for key in own | leaves)
                found.append((leaves.get("seed") != own.get("seed"), differences, name))
        return min(found)[2] if found else None

    fraction, labels = "data.behavior_fraction", "data.labeled_fraction"
    return Controls(
        baseline=nearest("baseline", ()),
        unrouted=nearest("unrouted", (fraction,)),
        filter=nearest("filter", (fraction, labels)),
    )


def confounders(first: Config, second: Config) -> list[str]:
    """Fields in which two runs differ although a run and its control should not."""
    one, two = _leaves(first), _leaves(second)
    return [
        key
        for key in one | two
        if one.get(key) != two.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in TREATMENT)
    ]


def _leaves(config: Config) -> dict[str, Any]:
    return dict(_walk(config, ""))


def _walk(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _walk(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
