"""From result rows to the numbers of a comparison of runs; plain Python, no torch.

The rows that count:

    metric            dataset            value
    behavior_rate     prompts            share of completions that show the behaviour
    behavior_score    prompts            mean score of those long enough to judge
    too_short         prompts            number of completions too short to judge (not shown)
    held_out_loss     normal, behavior   nats per target token
    update_cosine     a module's name    cosine of the updates of `good` and `bad`
    random_cosine     modules            mean absolute cosine of random updates of these shapes

Where losses of single examples are at hand, differences of losses are paired by example; otherwise
the intervals of two means are combined as if independent, which is too wide, not too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gradroute.errors import DataError
from gradroute.report.roles import Config, find_controls, role_of
from gradroute.results import Result
from gradroute.statistics import difference, ratio, ratio_mean

Record = Mapping[str, Any]


class Rate(NamedTuple):
    """A share of `n` completions with its interval."""

    mean: float
    lower: float
    upper: float
    n: int

    @property
    def shown(self) -> int:
        """How many of the `n` show the behaviour."""
        return round(self.mean * self.n)


class Loss(NamedTuple):
    """Mean loss per target token in nats, interval and standard deviation over n examples."""

    mean: float
    lower: float
    upper: float
    std: float
    n: int


class Estimate(NamedTuple):
    """A number derived from others, with its interval (NaN where none can be given)."""

    value: float
    lower: float = math.nan
    upper: float = math.nan


class GainKept(NamedTuple):
    """Share of what tuning gains in held-out normal loss that is left when `bad` is ablated.

    Attributes:
        value: (base - ablated) / (base - reference), in losses; NaN if the reference gains nothing.
        lower: Of the 95 % interval; NaN if losses of single examples are not at hand.
        upper: Likewise.
        mode: The mode that is judged: `bad_ablated`, or `full` in a run that has nothing to ablate.
        against: What the gain is measured against: the baseline run's name, or "own full".
    """

    value: float
    lower: float
    upper: float
    mode: str
    against: str


@dataclass(frozen=True)
class Cell:
    """What was measured of one run under one mode; None or no entry where it was not.

    Attributes:
        rate: Behaviour rate.
        score: Mean behaviour score of the completions long enough to judge.
        too_short: Completions too short to judge.
        changed: Share of completions that differ from those under `full`.
        loss: Held-out loss by dataset, `normal` and `behavior`.
    """

    rate: Rate | None
    score: float | None
    too_short: int | None
    changed: float | None
    loss: Mapping[str, Loss]


@dataclass(frozen=True)
class RunResults:
    """One run of a comparison.

    Attributes:
        name: The run's name.
        role: What it is in a comparison, see `roles.role_of`.
        config: Its resolved configuration.
        step: Of the checkpoint that was measured.
        seed: Of the run.
        cells: By mode.
        cosines: Cosine of the updates of `good` and `bad`, by module; empty with one adapter.
        random_cosine: Mean absolute cosine of random updates, with the extremes of the draws.
        examples: (mode, dataset) -> example id -> its summed loss and number of target tokens.
        provenance: Where the measurement was made.
    """

    name: str
    role: str
    config: Config
    step: int
    seed: int
    cells: Mapping[str, Cell]
    cosines: Mapping[str, float] = field(default_factory=dict)
    random_cosine: Estimate | None = None
    examples: Mapping[tuple[str, str], Mapping[str, tuple[float, int]]] = field(
        default_factory=dict
    )
    provenance: Record = field(default_factory=dict)

    @property
    def cosine(self) -> float | None:
        """Mean of the modules' absolute cosines; None if there is none."""
        known = [abs(cosine) for cosine in self.cosines.values()]
        return sum(known) / len(known) if known else None

    def rate(self, mode: str) -> Rate | None:
        """Behaviour rate under a mode, if it was measured."""
        return self.cells[mode].rate if mode in self.cells else None

    def loss(self, mode: str, dataset: str) -> Loss | None:
        """Held-out loss under a mode, if it was measured."""
        return self.cells[mode].loss.get(dataset) if mode in self.cells else None


