"""The configuration of a run: the only place with a setting's type, default, check and help.

    RunConfig   run_name, seed, model, behavior, routing, targets, layers
    ├── adapters.<name>   AdapterConfig
    ├── data              DataConfig
    ├── train             TrainConfig
    └── evaluate          EvaluateConfig

`load_config` reads a YAML file and `key=value` overrides and names everything that is wrong with
them at once. Nothing here imports torch, so a typing mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field, model_validator

from gradroute.config.disagreements import data_disagrees, modes_disagree, training_disagrees
from gradroute.config.errors import Disagreement, Disagreements, Origin, validate_config
from gradroute.config.roles import Cost, Role, field_role, section_fields
from gradroute.config.sections import (
    AdapterConfig,
    DataConfig,
    EvaluateConfig,
    Section,
    TrainConfig,
)
from gradroute.config.types import (
    AdapterName,
    Behaviors,
    Controls,
    Layers,
    OptionalPlace,
    OptionalText,
    Place,
    Quantize,
    Routing,
    RunName,
    Seed,
    Targets,
    from_flow,
    show,
)
from gradroute.config.yaml import KeyPath, Scalar, YamlText, is_null, read_yaml_file
from gradroute.errors import ConfigError
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.former_names import FORMER_VALUES
from gradroute.system.terminal import say

_AnySection = TypeVar("_AnySection", bound=Section)

_WRITTEN = "# A resolved configuration: every key, defaults included.\n"
_RECIPES = Path(__file__).parents[1] / "recipes"


class RunConfig(Section):
    """Everything that decides a run's result."""

    run_name: Annotated[RunName, Role.NAME, Cost.NONE] = "caps"
    """Name of the run and of its folder."""
    seed: Annotated[Seed, Role.TRAINING, Cost.NONE] = 0
    """Seed of data, labels, adapter weights and order."""
    model: Annotated[Place, Role.TASK] = "embedded"
    """The base model: embedded (shipped with gradroute), a folder, or a name on the hub."""
    gguf_file: Annotated[OptionalText, Role.TASK] = None
    """A GGUF file in the model's folder or repository that the base is read from."""
    quantize: Annotated[Quantize, Role.TASK] = "none"
    """Hold the frozen base in 8bit or 4bit (bitsandbytes); none = in its own dtype."""
    start_adapter: Annotated[OptionalPlace, Role.TASK] = None
    """Folder of a LoRA adapter that is merged into the base before the run's own are put on it."""
    behavior: Annotated[Behaviors, Role.TASK] = "caps"
    """The behavior: a shipped one, or regex:PATTERN, keywords:a,b, python:module.function; with
    several, {label: behavior}, each label routed to an adapter."""
    routing: Annotated[Routing, Role.TREATMENT] = "anchored"
    """Effect of an example on each adapter: a named table, or {label: {adapter: route}}."""
    adapters: Annotated[dict[AdapterName, AdapterConfig], Role.TREATMENT] = Field(
        default_factory=lambda: {"good": AdapterConfig(), "bad": AdapterConfig()}, min_length=1
    )
    """The adapters by name; a file that names one must name all."""
    targets: Annotated[Targets, Role.TRAINING] = "all-linear"
    """Linear layers that get adapters: all-linear, attention, mlp, or names: [q_proj, v_proj]."""
    layers: Annotated[Layers, Role.TRAINING] = "last-half"
    """Transformer layers that get adapters: last-half, all, or [first, end) from 0."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Examples and labels."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Training."""
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    """Evaluation."""
    controls: Annotated[Controls, Role.RESOURCE] = None
    """Control runs to train as well: none, filter, oracle, random_labels, unrouted_ablated, ..."""
    control: Annotated[OptionalText, Role.TREATMENT] = None
    """Written by gradroute into a control's config: the control's name."""
    control_of: Annotated[OptionalText, Role.NAME] = None
    """Written by gradroute into a control's config: the run that it belongs to."""

    @property
    def behaviors(self) -> dict[str, str]:
        """Label -> the behavior that examples with it show; of a single one the label is `bad`."""
        return {"bad": self.behavior} if isinstance(self.behavior, str) else dict(self.behavior)

    @property
    def policy(self) -> RoutingPolicy:
        """The routing table, with a row for every behavior's label where it is a named one."""
        return RoutingPolicy.parse(self.routing, tuple(self.adapters), tuple(self.behaviors))

    @property
    def behavior_adapters(self) -> set[str]:
        """The adapters that learn from examples labeled as showing a behavior."""
        if self.data.drop not in ("none", "all_but_bad") or (
            self.data.path is None and self.data.behavior_fraction == 0
        ):
            return set()
        policy = self.policy
        return policy.updated_by(label for label in self.behaviors if label in policy.labels)

    @property
    def values_by_key(self) -> dict[str, Any]:
        """Key, such as `train.max_steps`, -> value of every setting, in order; "null" for none."""
        return _flat(self.model_dump())

    @model_validator(mode="before")
    @classmethod
    def _adapters_as_mapping(cls, value: Any) -> Any:
        if isinstance(value, dict) and "adapters" in value:
            return value | {"adapters": from_flow(value["adapters"])}
        return value

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        found = [
            *self._behaviors_disagree(),
            *modes_disagree(self.evaluate.modes or (), tuple(self.adapters)),
            *data_disagrees(self.data),
            *training_disagrees(self.train, self.data.front_load),
        ]
        if found:
            raise Disagreements(found)
        return self

    def _behaviors_disagree(self) -> list[Disagreement]:
        """Whether the table, the adapters and the behaviors fit together."""
        try:
            policy = self.policy
        except ConfigError as error:
            return [Disagreement((("routing",), ("adapters",)), str(error))]
        if isinstance(self.behavior, str):
            return []
        missing = [label for label in self.behavior if label not in policy.labels]
        found = [
            Disagreement(
                (("behavior", label), ("routing",)),
                f"the label {label} has no row in the routing table; add one, as in {label}: "
                f"{{{', '.join(f'{adapter}: update' for adapter in self.adapters)}}}.",
            )
            for label in missing
        ]
        share = self.data.behavior_fraction
        if self.data.path is None and len(self.behaviors) * share > 1:
            found.append(
                Disagreement(
                    (("data", "behavior_fraction"), ("behavior",)),
                    f"each of {len(self.behaviors)} behaviors takes this share of the examples, so "
                    f"at most {1 / len(self.behaviors):.3g} is needed, got {share:g}.",
                )
            )
        return found


