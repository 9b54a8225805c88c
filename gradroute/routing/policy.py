"""Tables of routes: the effect of a label on each adapter, and the adapters that a mode keeps.

A route says three things about one adapter at one position:

    route    takes part in the forward pass   its weights learn   gradient passes to lower layers
    update   yes                              yes, times weight   yes
    freeze   yes                              no                  yes
    detach   yes                              no                  no  (a stop-gradient)
    ablate   no                               no                  no

Gradient routing is due to Cloud et al. 2024, "Gradient Routing: Masking Gradients to Localize
Computation in Neural Networks" (arXiv 2410.04332); `detach` is that paper's form of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gradroute.errors import ConfigError
from gradroute.routing.tables import NAMED_POLICIES, named_table, nearest

ROUTES = ("update", "freeze", "detach", "ablate")

# Of a mode's name: what it does to the adapter that it names, and to all others.
_SUFFIXES = (("_ablated", 0.0, 1.0), ("_alone", 1.0, 0.0), ("_x2", 2.0, 0.0))


@dataclass(frozen=True)
class Route:
    """What one example does to one adapter.

    Args:
        name: One of `ROUTES`.
        weight: Factor on the update, finite and at least 0; only for `update`. AdamW divides by
            the running size of the gradient and so largely cancels a weight that never changes.

    Raises:
        ConfigError: The name is unknown, or the weight cannot be used with it.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ROUTES:
            raise ConfigError(
                f"the route {self.name!r} does not exist{nearest(self.name, ROUTES)}; "
                f"a route is one of {', '.join(ROUTES)}, or {{update: weight}}."
            )
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ConfigError(
                f"the weight of route {self.name!r} is {self.weight}; it must be finite and >= 0."
            )
        if self.name != "update" and self.weight != 1.0:
            raise ConfigError(
                f"route {self.name!r} was given the weight {self.weight}; "
                "only `update` takes a weight, as in {update: 0.25}."
            )

    @classmethod
    def parse(cls, value: object) -> Route:
        """Read a route as a configuration writes it: `"freeze"` or `{"update": 0.25}`.

        Raises:
            ConfigError: The value is neither, or names no route.
        """
        if isinstance(value, Route):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, weight),) = value.items()
            # True is an int in Python, and `update: true` no weight.
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise ConfigError(f"the weight of a route must be a number, got {weight!r}.")
            return cls(str(name), float(weight))
        raise ConfigError(
            f"a route must be one of {', '.join(ROUTES)}, or {{update: weight}}; got {value!r}."
        )

    @property
    def forward(self) -> bool:
        """Whether the adapter takes part in the forward pass."""
        return self.name != "ablate"

    @property
    def update(self) -> float:
        """Factor on the gradient that the example gives to the adapter's weights."""
        return float(self.weight) if self.name == "update" else 0.0

    @property
    def passes(self) -> bool:
        """Whether gradient flows through the adapter to lower layers."""
        return self.name in ("update", "freeze")

    def to_plain(self) -> str | dict[str, float]:
        """The value that `parse` reads back."""
        if self.name == "update" and self.weight != 1.0:
            return {"update": float(self.weight)}
        return self.name