def collect_runs(
    rows: Sequence[Result],
    configs: Mapping[str, Config],
    *,
    provenance: Mapping[str, Record],
    samples: Mapping[str, Sequence[Record]],
    losses: Mapping[str, Sequence[Record]],
) -> list[RunResults]:
    """Sort what was measured into runs, in the order of `configs`.

    Args:
        rows: Result rows of all runs; of each run the last step counts.
        configs: Resolved configuration of every run, by name.
        provenance: By run; may be empty.
        samples: By run the records of `samples.jsonl` (mode, prompt_id, completion, ...); may be
            empty, then nobody knows whether modes differ.
        losses: By run the records of `losses.jsonl` (mode, dataset, id, nll, tokens); may be
            empty, then differences of losses are not paired.

    Raises:
        DataError: A row belongs to no configuration, or two rows give one number two values.
    """
    for row in rows:
        if row.run not in configs:
            raise DataError(
                f"a result row names the run {row.run!r}, which has no configuration here; "
                "evaluate that run again, or leave its results out."
            )
    return [
        _run_results(
            name,
            config,
            [row for row in rows if row.run == name],
            _changed(samples.get(name, ())),
            _by_example(losses.get(name, ())),
            provenance.get(name, {}),
        )
        for name, config in configs.items()
    ]


def _run_results(
    name: str,
    config: Config,
    rows: Sequence[Result],
    changed: Mapping[str, float],
    examples: Mapping[tuple[str, str], Mapping[str, tuple[float, int]]],
    provenance: Record,
) -> RunResults:
    step = max((row.step for row in rows), default=0)
    rows = [row for row in rows if row.step == step]
    by_mode: dict[str, dict[tuple[str, str], Result]] = {}
    cosines: dict[str, float] = {}
    random: Estimate | None = None
    for row in rows:
        if row.metric == "update_cosine":
            if row.value is not None:
                cosines[row.dataset] = row.value
        elif row.metric == "random_cosine":
            random = Estimate(*_interval(row))
        else:
            cell = by_mode.setdefault(row.mode, {})
            first = cell.setdefault((row.metric, row.dataset), row)
            if first.value != row.value:
                raise DataError(
                    f"run {name!r} has two values of {row.metric} under {row.mode} ({first.value} "
                    f"and {row.value}); delete its eval folder and evaluate it again."
                )
    return RunResults(
        name=name,
        role=role_of(config),
        config=config,
        step=step,
        seed=int(config["seed"]),
        cells={mode: _cell(cell, changed.get(mode)) for mode, cell in by_mode.items()},
        cosines=cosines,
        random_cosine=random,
        examples=examples,
        provenance=provenance,
    )


def _cell(numbers: Mapping[tuple[str, str], Result], changed: float | None) -> Cell:
    rate = numbers.get(("behavior_rate", "prompts"))
    score = numbers.get(("behavior_score", "prompts"))
    too_short = numbers.get(("too_short", "prompts"))
    return Cell(
        rate=None if rate is None else Rate(*_interval(rate), rate.n),
        score=None if score is None else score.value,
        too_short=None if too_short is None else round(_number(too_short.value)),
        changed=changed,
        loss={
            dataset: Loss(*_interval(row), _number(row.std), row.n)
            for (metric, dataset), row in numbers.items()
            if metric == "held_out_loss"
        },
    )


def _interval(row: Result) -> tuple[float, float, float]:
    return _number(row.value), _number(row.lower), _number(row.upper)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _changed(samples: Sequence[Record]) -> dict[str, float]:
    """Share of each mode's completions that differ from that of `full` to the same prompt."""
    by_mode: dict[str, dict[str, str]] = {}
    for row in samples:
        by_mode.setdefault(row["mode"], {})[row["prompt_id"]] = row["completion"]
    full = by_mode.pop("full", {})
    changed = {}
    for mode, written in by_mode.items():
        both = written.keys() & full.keys()
        if both:
            changed[mode] = sum(written[prompt] != full[prompt] for prompt in both) / len(both)
    return changed