FIELDS = section_fields(RunConfig)
"""Dotted name -> field, such as `train.max_steps` and, of every adapter, `adapters.*.rank`."""
ROLES = {name: field_role(name, field) for name, field in FIELDS.items()}
"""Dotted name -> role of the field."""


FREE_OF_COST = tuple(name for name, field in FIELDS.items() if Cost.NONE in field.metadata)
"""Fields in which runs may differ that take the same time, memory and disk."""


def field_of(key: str) -> str:
    """The field that holds a value: `routing` of `routing.bad.good`, else the key itself.

    A key of no field, as a later or an earlier version may write it, is its own.
    """
    first, _, inner = key.partition(".")
    name = f"adapters.*.{inner.partition('.')[2]}" if first == "adapters" else key
    while name not in FIELDS and "." in name:
        name = name.rpartition(".")[0].removesuffix(".*")
    return name if name in FIELDS else key


def keys_with(*roles: Role) -> tuple[str, ...]:
    """Dotted names of the fields that have one of the roles, in order."""
    return tuple(name for name, role in ROLES.items() if role in roles)


FREE_ON_RESUME = keys_with(Role.MEASURING, Role.RESOURCE)
"""What a resumed run may change without `--override`; it is recorded."""


def with_free_values(old: _AnySection, new: _AnySection, prefix: str = "") -> _AnySection:
    """A configuration, or a section of one, with another's values of `FREE_ON_RESUME`."""
    taken: dict[str, Any] = {}
    for name in type(old).model_fields:
        value = getattr(new, name)
        if isinstance(value, Section):
            taken[name] = with_free_values(getattr(old, name), value, f"{prefix}{name}.")
        elif f"{prefix}{name}" in FREE_ON_RESUME:
            taken[name] = value
    return old.model_copy(update=taken)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        path: A YAML file; None starts from the defaults.
        overrides: `key=value` each, such as `train.max_steps=50`; of several for one key the
            last one counts. A field's own type reads the value: texts verbatim, lists and tables
            as YAML, `null` for fields that may be empty. `adapters.<name>=null` removes one.

    Raises:
        ConfigError: A line for each thing that is wrong: its place, its key and the way out.
    """
    settings, malformed = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.strip().split(".")):
            malformed.append(f"command line: {show(override)} is not of the form key=value.")
            continue
        settings.append(Setting(key.strip(), Scalar(value), "command line"))
    config, problems = read_config(path, settings, malformed)
    if config is None or problems:
        raise ConfigError(several(problems))
    return config


class Setting(NamedTuple):
    """A value that is put over that of a configuration file.

    Attributes:
        key: Dotted, such as `train.max_steps`.
        value: As a YAML file or a command line has it.
        place: What messages call where it was given.
    """

    key: str
    value: Any
    place: str


def read_config(
    path: Path | None, settings: Sequence[Setting], also: Sequence[str] = ()
) -> tuple[RunConfig | None, list[str]]:
    """A configuration file with settings over it, or a sentence for each thing that is wrong.

    Args:
        path: A YAML file; None starts from the defaults.
        settings: Of several for one key the last one counts.
        also: What is wrong with other settings, to be named with the rest.

    Raises:
        ConfigError: The file cannot be read, or is no mapping.
    """
    source = "defaults" if path is None else _display(path)
    text = YamlText({}) if path is None else read_yaml_file(path, source)
    data, problems = text.value, [*text.duplicates, *also]
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: lines `key: value` are needed, got {show(data)}.")
    changed: dict[KeyPath, str] = {}
    for key, value, place in settings:
        keys = tuple(key.split("."))
        changed[keys] = place
        try:
            _apply(data, keys, value)
        except ValueError as error:
            problems.append(f"{place}: {key}: {error}")
    if path is None or not path.read_bytes().startswith(_WRITTEN.encode()):
        _say_former_values(data, source)
    config, found = validate_config(RunConfig, data, Origin(source, text.lines, changed))
    return config, problems + found


def several(problems: Sequence[str]) -> str:
    """One message of several sentences: their number and a line for each, or the only one."""
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{len(problems)} problems:", *problems])


def find_config(name: str) -> Path:
    """The file that a command line names: a path, else the name of a shipped recipe.

    Raises:
        ConfigError: It is neither; the message lists the recipes.
    """
    path, stem = Path(name), name.removesuffix(".yaml")
    if not path.is_file() and stem in recipe_names():
        return _RECIPES / f"{stem}.yaml"
    if not path.exists():
        raise ConfigError(
            f"there is no file {show(name)} and no recipe of that name; "
            f"the recipes are {', '.join(recipe_names())}."
        )
    return path


def recipe_names() -> list[str]:
    """The names of the recipes that gradroute ships."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML, every key with its value; `load_config` reads it back equal."""
    import yaml

    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=2**31 - 1)
    return f"{_WRITTEN}{text}"