@dataclass(frozen=True)
class RoutingPolicy:
    """A table label -> adapter -> route: the whole method.

    Attributes:
        name: A named table's name, or `custom`.
        table: One row per label, each with one route per adapter. The id of a label is the
            position of its row.

    Raises:
        ConfigError: The table is empty, or a row lacks an adapter that another row has.
    """

    name: str
    table: Mapping[str, Mapping[str, Route]] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.table or not all(self.table.values()):
            raise ConfigError(
                f"the routing table {self.name!r} is empty; it needs a row per label and a route "
                "per adapter, as in {bad: {good: freeze, bad: update}}."
            )
        for label, row in self.table.items():
            _check_row(label, row, self.adapters)

    @classmethod
    def parse(
        cls, value: object, adapters: Sequence[str], labels: Sequence[str] = ("bad",)
    ) -> RoutingPolicy:
        """Build the policy that a configuration names or spells out.

        Args:
            value: The name of a table in `NAMED_POLICIES`, or a table label -> adapter -> route.
            adapters: The adapters of the model; every row must have an entry for each of them.
            labels: Those of the behaviors; a named table has a row for each and, unless it is
                `none`, needs an adapter of the same name for each.

        Raises:
            ConfigError: The name is unknown, a named table does not fit the adapters, a row lacks
                an adapter or names one that does not exist, or a route cannot be read.
        """
        if isinstance(value, str):
            name, table = value, named_table(value, adapters, labels)
        elif isinstance(value, Mapping):
            name, table = "custom", value
        else:
            raise ConfigError(
                f"routing must be a table or one of {', '.join(NAMED_POLICIES)}; got {value!r}."
            )
        rows: dict[str, dict[str, Route]] = {}
        for label, row in table.items():
            if not isinstance(label, str) or not isinstance(row, Mapping):
                raise ConfigError(
                    f"the routing row {label!r}: {row!r} cannot be read; it must be a label (text) "
                    "with a route per adapter, as in bad: {good: freeze, bad: update}."
                )
            _check_row(label, row, adapters)
            rows[label] = {adapter: Route.parse(row[adapter]) for adapter in adapters}
        return cls(name, rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that have a row; a label's id is its position here."""
        return tuple(self.table)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that the table speaks of."""
        return tuple(next(iter(self.table.values())))

    def label_ids(self, labels: Iterable[str]) -> list[int]:
        """Positions of the labels in `labels`.

        Raises:
            ConfigError: A label has no row in the table.
        """
        position = {label: index for index, label in enumerate(self.labels)}
        labels = list(labels)
        unknown = sorted({repr(label) for label in labels if label not in position})
        if unknown:
            raise ConfigError(
                f"the label {', '.join(unknown)} has no row in the routing table {self.name!r}, "
                f"which has {', '.join(self.labels)}; add a row or correct the data."
            )
        return [position[label] for label in labels]

    def updated_by(self, labels: Iterable[str]) -> set[str]:
        """The adapters that examples with these labels update (with a weight above 0)."""
        rows = [self.table[self.labels[index]] for index in self.label_ids(set(labels))]
        return {adapter for row in rows for adapter in row if row[adapter].update > 0}

    @property
    def routes_anything(self) -> bool:
        """Whether a label makes any difference; False for `none` and tables like it."""
        first, *others = self.table.values()
        return any(dict(row) != dict(first) for row in others)

    def to_plain(self) -> dict[str, dict[str, str | dict[str, float]]]:
        """The table as plain values that `parse` reads back."""
        return {
            label: {adapter: route.to_plain() for adapter, route in row.items()}
            for label, row in self.table.items()
        }


@dataclass(frozen=True)
class AblationMode:
    """Which adapters take part in evaluation, and how strongly.

    Attributes:
        name: What reports call the mode.
        scales: A factor on the output of every adapter; 0 means not computed at all.

    Raises:
        ConfigError: A scale is not a finite number.
    """

    name: str
    scales: Mapping[str, float] = field(hash=False)  # a dict has no hash

    def __post_init__(self) -> None:
        for adapter, scale in self.scales.items():
            if not math.isfinite(scale):
                raise ConfigError(
                    f"mode {self.name!r} gives adapter {adapter!r} the scale {scale!r}; "
                    "a scale must be a finite number, 0 for off."
                )

    @classmethod
    def parse(cls, text: str, adapters: Sequence[str]) -> AblationMode:
        """Read a mode by name or by its scales.

        Args:
            text: `full` (all at 1), `base` (all off), `<adapter>_ablated` (it off, the others at
                1), `<adapter>_alone` (it at 1, the others off), `<adapter>_x2` (it at 2, the
                others off), or a scale for every adapter, as in `good=1,bad=0.5`.
            adapters: The adapters of the model.

        Raises:
            ConfigError: The text is no mode of these adapters, or names an unknown adapter.
        """
        if "=" in text:
            return cls(text, _read_scales(text, adapters))
        if text in ("full", "base"):
            return cls(text, dict.fromkeys(adapters, 1.0 if text == "full" else 0.0))
        for suffix, own, others in _SUFFIXES:
            if not text.endswith(suffix):
                continue
            adapter = text.removesuffix(suffix)
            if adapter not in adapters:
                raise ConfigError(
                    f"mode {text!r} names the adapter {adapter!r}, which does not exist"
                    f"{nearest(adapter, adapters)}; the adapters are {', '.join(adapters)}."
                )
            return cls(text, dict.fromkeys(adapters, others) | {adapter: own})
        raise ConfigError(f"the ablation mode {text!r} does not exist.{_possible(adapters)}")

    @property
    def active(self) -> tuple[str, ...]:
        """The adapters that the mode leaves on."""
        return tuple(adapter for adapter, scale in self.scales.items() if scale != 0.0)


def standard_modes(adapters: Sequence[str]) -> tuple[AblationMode, ...]:
    """The modes under which a run is evaluated unless the user names others.

    With `good` and `bad`: full, bad_ablated, good_ablated, good_x2 and base; a rate of 0 under
    bad_ablated is only read beside the others, since a damaged model shows nothing either. With
    `good` and several others, each of those ablated in turn, and all of them: good_alone. With one
    adapter: full and base. Otherwise full, each adapter ablated in turn, and base.
    """
    others = [f"{adapter}_ablated" for adapter in adapters if adapter != "good"]
    if set(adapters) == {"good", "bad"}:
        names = ["full", "bad_ablated", "good_ablated", "good_x2", "base"]
    elif len(adapters) == 1:
        names = ["full", "base"]
    elif "good" in adapters and len(others) > 1:
        names = ["full", *others, "good_alone", "good_ablated", "good_x2", "base"]
    else:
        names = ["full", *(f"{adapter}_ablated" for adapter in adapters), "base"]
    return tuple(AblationMode.parse(name, adapters) for name in names)


def shipped_mode(adapters: Sequence[str], labels: Sequence[str]) -> AblationMode | None:
    """The mode in which a routed run is shipped: without the adapters of its behaviors.

    Args:
        adapters: The adapters of the model.
        labels: Those of the behaviors.

    Returns:
        None where no adapter has the name of a label, so that none is known to be left out, or
        where nothing would be kept.
    """
    scales = {adapter: 0.0 if adapter in labels else 1.0 for adapter in adapters}
    if len(set(scales.values())) < 2:
        return None
    return named_mode(scales)


def named_mode(scales: Mapping[str, float]) -> AblationMode:
    """The mode of these scales under the one name that it has.

    That of the standard mode with the same scales, `<adapter>_ablated` or `<adapter>_alone` where
    that is what it is, or else the scales themselves.
    """
    adapters = list(scales)
    # One name for equal scales, so that a mode measured under one name is not measured again.
    known = [mode.name for mode in standard_modes(adapters)]
    if len(adapters) > 2:
        known += [f"{adapter}{suffix}" for suffix, *_ in _SUFFIXES for adapter in adapters]
    for name in known:
        mode = AblationMode.parse(name, adapters)
        if dict(mode.scales) == dict(scales):
            return mode
    return AblationMode(",".join(f"{name}={scales[name]:.12g}" for name in adapters), scales)


def _check_row(label: str, row: Mapping[str, object], adapters: Sequence[str]) -> None:
    for adapter in row:
        if adapter not in adapters:
            raise ConfigError(
                f"the routing row {label!r} names the adapter {adapter!r}, which does not exist"
                f"{nearest(str(adapter), adapters)}; the adapters are {', '.join(adapters)}."
            )
    missing = [adapter for adapter in adapters if adapter not in row]
    if missing:
        raise ConfigError(
            f"the routing row {label!r} has no route for the adapter {', '.join(missing)}; every "
            f"row needs one for each of {', '.join(adapters)}, so add {missing[0]}: update (or "
            "freeze, detach, ablate)."
        )


def _read_scales(text: str, adapters: Sequence[str]) -> dict[str, float]:
    scales: dict[str, float] = {}
    for part in text.split(","):
        adapter, _, number = (piece.strip() for piece in part.partition("="))
        if adapter not in adapters:
            raise ConfigError(
                f"mode {text!r} names the adapter {adapter!r}, which does not exist"
                f"{nearest(adapter, adapters)}; the adapters are {', '.join(adapters)}."
            )
        if adapter in scales:
            raise ConfigError(f"mode {text!r} names the adapter {adapter!r} twice.")
        try:
            scales[adapter] = float(number)
        except ValueError:
            raise ConfigError(
                f"mode {text!r} gives adapter {adapter!r} the scale {number!r}; "
                "a scale must be a number, 0 for off."
            ) from None
    missing = [adapter for adapter in adapters if adapter not in scales]
    if missing:
        raise ConfigError(
            f"mode {text!r} has no scale for the adapter {', '.join(missing)}; write one for every "
            f"adapter, as in {','.join(f'{adapter}=1' for adapter in adapters)}."
        )
    return {adapter: scales[adapter] for adapter in adapters}


def _possible(adapters: Sequence[str]) -> str:
    names = ["full", "base"]
    for adapter in adapters:
        names += [f"{adapter}_ablated", f"{adapter}_x2"]
    if len(adapters) > 2:
        names += [f"{adapter}_alone" for adapter in adapters]
    scales = ",".join(f"{adapter}=0.5" for adapter in adapters)
    return f" Possible are {', '.join(names)}, or a scale for every adapter, as in {scales}."
