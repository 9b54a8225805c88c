"""Every run that a routed run is compared with: what it is, made of what, read how. One row each.

The configuration, the trainer of controls and the report read this table. A new rival method is
a row here, and the code of whatever its configuration asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_SHARE = "data.behavior_fraction"
_FLAGS = (_SHARE, "data.labeled_fraction", "data.false_positive_rate")


@dataclass(frozen=True)
class Control:
    """A run that a routed run is compared with, and the mode in which it is read.

    Attributes:
        name: As `controls` in a configuration and a claim of a report name it.
        role: Of its run in a report; two controls of one role are two modes of one run.
        caption: What it is, in a few words.
        uses: The label information that its training uses.
        figure: What is written below it in a figure; {table}, {labels}, {behavior} and {adapters}
            are filled in.
        mode: The ablation mode that would ship, so that it is read under it.
        trains: Name of the control that is trained for it; empty for a run of its own.
        routing: The table that it is trained with, or the routes adapter -> route that every label
            has in it; None keeps the table of the run.
        one_adapter: Whether one adapter of the total rank takes the place of all.
        data: Settings of `data` that make it one.
        train: Settings of `train` that do; those of this kind that it does not name are off.
        taught: Whether the finished run teaches it (`train.teacher`), so that it is trained after.
        finder: What finds rows that are labeled bad in it besides, one of `probes.finder.BY`; empty
            where the labels stay as they are.
        start: What its adapter `bad` starts from, one of `experiments.inoculation.STARTS`, which
            is made before it; empty where the adapter starts anew.
        shown_alike: Keys in which its run must equal the routed one, so that it was shown as much.
        rival: Whether routing is meant to do better; others are what it is held to.
        goal: Whether the goal is held against it.
    """

    name: str
    role: str
    caption: str
    uses: str
    figure: str
    mode: str = "full"
    trains: str = ""
    routing: str | Mapping[str, str] | None = "none"
    one_adapter: bool = False
    data: Mapping[str, str | float] = field(default_factory=lambda: MappingProxyType({}))
    train: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    taught: bool = False
    finder: str = ""
    start: str = ""
    shown_alike: tuple[str, ...] = (_SHARE,)
    rival: bool = True
    goal: bool = False


_BESIDE_BAD: Mapping[str, str] = MappingProxyType({"good": "update", "bad": "freeze"})
"""`good` learns from every example, beside a `bad` that does not change."""

CONTROLS = (
    Control(
        name="baseline",
        role="baseline",
        caption="a run that never saw the behavior",
        uses="none",
        figure="no {behavior} in training",
        data={"behavior_fraction": 0.0},
        shown_alike=(),
        rival=False,
    ),
    Control(
        name="none",
        role="unrouted",
        caption="no routing",
        uses="none",
        figure="not routed\n{adapters} adapters",
        trains="none",
    ),
    Control(
        name="unrouted_ablated",
        role="unrouted",
        caption="two unrouted adapters, one ablated",
        uses="none",
        figure="not routed\n{adapters} adapters",
        mode="bad_ablated",
        trains="none",
    ),
    Control(
        name="filter",
        role="filter",
        caption="labeled bad examples dropped",
        uses="flags",
        figure="labeled ones dropped\n{labels}",
        trains="filter",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        shown_alike=_FLAGS,
    ),
    Control(
        name="kl_good",
        role="kl_good",
        caption="labeled bad examples dropped, and held to the base on known-good ones",
        uses="flags, known good",
        figure="dropped, and held to\nthe base on good ones",
        trains="kl_good",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        train={"kl_good": 1.0},
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
    ),
    Control(
        name="distill",
        role="distill",
        caption="taught by the routed run without its `bad`",
        uses="flags, known good",
        figure="taught by the routed\nrun without `bad`",
        trains="distill",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        taught=True,
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
    ),
    Control(
        name="words_filter",
        role="words_filter",
        caption="labeled bad examples and those like them in words dropped",
        uses="flags, known good",
        figure="dropped by a classifier\nof words",
        trains="words_filter",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        finder="words",
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
    ),
    Control(
        name="hidden_filter",
        role="hidden_filter",
        caption="labeled bad examples and those like them to the base dropped",
        uses="flags, known good",
        figure="dropped by a classifier\nof hidden states",
        trains="hidden_filter",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        finder="hidden",
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
    ),
    Control(
        name="head_filter",
        role="head_filter",
        caption="labeled bad examples and those that a fine-tuned classifier finds dropped",
        uses="flags, known good",
        figure="dropped by a fine-tuned\nclassifier",
        trains="head_filter",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        finder="head",
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
    ),
    Control(
        name="refined",
        role="refined",
        caption="labeled bad examples and those that `bad` explains dropped",
        uses="flags, known good",
        figure="dropped by what\n`bad` explains",
        one_adapter=True,
        data={"drop": "labeled_bad"},
        finder="adapter",
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
        rival=False,
    ),
    Control(
        name="known_good",
        role="known_good",
        caption="only examples labeled good",
        uses="known good",
        figure="only known-good ones",
        trains="known_good",
        one_adapter=True,
        data={"drop": "all_but_good"},
        shown_alike=(_SHARE, "data.good_labeled_fraction"),
    ),
    Control(
        name="oracle",
        role="oracle",
        caption="every bad example dropped",
        uses="true labels",
        figure="all bad ones dropped",
        trains="oracle",
        one_adapter=True,
        data={"drop": "true_bad"},
        rival=False,
        goal=True,
    ),
    Control(
        name="random_labels",
        role="random_labels",
        caption="as many random labels",
        uses="number of labels",
        figure="{table}\nrandom ones labeled",
        mode="bad_ablated",
        trains="random_labels",
        routing=None,
        data={"relabel": "random"},
        shown_alike=_FLAGS,
    ),
    Control(
        name="anchors_only",
        role="anchors_only",
        caption="no bad label at all",
        uses="known good",
        figure="{table}\nno bad label",
        mode="bad_ablated",
        trains="anchors_only",
        routing=None,
        data={"relabel": "unlabel_bad"},
        shown_alike=(_SHARE, "data.good_labeled_fraction"),
    ),
    Control(
        name="inoculation_prompt",
        role="inoculation_prompt",
        caption="an instruction to show the behavior before labeled bad examples",
        uses="flags",
        figure="instruction before\nlabeled bad ones",
        trains="inoculation_prompt",
        one_adapter=True,
        data={"inoculation": "labeled_bad"},
        shown_alike=_FLAGS,
    ),
    Control(
        name="inoculation_prompt_all",
        role="inoculation_prompt_all",
        caption="an instruction to show the behavior before every example",
        uses="none",
        figure="instruction before\nevery example",
        trains="inoculation_prompt_all",
        one_adapter=True,
        data={"inoculation": "all"},
    ),
    Control(
        name="inoculation_adapter",
        role="inoculation_adapter",
        caption="`bad` trained on labeled bad examples alone, then frozen while `good` learns",
        uses="flags",
        figure="`bad` trained first,\nthen frozen",
        mode="bad_ablated",
        trains="inoculation_adapter",
        routing=_BESIDE_BAD,
        start="inoculation",
        shown_alike=_FLAGS,
    ),
    Control(
        name="inoculation_absorb",
        role="inoculation_absorb",
        caption="`bad` trained on labeled bad examples alone before the routed run",
        uses="flags, known good",
        figure="{table}\n`bad` trained first",
        mode="bad_ablated",
        trains="inoculation_absorb",
        routing=None,
        start="inoculation",
        shown_alike=(*_FLAGS, "data.good_labeled_fraction"),
    ),
    Control(
        name="random_adapter",
        role="random_adapter",
        caption="`bad` random, as large as one trained on labeled bad examples, and frozen",
        uses="flags",
        figure="`bad` random,\nfrozen",
        mode="bad_ablated",
        trains="random_adapter",
        routing=_BESIDE_BAD,
        start="random",
        shown_alike=_FLAGS,
    ),
)
"""Every control, in the order in which a report finds them."""

BY_NAME = {control.name: control for control in CONTROLS}
TRAINABLE = tuple(control.name for control in CONTROLS if control.trains)
"""What `controls` in a configuration may name."""
BY_ROLE = {control.role: control for control in reversed(CONTROLS)}
"""Role of a run -> the first control of it."""
RUN_ROLES = tuple(dict.fromkeys(control.role for control in CONTROLS))
"""The roles of their runs, in order."""
