"""The role of a run in a comparison, and its controls, read from configurations."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gradroute.config.controls import BY_ROLE, CONTROLS, RUN_ROLES
from gradroute.config.roles import Role
from gradroute.config.run_config import ROLES, RunConfig, field_of
from gradroute.config.sections import AdapterConfig
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.results import HELD_OUT_BAD, PREFIX

Config = Mapping[str, Any]

_DEFAULTS = RunConfig().model_dump()
_ADAPTER = AdapterConfig().model_dump()

# A run that differs in a field of these roles did not do the same task, or was not asked the same.
_SAME_IN_A_CONTROL = (Role.TASK, Role.MEASURING)
# What a control may differ in without a word, and what it should not.
_CONFOUNDING = (Role.TASK, Role.TRAINING)
# What decides neither a trained weight nor a measured number.
_NO_MATTER = (Role.RESOURCE, Role.RECORD, Role.NAME)


def adapter_names(config: Config) -> list[str]:
    """The adapters that a configuration trains."""
    return [name for name, adapter in config["adapters"].items() if adapter is not None]


def behavior_labels(config: Config) -> tuple[str, ...]:
    """The labels of a configuration's behaviors; a single one has the label `bad`."""
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
        That of a control, as `config.controls` has it, where the table routes or not and what is
        changed in the data are those of its row; `routed` (two adapters or more, and labels
        decide), `unrouted` (two adapters or more, labels decide nothing) or `other`.
    """
    adapters, data = adapter_names(config), config["data"]
    several = len(adapters) > 1
    labels = behavior_labels(config)
    routes = RoutingPolicy.parse(config["routing"], adapters, labels).routes_anything
    train = config.get("train", {})
    pulled = bool(train.get("kl_good")), bool(train.get("teacher"))
    for control in CONTROLS:
        changed = all(data.get(key) == value for key, value in control.data.items())
        # How strongly is up to the run: another factor is the same kind of control.
        if control.routing is not None:
            changed = changed and pulled == (bool(control.train.get("kl_good")), control.taught)
        # Which classifier found rows, or how an adapter was made, stands in no other key.
        if control.finder or control.start or data.get("found"):
            changed = changed and config.get("control") == control.name
        own = bool(control.data or control.start)
        if own and changed and routes == (control.routing is None) and (several or not routes):
            return control.role
    if routes:
        return "routed" if several else "other"
    return "unrouted" if several else "other"


class Facts(NamedTuple):
    """What controls are found by: a run's role and every single value of its configuration."""

    role: str
    leaves: Mapping[str, Any]


def facts_of(config: Config) -> Facts:
    """The facts of a configuration; they take a moment, so they are worth keeping.

    A key that an older gradroute did not write yet has its default.
    """
    config = _complete(config)
    return Facts(role_of(config), dict(flat_settings(config)))


def find_controls(run: str, facts: Mapping[str, Facts]) -> dict[str, str]:
    """The runs to compare a run with: role -> name, in the order of `config.controls`.

    A control did the same task and was asked the same: it differs in no field of the roles `task`
    and `measuring` (see `config.roles`), and was shown as much of the behavior and of the labels
    as its row of `config.controls` asks for.
    Of several, one of the same seed is taken, then one that was made for this run, then the one
    whose configuration differs in the fewest fields.

    Args:
        run: Its name.
        facts: Of this run and all others, by name.
    """
    found = {role: _nearest(run, role, facts) for role in RUN_ROLES}
    return {role: near[0] for role, near in found.items() if near and not near[1]}


class NotComparable(NamedTuple):
    """A run that would be a control of another one if it had done the same task.

    Attributes:
        name: Of the run.
        role: The control that it would be.
        fields: In which it differs although a control must not.
    """

    name: str
    role: str
    fields: tuple[str, ...]


def not_comparable(run: str, facts: Mapping[str, Facts]) -> list[NotComparable]:
    """By role the run that comes nearest, where a run has no control of that role and its seed."""
    own = facts[run].leaves
    missing = []
    for role in RUN_ROLES:
        control = _nearest(run, role, facts)
        if control and not control[1] and _differs("seed", own, facts[control[0]].leaves):
            others = {
                name: one for name, one in facts.items() if not _differs("seed", own, one.leaves)
            }
            control = _nearest(run, role, others)
        if control and control[1]:
            missing.append(NotComparable(control[0], role, control[1]))
    return missing


def _nearest(run: str, role: str, facts: Mapping[str, Facts]) -> tuple[str, tuple[str, ...]] | None:
    """The run of a role that is most like a run, and the fields that keep it from being a control.

    One that is a control goes before all that are not.
    """
    own, alike = facts[run].leaves, BY_ROLE[role].shown_alike
    found = []
    for name, (other, leaves) in facts.items():
        if name == run or other != role or any(_differs(key, own, leaves) for key in alike):
            continue
        differing = [key for key in dict.fromkeys([*own, *leaves]) if _differs(key, own, leaves)]
        barred = tuple(key for key in differing if config_role(key) in _SAME_IN_A_CONTROL)
        stranger = leaves.get("control_of") != own.get("run_name")
        seed = _differs("seed", own, leaves)
        found.append((bool(barred), seed, stranger, len(differing), name, barred))
    return min(found)[4:] if found else None


def _differs(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.get(key) != other.get(key)


def confounders(first: Config, second: Config) -> list[str]:
    """Fields in which two runs differ although a run and its control should not."""
    one, two = facts_of(first).leaves, facts_of(second).leaves
    return [
        key
        for key in dict.fromkeys([*one, *two])
        if _differs(key, one, two) and config_role(key) in _CONFOUNDING
    ]


def config_role(key: str) -> Role:
    """The role of a setting; one that is not known here may have decided how a run was trained."""
    return ROLES.get(field_of(key), Role.TRAINING)


def decides(key: str) -> bool:
    """Whether a setting decides a trained weight or a measured number."""
    return config_role(key) not in _NO_MATTER


def _complete(config: Config) -> dict[str, Any]:
    """The configuration with every key, those that are missing with their defaults."""
    full = _DEFAULTS | dict(config)
    for section, value in _DEFAULTS.items():
        if section != "adapters" and isinstance(value, dict):
            full[section] = value | dict(full[section])
    full["adapters"] = {
        name: adapter if adapter is None else _ADAPTER | dict(adapter)
        for name, adapter in full["adapters"].items()
    }
    return full


def flat_settings(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting of a configuration, in its order."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat_settings(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
