"""Runs that differ only in their seed, as one group: every seed shown, and an interval over them.

The seed is the unit. Completions of one seed share a model, so they are never pooled over seeds.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradroute.report.results.contrasts import GainKept, gain_kept, gain_reference
from gradroute.report.results.roles import decides
from gradroute.report.results.run_results import Loss, Rate, RunResults
from gradroute.runs.results import PREFIX
from gradroute.system.statistics import t_interval


@dataclass(frozen=True)
class OverSeeds:
    """One number of several seeds, with its interval.

    Attributes:
        seeds: The seeds at which it was measured.
        values: The number at each of them, in the same order.
        n: How many completions or examples each value stands on; 0 where it is not a mean.
        mean: Of the values.
        lower: Lower end of the 95 % interval; NaN where none can be given.
        upper: Likewise.
        basis: What the interval is: `seeds` (t over the seeds' values), `equal seeds` (all values
            are equal, so it is the widest interval of one seed), `one seed` (over its
            completions or examples, says nothing about another seed) or `none`.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    n: tuple[int, ...]
    mean: float
    lower: float
    upper: float
    basis: str


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ in nothing that decides a result but the seed.

    Attributes:
        name: What the runs' names share.
        role: See `roles.role_of`.
        control: Which control it is by its configuration (`data`, `routing`), as a config names
            it; None for a run that was not made as a control.
        control_of: `run_name` of the run that it was made for; None likewise.
        runs: Names of the runs, in the order of `seeds`.
        seeds: Of the runs, ascending.
        rates: (mode, kind of prompts) -> behavior rate.
        accuracy: (mode, kind of prompts) -> share of right answers.
        losses: (mode, dataset) -> held-out loss in nats per token.
        gain_kept: See `contrasts.gain_kept`; None where it was not measured in any seed.
        gain_against: What gain kept is measured against, in each seed.
        precision: Share of the labels `bad` that are right; None where nobody is labeled bad.
        judged_on: The kind of prompts whose behavior rate is judged.
    """

    name: str
    role: str
    control: str | None
    control_of: str | None
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: Mapping[tuple[str, str], OverSeeds]
    accuracy: Mapping[tuple[str, str], OverSeeds]
    losses: Mapping[tuple[str, str], OverSeeds]
    gain_kept: OverSeeds | None = None
    gain_against: tuple[str, ...] = ()
    precision: OverSeeds | None = None
    judged_on: str = PREFIX

    @property
    def modes(self) -> tuple[str, ...]:
        """Every mode that was measured, in the order of the first run that has it."""
        return tuple(dict.fromkeys(mode for mode, _ in [*self.rates, *self.losses]))

    def rate(self, mode: str, kind: str | None = None) -> OverSeeds | None:
        """Behavior rate under a mode, if it was measured.

        Without a kind, on the prompts that are judged.
        """
        return self.rates.get((mode, kind or self.judged_on))

    def loss(self, mode: str, dataset: str) -> OverSeeds | None:
        """Held-out loss under a mode, if it was measured."""
        return self.losses.get((mode, dataset))


def group_runs(runs: Sequence[RunResults]) -> list[Group]:
    """Sort runs into groups, in the order of their first run.

    Runs of one group differ in seed, label seed and name, and in nothing else that decides a
    result (`roles.decides`). Two runs of one seed and one label seed would be one run counted
    twice, so the second begins another group.
    """
    sorted_runs: list[tuple[Mapping[str, Any], dict[Draw, RunResults]]] = []
    for run in runs:
        leaves = run.facts.leaves
        draw = _draw(leaves)
        same = {key: value for key, value in leaves.items() if key not in _DRAW and decides(key)}
        for other, members in sorted_runs:
            if other == same and draw not in members:
                members[draw] = run
                break
        else:
            sorted_runs.append((same, {draw: run}))
    names: list[str] = []
    groups = []
    for _, members in sorted_runs:
        in_order = [members[draw] for draw in sorted(members)]
        shared = _shared_name([run.name for run in in_order])
        name, number = shared, 1
        while name in names:
            number += 1
            name = f"{shared} ({number})"
        names.append(name)
        groups.append(_group(name, in_order, runs))
    return groups


def over_seeds(
    seeds: Sequence[int],
    values: Sequence[float],
    n: Sequence[int],
    intervals: Sequence[tuple[float, float]],
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> OverSeeds:
    """One number of several seeds.

    Args:
        seeds: At which it was measured; at least one.
        values: The number at each.
        n: What each value stands on.
        intervals: Of each value over its own examples, NaN for none; used where there is but one
            seed, or where all values are equal and so say nothing of their spread.
        limits: Within which the number lies by its nature.
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        (lower, upper), basis = intervals[0], "one seed"
    elif max(values) == min(values):
        mean = values[0]
        known = [pair for pair in intervals if not math.isnan(pair[0] + pair[1])]
        lower, upper = max(known, key=lambda pair: pair[1] - pair[0], default=_NO_INTERVAL)
        basis = "equal seeds"
    else:
        lower, upper = t_interval(values)
        lower, upper, basis = max(limits[0], lower), min(limits[1], upper), "seeds"
    if math.isnan(lower + upper):
        basis = "none"
    return OverSeeds(tuple(seeds), tuple(values), tuple(n), mean, lower, upper, basis)


