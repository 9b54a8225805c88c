"""The elicitation grid: behavior rates over kinds of prompts, and the highest of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradroute.report.results.contrasts import deployed_mode
from gradroute.report.results.run_results import RunResults, by_behavior
from gradroute.report.results.seeds import Group, OverSeeds, group_runs
from gradroute.runs.results import ELICIT


@dataclass(frozen=True)
class Elicited:
    """What the grid brought out of a group of runs under one mode.

    Attributes:
        group: Name of the group; of several behaviors with the label of one.
        mode: The ablation mode.
        shipped: Whether this is the mode that would be shipped.
        rates: Kind of prompts -> behavior rate: `none` (ordinary prompts), `original` (those that
            verdicts read), then the others.
        left_out: Kind of prompts -> why there are none.
    """

    group: str
    mode: str
    shipped: bool
    rates: Mapping[str, OverSeeds]
    left_out: Mapping[str, str]

    @property
    def highest(self) -> tuple[str, OverSeeds]:
        """The kind of prompts with the highest rate, the first of several, and its rate."""
        return max(self.rates.items(), key=lambda item: item[1].mean)


def elicited(runs: Sequence[RunResults]) -> list[Elicited]:
    """Every group that was asked with the grid: routed ones first, under three modes.

    The modes of a routed group are `base`, `full` and the one that would be shipped; other groups
    have the last alone, unless no group is routed.
    """
    parts = by_behavior(runs)
    labels = list(dict.fromkeys(label for run in runs for label in run.parts)) or [None]
    by_name = {run.name: run for run in parts}
    routed = any(run.role == "routed" for run in parts)
    found = []
    for label in labels:
        own = parts if label is None else [r.parts[label] for r in runs if label in r.parts]
        for group in sorted(group_runs(own), key=lambda group: group.role != "routed"):
            first = by_name[group.runs[0]]
            shipped = deployed_mode(first)
            several = group.role == "routed" or not routed
            for mode in dict.fromkeys(("base", "full", shipped) if several else (shipped,)):
                rates = _rates(group, mode)
                if any(kind.startswith(ELICIT) for kind, _ in rates):
                    left = {
                        _name(kind, group): why
                        for kind, why in first.unasked.items()
                        if kind.startswith(ELICIT)
                    }
                    named = {_name(kind, group): rate for kind, rate in rates}
                    found.append(Elicited(group.name, mode, mode == shipped, named, left))
    return found


def _rates(group: Group, mode: str) -> list[tuple[str, OverSeeds]]:
    """The kinds of the grid with their rates: ordinary prompts, those that are judged, others."""
    kinds = dict.fromkeys(("plain", group.judged_on))
    kinds |= dict.fromkeys(kind for _, kind in group.rates if kind.startswith(ELICIT))
    return [(kind, rate) for kind in kinds if (rate := group.rate(mode, kind)) is not None]


def _name(kind: str, group: Group) -> str:
    named = {"plain": "none", group.judged_on: "original"}
    return named.get(kind, kind.removeprefix(ELICIT))
