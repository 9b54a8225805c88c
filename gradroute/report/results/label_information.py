"""Which labels a run was told, read from its configuration, and which of two runs was told more.

A claim compares at equal label information: a control that does as well with fewer labels is the
better method, and one that does better with more labels proves nothing against routing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradroute.config.controls import BY_NAME, Control
from gradroute.report.results.number_text import join_words
from gradroute.report.results.roles import Config, adapter_names, behavior_labels
from gradroute.report.results.run_results import RunResults
from gradroute.routing.policy import RoutingPolicy

NUMBER, FLAGS, GOOD, TRUE = "number of labels", "flags", "known good", "true labels"

LESS, EQUAL, MORE, OTHER = "less", "the same", "more", "other"


class Kind(NamedTuple):
    """A kind of label information.

    Attributes:
        phrase: In a sentence.
        meaning: What a run with it was told.
        tells: The kinds that it tells too, itself among them.
    """

    phrase: str
    meaning: str
    tells: frozenset[str]


KINDS: Mapping[str, Kind] = {
    NUMBER: Kind("the number of labels", "how many examples are labeled", frozenset({NUMBER})),
    FLAGS: Kind("flags", "which examples are labeled bad", frozenset({NUMBER, FLAGS})),
    GOOD: Kind("known good rows", "which examples are labeled good", frozenset({NUMBER, GOOD})),
    TRUE: Kind("true labels", "what every example is", frozenset({NUMBER, FLAGS, GOOD, TRUE})),
}
"""Every kind, by its name in `Control.uses`, in the order in which they are named."""


class Information(NamedTuple):
    """The label information of both sides of a claim.

    Attributes:
        routed: What the routed run used, kinds with commas between; `none` for nothing.
        control: What the control used.
        control_used: `less`, `the same`, `more` or `other` labels than the routed run.
    """

    routed: str
    control: str
    control_used: str

    @property
    def at_most_equal(self) -> bool:
        """Whether the control used nothing that the routed run did not use."""
        return self.control_used in (LESS, EQUAL)


def compare_information(run: RunResults, control: RunResults) -> Information:
    """The label information of a routed run beside that of its control."""
    ours, theirs = (label_information(one.config, one.manifest) for one in (run, control))
    told, others = (
        frozenset().union(*(KINDS[kind].tells for kind in kinds)) for kinds in (ours, theirs)
    )
    if told == others:
        used = EQUAL
    elif told > others:
        used = LESS
    else:
        used = MORE if told < others else OTHER
    return Information(information_text(ours), information_text(theirs), used)


def label_information(config: Config, manifest: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of label information that training used.

    A label that changes neither what is trained on nor a route was not used: known-good rows are
    used by `anchored`, which treats them otherwise than unlabeled ones, and not by `absorb`.

    Args:
        config: Of the run; keys that an older gradroute did not write may be missing.
        manifest: Of the run; says which labels a file of rows has. Without it such a file counts as
            one that has all of them.
    """
    data = config["data"]
    dropped, relabeled = data.get("drop"), data.get("relabel")
    if dropped == "true_bad":
        return frozenset({TRUE})
    train = config.get("train", {})
    if data.get("found"):  # finding takes both
        return frozenset({FLAGS, GOOD})
    labels = behavior_labels(config)
    table = RoutingPolicy.parse(config["routing"], adapter_names(config), labels).table
    plain = table.get("unlabeled")
    flags, good = _given(data, manifest)
    if train.get("teacher"):  # what taught the run was told of whatever there is
        return frozenset([FLAGS] * flags + [GOOD] * good)
    control = BY_NAME.get(config.get("control") or "")
    flags &= (
        dropped in ("labeled_bad", "all_but_bad")
        or data.get("inoculation") == "labeled_bad"
        or (control is not None and bool(control.start))
        or any(table.get(one) != plain for one in labels)
    )
    needed = dropped == "all_but_good" or bool(train.get("kl_good"))
    good &= needed or table.get("good") != plain
    if relabeled == "random":
        return frozenset({NUMBER} if flags or good else ())
    flags &= relabeled != "unlabel_bad"
    return frozenset([FLAGS] * flags + [GOOD] * good)


def _given(data: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether there are rows labeled bad, and rows labeled good, before any was left out."""
    if data["path"] is None:
        flags = data["labeled_fraction"] > 0 or data.get("false_positive_rate", 0) > 0
        return flags, data.get("good_labeled_fraction", 0) > 0
    quality, counts = manifest.get("labels") or {}, manifest.get("examples") or {}
    good = any(key.endswith(" labeled good") for key in counts)
    return quality.get("labeled_bad") != 0, good or not counts


def information_text(kinds: frozenset[str]) -> str:
    """The kinds with commas between, as `Control.uses` has them."""
    return ", ".join(kind for kind in KINDS if kind in kinds) or "none"


def phrase_of(uses: str) -> str:
    """The same text as the end of "which uses"."""
    return join_words([KINDS[kind].phrase for kind in uses.split(", ") if kind in KINDS]) or (
        "no labels"
    )


def simplicity(control: Control) -> tuple[bool, bool, int]:
    """What sorts controls from the simplest to the one that takes most.

    One that does not route is simpler than one that does, one that needs nothing made before it
    (rows found by a classifier, an adapter, the finished run) simpler than one that does, and one
    with fewer kinds of labels simpler than one with more.
    """
    kinds = [kind for kind in control.uses.split(", ") if kind in KINDS]
    made = bool(control.finder or control.start or control.taught)
    return control.routing is None, made, len(kinds)