def rate_over_seeds(seeds: Sequence[int], rates: Sequence[Rate]) -> OverSeeds:
    """A rate over seeds, kept within 0 and 1."""
    return _measured(seeds, rates, (0.0, 1.0))


def _measured(
    seeds: Sequence[int],
    numbers: Sequence[Rate | Loss],
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> OverSeeds:
    return over_seeds(
        seeds,
        [number.mean for number in numbers],
        [number.n for number in numbers],
        [(number.lower, number.upper) for number in numbers],
        limits,
    )


def gain_over_seeds(seeds: Sequence[int], gains: Sequence[GainKept | None]) -> OverSeeds | None:
    """Gain kept over the seeds in which it is known and defined; None if it is in none."""
    known = [
        (seed, gain)
        for seed, gain in zip(seeds, gains, strict=True)
        if gain is not None and not math.isnan(gain.value)
    ]
    if not known:
        return None
    return over_seeds(
        [seed for seed, _ in known],
        [gain.value for _, gain in known],
        [0] * len(known),
        [(gain.lower, gain.upper) for _, gain in known],
    )


_NO_INTERVAL = (math.nan, math.nan)
_DRAW = ("seed", "data.label_seed")
Draw = tuple[int, int]  # the two of them


def _draw(leaves: Mapping[str, Any]) -> Draw:
    seed, own = leaves[_DRAW[0]], leaves[_DRAW[1]]
    return int(seed), int(seed if own is None else own)


def _shared_name(names: Sequence[str]) -> str:
    """What the names of a group's runs have in common, or the first one's."""
    plain = [name.rpartition("@")[0] if "@" in name else name for name in names]
    if len(set(plain)) == 1:
        return plain[0] if len(plain) > 1 else names[0]
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*plain, strict=False))
    shared = "".join(column[0] for column in letters)
    for ending in ("seed", "s"):
        bare = shared.rstrip("-_. ")
        if bare.endswith((f"-{ending}", f"_{ending}", f".{ending}")):
            shared = bare.removesuffix(ending)
    return shared.rstrip("-_. ") or plain[0]


def _group(name: str, members: Sequence[RunResults], runs: Sequence[RunResults]) -> Group:
    seeds = tuple(run.seed for run in members)
    config = members[0].config
    cells = [(run.seed, mode, cell) for run in members for mode, cell in run.cells.items()]
    rates: dict[tuple[str, str], list[tuple[int, Rate]]] = {}
    accuracy: dict[tuple[str, str], list[tuple[int, Rate]]] = {}
    losses: dict[tuple[str, str], list[tuple[int, Loss]]] = {}
    for seed, mode, cell in cells:
        for kind, rate in cell.rates.items():
            rates.setdefault((mode, kind), []).append((seed, rate))
        for kind, right in cell.accuracy.items():
            accuracy.setdefault((mode, kind), []).append((seed, right))
        for dataset, loss in cell.loss.items():
            losses.setdefault((mode, dataset), []).append((seed, loss))
    gains = [gain_kept(run, gain_reference(run, runs)) for run in members]
    return Group(
        name=name,
        role=members[0].role,
        control=config.get("control"),
        control_of=config.get("control_of"),
        runs=tuple(run.name for run in members),
        seeds=seeds,
        rates={cell: rate_over_seeds(*zip(*of, strict=True)) for cell, of in rates.items()},
        accuracy={cell: rate_over_seeds(*zip(*of, strict=True)) for cell, of in accuracy.items()},
        losses={cell: _measured(*zip(*of, strict=True)) for cell, of in losses.items()},
        gain_kept=gain_over_seeds(seeds, gains),
        gain_against=tuple(gain.against for gain in gains if gain is not None),
        precision=_precision(members),
        judged_on=members[0].judged_on,
    )


def _precision(members: Sequence[RunResults]) -> OverSeeds | None:
    """Share of the labels `bad` that are right; the spread over seeds is that of the draw."""
    known = []
    for run in members:
        labels = run.manifest.get("labels") or {}
        if labels.get("precision") is not None:
            known.append((run.seed, labels["precision"], labels["labeled_bad"]))
    if not known:
        return None
    seeds, values, n = zip(*known, strict=True)
    return over_seeds(seeds, values, n, [_NO_INTERVAL] * len(known), (0.0, 1.0))