def config_differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Key -> (old, new) for each value in which two configurations differ; "absent" for no value.

    The order of adapters, of a table's labels and of behaviors counts too: sums are taken in it,
    and of examples the first behavior takes its own first.
    """
    before, after = old.values_by_key, new.values_by_key
    found = {
        key: (before.get(key, "absent"), after.get(key, "absent"))
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key, "absent") != after.get(key, "absent")
    }
    pairs = {
        "behavior": (old.behavior, new.behavior),
        "adapters": (old.adapters, new.adapters),
        "routing": (old.routing, new.routing),
    }
    for key, (one, other) in pairs.items():
        both = isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys()
        if both and list(one) != list(other):
            found[key] = (", ".join(one), ", ".join(other))
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, with defaults and help texts."""
    return RunConfig.model_json_schema()


def _apply(data: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Put one override into `data`; a ValueError says why there is no place for it."""
    *parents, last = keys
    if parents[:1] == ["adapters"]:
        data.setdefault("adapters", {"good": {}, "bad": {}})
    for depth, key in enumerate(parents, start=1):
        inner = from_flow(data.setdefault(key, {}))
        if not isinstance(inner, dict):
            held = ".".join(parents[:depth])
            raise ValueError(
                f"{held} is {show(inner)}, so there is no key below it; give {held}=VALUE."
            )
        data[key] = dict(inner)
        data = data[key]
    if parents != ["adapters"] or not is_null(value):
        data[last] = value
    elif data.pop(last, None) is None:
        raise ValueError(f"there is no such adapter to remove; there are {', '.join(data)}.")


def _say_former_values(data: dict[str, Any], source: str) -> None:
    """Say once which values of a file or a command line have another name now."""
    found = []
    for name, field in FIELDS.items():
        value: Any = data
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and FORMER_VALUES.get(value, "") == field.default:
            found.append(f"{name}={value}")
    if found:
        say(f"{source}: {', '.join(found)}: `nothing` is now called `none`.")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "null" if item is None else item
    return flat


def _display(path: Path) -> str:
    """The path as given, but a shipped recipe without the folder it happens to be installed in."""
    return f"recipe {path.stem}" if path.parent == _RECIPES else str(path)
