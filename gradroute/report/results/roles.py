"""The role of a run in a comparison, and its controls, read from configurations."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.results import HELD_OUT_BAD, PREFIX

Config = Mapping[str, Any]

# Runs that differ in one of these did not do the same task, or were not asked the same.
SAME_TASK = (
    "model",
    "behavior",
    "data.path",
    "data.eval_path",
    "data.max_length",
    "data.template",
    "evaluate.prompts",
    "evaluate.prefix_words",
    "evaluate.max_new_tokens",
    "evaluate.temperature",
    "evaluate.top_p",
    "evaluate.seed",
    "evaluate.score_thoughts",
    "evaluate.held_out",
)

# What a control may differ in: that is what makes it one.
TREATMENT = (
    "routing",
    "adapters",
    "evaluate",
    "data.behavior_fraction",
    "data.labeled_fraction",
    "data.good_labeled_fraction",
    "data.false_positive_rate",
    "data.label_seed",
    "data.drop",
    "data.relabel",
    "control",
)


# What changes no trained weight and no measured number.
NO_MATTER = (
    "run_name",
    "controls",
    "control_of",
    "train.save_every",
    "train.log_gradients_every",
    "train.measure_every",
    "train.measure_prompts",
    "train.report_to",
    "evaluate.modes",
    "evaluate.batch_rows",
)


class Controls(NamedTuple):
    """Names of the runs that a run is compared with; None where there is none."""

    baseline: str | None = None
    unrouted: str | None = None
    filter: str | None = None
    oracle: str | None = None
    random_labels: str | None = None
    anchors_only: str | None = None


def adapter_names(config: Config) -> list[str]:
    """The adapters that a configuration trains."""
    return [name for name, adapter in config["adapters"].items() if adapter is not None]


def behavior_labels(config: Config) -> tuple[str, ...]:
    """The labels of a configuration's behaviours; a single one has the label `bad`."""
    behavior = config["behavior"]
    return tuple(behavior) if isinstance(behavior, Mapping) else ("bad",)


def judged_kind(config: Config, label: str, origin: Mapping[str, Any]) -> str:
    """The kind of prompts whose behavior rate is judged.

    Args:
        config: Of the run.
        label: Of the behavior; `all` where it is the only one.
        origin: What the results say of their measurement. Those of an older gradroute say nothing
            of a user's own behavior: it is then taken for one without an invitation.
    """
    behavior = config["behavior"]
    name = str(behavior[label] if isinstance(behavior, Mapping) else behavior)
    known = (origin.get("judged_on") or {}).get(label)
    return known or (HELD_OUT_BAD if name.partition(":")[2] else PREFIX)


def role_of(config: Config) -> str:
    """What a run is, from what it was trained on; names mean nothing.

    Returns:
        `baseline` (no example shows the behaviour), `oracle` (all bad examples are dropped),
        `filter` (those labelled bad are), `random_labels` (labels lie on random examples),
        `anchors_only` (no example is labelled bad), `routed` (two adapters or more, and labels
        decide), `unrouted` (two adapters or more, labels decide nothing) or `other`.
    """
    adapters, data = adapter_names(config), config["data"]
    several = len(adapters) > 1
    labels = behavior_labels(config)
    if RoutingPolicy.from_value(config["routing"], adapters, labels).routes_anything:
        role = {"random": "random_labels", "unlabel_bad": "anchors_only"}.get(data["relabel"])
        return (role or "routed") if several else "other"
    if data["behavior_fraction"] == 0:
        return "baseline"
    dropped = {"labeled_bad": "filter", "true_bad": "oracle"}.get(data["drop"])
    return dropped or ("unrouted" if several else "other")


class Facts(NamedTuple):
    """What controls are found by: a run's role and every single value of its configuration."""

    role: str
    leaves: Mapping[str, Any]


def facts_of(config: Config) -> Facts:
    """The facts of a configuration; they take a moment, so they are worth keeping."""
    return Facts(role_of(config), dict(leaves(config)))


def find_controls(run: str, facts: Mapping[str, Facts]) -> Controls:
    """The runs to compare a run with.

    A control did the same task and was asked the same (`SAME_TASK`). Except for a baseline it
    must also have seen as much of the behaviour; a filter and random labels as many labels `bad`,
    anchors as many labels `good`. Of several, one of the same seed is taken, then one that was
    made for this run, then the one whose configuration differs in the fewest fields.

    Args:
        run: Its name.
        facts: Of this run and all others, by name.
    """
    own = facts[run].leaves

    def nearest(role: str, *same: str) -> str | None:
        found = []
        for name, (other, leaves) in facts.items():
            if name == run or other != role:
                continue
            if all(leaves.get(key) == own.get(key) for key in (*SAME_TASK, *same)):
                seed = leaves.get("seed") != own.get("seed")
                stranger = leaves.get("control_of") != own.get("run_name")
                differences = sum(leaves.get(key) != own.get(key) for key in {*own, *leaves})
                found.append((seed, stranger, differences, name))
        return min(found)[3] if found else None

    seen = "data.behavior_fraction"
    labels = (seen, "data.labeled_fraction", "data.false_positive_rate")
    return Controls(
        baseline=nearest("baseline"),
        unrouted=nearest("unrouted", seen),
        filter=nearest("filter", *labels),
        oracle=nearest("oracle", seen),
        random_labels=nearest("random_labels", *labels),
        anchors_only=nearest("anchors_only", seen, "data.good_labeled_fraction"),
    )


def confounders(first: Config, second: Config) -> list[str]:
    """Fields in which two runs differ although a run and its control should not."""
    one, two = facts_of(first).leaves, facts_of(second).leaves
    return [
        key
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in (*TREATMENT, *NO_MATTER))
    ]


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting of a configuration, in its order."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