def _by_example(losses: Sequence[Record]) -> dict[tuple[str, str], dict[str, tuple[float, int]]]:
    examples: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
    for row in losses:
        cell = examples.setdefault((row["mode"], row["dataset"]), {})
        cell[row["id"]] = (row["nll"], row["tokens"])
    return examples


def rate_difference(first: Rate | None, second: Rate | None) -> Estimate | None:
    """First rate minus second, with Newcombe's interval; None if one was not measured."""
    if first is None or second is None:
        return None
    interval = difference(first.shown, first.n, second.shown, second.n)
    return Estimate(first.mean - second.mean, *interval)


def loss_difference(
    first: RunResults, second: RunResults, mode: str, dataset: str
) -> Estimate | None:
    """Loss of the first run minus that of the second under one mode; None if one is missing."""
    gap = _paired_gap((first, mode), (second, mode), dataset)
    if gap is not None:
        return Estimate(*ratio_mean(*gap)[:3])
    a, b = first.loss(mode, dataset), second.loss(mode, dataset)
    if a is None or b is None:
        return None
    value = a.mean - b.mean
    lower = value - math.hypot(a.mean - a.lower, b.upper - b.mean)
    upper = value + math.hypot(a.upper - a.mean, b.mean - b.lower)
    return Estimate(value, lower, upper)


def _paired_gap(
    first: tuple[RunResults, str], second: tuple[RunResults, str], dataset: str
) -> tuple[list[float], list[int]] | None:
    """First minus second summed loss of each example, and its tokens; None if not the same ones."""
    one, two = (run.examples.get((mode, dataset), {}) for run, mode in (first, second))
    if not one or {i: n for i, (_, n) in one.items()} != {i: n for i, (_, n) in two.items()}:
        return None
    return [one[i][0] - two[i][0] for i in one], [n for _, n in one.values()]


def localization(run: RunResults) -> Estimate | None:
    """rate(good_ablated) - rate(bad_ablated): how much of the behaviour goes with `bad`."""
    return rate_difference(run.rate("good_ablated"), run.rate("bad_ablated"))


def gain_kept(run: RunResults, baseline: RunResults | None) -> GainKept | None:
    """How much of the gain in held-out normal loss is left (see `GainKept`).

    Args:
        run: The run; its mode `bad_ablated` is judged, or `full` if it has no such mode.
        baseline: The run that never saw the behaviour; None measures against the run's own full.

    Returns:
        None if a loss that it takes was not measured.
    """
    mode = "bad_ablated" if "bad_ablated" in run.cells else "full"
    reference, against = (run, "own full") if baseline is None else (baseline, baseline.name)
    base, kept = run.loss("base", "normal"), run.loss(mode, "normal")
    best = reference.loss("full", "normal")
    if base is None or kept is None or best is None:
        return None
    gain, possible = base.mean - kept.mean, base.mean - best.mean
    if possible <= 0:
        return GainKept(math.nan, math.nan, math.nan, mode, against)
    gains = _paired_gap((run, "base"), (run, mode), "normal")
    possibles = _paired_gap((run, "base"), (reference, "full"), "normal")
    if gains is None or possibles is None or len(gains[0]) < 2:
        return GainKept(gain / possible, math.nan, math.nan, mode, against)
    if ratio_mean(*possibles).lower <= 0:  # no gain to speak of, so no share of it
        return GainKept(math.nan, math.nan, math.nan, mode, against)
    return GainKept(*ratio(gains[0], possibles[0]), mode, against)


def controls_of(run: RunResults, runs: Sequence[RunResults]) -> dict[str, RunResults]:
    """The runs that a run is compared with, by role: `baseline`, `unrouted`, `filter`."""
    by_name = {other.name: other for other in runs}
    found = find_controls(run.name, {other.name: other.config for other in runs})
    return {role: by_name[name] for role, name in found._asdict().items() if name is not None}
