"""The numbers of a comparison of runs from result rows; plain Python, no torch.

The rows that count:

    metric            dataset            value
    behavior_rate     kind of prompts    share of completions that show the behavior
    behavior_score    kind of prompts    mean score of those long enough to judge
    too_short         kind of prompts    number of completions too short to judge (not shown)
    accuracy          kind of prompts    share of completions that are the one right answer
    held_out_loss     normal, behavior   nats per target token
    update_cosine     a module's name    cosine of the updates of `good` and `bad`
    random_cosine     modules            mean absolute cosine of random updates of these shapes

What follows from several of these numbers is in `contrasts`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from gradroute.errors import DataError
from gradroute.report.results.roles import Config, Facts, facts_of, judged_kind, role_of
from gradroute.runs.results import HELD_OUT_BAD, LEARNED_RATE, PREFIX, Result

Record = Mapping[str, Any]
Examples = Mapping[tuple[str, str], Mapping[str, tuple[float, int]]]
"""(mode, dataset) -> example id -> its summed loss and number of target tokens."""


class Rate(NamedTuple):
    """A share of `n` completions with its interval."""

    mean: float
    lower: float
    upper: float
    n: int

    @property
    def shown(self) -> int:
        """How many of the `n` show the behavior."""
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


@dataclass(frozen=True)
class Cell:
    """What was measured of one run under one mode; no entry where it was not.

    The kinds of prompts are those of `gradroute eval --prompts`: `prefix`, `plain`,
    `held_out_bad`, `bos`, or `file:<name>`.

    Attributes:
        rates: Behavior rate by kind of prompt.
        scores: Mean behavior score of the completions long enough to judge, by kind of prompt;
            None where none was.
        unjudged: Completions too short to judge, by kind of prompt; the rate counts them as not
            shown.
        accuracy: Share of completions that are the one right answer, by kind of prompt; only for
            behaviors that have such a thing.
        changed: Share of completions of the prompts that are judged that differ from those under
            `full`.
        loss: Held-out loss by dataset, `normal` and `behavior`.
        judged_on: The kind of prompts whose rate is judged: those that draw the behavior.
    """

    rates: Mapping[str, Rate] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    unjudged: Mapping[str, int] = field(default_factory=dict)
    accuracy: Mapping[str, Rate] = field(default_factory=dict)
    changed: float | None = None
    loss: Mapping[str, Loss] = field(default_factory=dict)
    judged_on: str = PREFIX

    @property
    def rate(self) -> Rate | None:
        """Behavior rate on the prompts that draw it."""
        return self.rates.get(self.judged_on)

    @property
    def ordinary(self) -> Rate | None:
        """Behavior rate on ordinary prompts.

        An older gradroute called them `prefix` where a behavior has no invitation.
        """
        older = None if self.judged_on == PREFIX else self.rates.get(PREFIX)
        return self.rates.get("plain", older)


@dataclass(frozen=True)
class RunResults:
    """One run of a comparison.

    Attributes:
        name: The run's name; `<name>@<seed>` where two folders have one name.
        role: What it is in a comparison, see `roles.role_of`.
        config: Its resolved configuration.
        step: Of the checkpoint that was measured.
        seed: Of the run.
        cells: By mode.
        cosines: Cosine of the updates of `good` and `bad`, by module; empty with one adapter.
        random_cosine: Mean absolute cosine of random updates, with the extremes of the draws.
        examples: Losses of single examples, see `Examples`.
        outcomes: (mode, kind of prompts) -> prompt id -> whether its completion shows the
            behavior; one that is too short to judge does not.
        provenance: Where the measurement was made.
        samples: Lines of `samples.jsonl`: mode, prompts (their kind), prompt_id, prompt,
            completion, tokens, ended, score, shows, and correct where there is such a thing.
        metrics: Lines of `metrics.jsonl`, one per step of training.
        measures: Lines of `during.jsonl`, one per measurement during training and mode.
        manifest: `manifest.json`: data and base identity, label counts, quality of labels, notes.
        geometry: `geometry.json`; None where `gradroute geometry` was not run.
        relearn: `relearn.json`; None where `gradroute relearn` was not run.
        recovery: `recover.json`; None where `gradroute recover` was not run.
        parts: Label -> the same run as one of that behavior alone, where it has several; what is
            measured of a behavior stands there and not in the cells of the whole.
        judged_on: The kind of prompts whose behavior rate is judged: `prefix`, which invite it, or
            `held_out_bad` of a behavior without an invitation.
        unasked: Kind of prompts -> why there are none of it.
        seen: In how many held-out rows that show the behavior its detector sees it, `shown` of `n`;
            empty where nobody looked.
        learned: Behavior rate under `full` from which it counts as learned.
    """

    name: str
    role: str
    config: Config
    step: int
    seed: int
    cells: Mapping[str, Cell]
    cosines: Mapping[str, float] = field(default_factory=dict)
    random_cosine: Estimate | None = None
    examples: Examples = field(default_factory=dict)
    outcomes: Mapping[tuple[str, str], Mapping[str, bool]] = field(default_factory=dict)
    provenance: Record = field(default_factory=dict)
    samples: tuple[Record, ...] = ()
    metrics: tuple[Record, ...] = ()
    measures: tuple[Record, ...] = ()
    manifest: Record = field(default_factory=dict)
    geometry: Record | None = None
    relearn: Record | None = None
    recovery: Record | None = None
    parts: Mapping[str, "RunResults"] = field(default_factory=dict)
    judged_on: str = PREFIX
    unasked: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)
    learned: float = LEARNED_RATE

    @property
    def cosine(self) -> float | None:
        """Mean of the modules' absolute cosines; None if there is none."""
        known = [abs(cosine) for cosine in self.cosines.values()]
        return sum(known) / len(known) if known else None

    @cached_property
    def facts(self) -> Facts:
        """What its controls are found by."""
        return facts_of(self.config)

    @property
    def why_unjudged(self) -> str:
        """Why no behavior rate can be judged, where prompts of held-out bad rows were not asked."""
        rated = any(HELD_OUT_BAD in cell.rates for cell in self.cells.values())
        if self.judged_on != HELD_OUT_BAD or rated or self.parts:
            return ""
        asked = "they were not used yet; gradroute eval RUN measures it"
        return self.unasked.get(HELD_OUT_BAD, asked)

    def rate(self, mode: str, kind: str | None = None) -> Rate | None:
        """Behavior rate under a mode, if it was measured.

        Without a kind, on the prompts that are judged.
        """
        if mode not in self.cells:
            return None
        return self.cells[mode].rates.get(kind or self.judged_on)

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
        _collected(
            name,
            config,
            [row for row in rows if row.run == name],
            samples.get(name, ()),
            losses.get(name, ()),
            provenance.get(name, {}),
        )
        for name, config in configs.items()
    ]


def by_behavior(runs: Sequence[RunResults]) -> list[RunResults]:
    """Every run as one of a single behavior: its parts where it has several, else itself."""
    return [part for run in runs for part in (run.parts.values() or [run])]


def _collected(
    name: str,
    config: Config,
    rows: Sequence[Result],
    samples: Sequence[Record],
    losses: Sequence[Record],
    provenance: Record,
) -> RunResults:
    """A run, and where it has several behaviors each of them as a run of its own."""
    if not isinstance(config["behavior"], Mapping):
        return _run_results(name, config, rows, samples, _by_example(losses), provenance, "all")
    common = [line for line in losses if "label" not in line]
    parts = {}
    for label in config["behavior"]:
        own = [line for line in losses if line.get("label") == label]
        parts[label] = _run_results(
            f"{name} ({label})",
            config,
            [row for row in rows if row.label in ("all", label)],
            [line for line in samples if line.get("label") == label],
            _by_example([*common, *own]),
            provenance,
            label,
        )
    shared = [row for row in rows if row.label == "all"]
    whole = _run_results(name, config, shared, (), _by_example(common), provenance, None)
    return replace(whole, samples=tuple(samples), parts=parts)


def _run_results(
    name: str,
    config: Config,
    rows: Sequence[Result],
    samples: Sequence[Record],
    examples: Examples,
    provenance: Record,
    label: str | None,
) -> RunResults:
    """A run as one of the behavior of a label, `all` for its only one, None for none of several."""
    kind = PREFIX if label is None else judged_kind(config, label, provenance)
    step = max((row.step for row in rows), default=0)
    rows = [row for row in rows if row.step == step]
    changed = _changed(samples, kind)
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
        cells={mode: _cell(cell, changed.get(mode), kind) for mode, cell in by_mode.items()},
        cosines=cosines,
        random_cosine=random,
        examples=examples,
        outcomes=_outcomes(samples),
        provenance=provenance,
        samples=tuple(samples),
        judged_on=kind,
        unasked=(provenance.get("unasked") or {}).get(label, {}),
        seen=(provenance.get("seen") or {}).get(label, {}),
        learned=(provenance.get("learned") or {}).get(label, LEARNED_RATE),
    )


def _cell(numbers: Mapping[tuple[str, str], Result], changed: float | None, judged_on: str) -> Cell:
    def of(metric: str) -> dict[str, Result]:
        return {dataset: row for (name, dataset), row in numbers.items() if name == metric}

    return Cell(
        rates={kind: Rate(*_interval(row), row.n) for kind, row in of("behavior_rate").items()},
        scores={kind: row.value for kind, row in of("behavior_score").items()},
        unjudged={kind: round(_number(row.value)) for kind, row in of("too_short").items()},
        accuracy={kind: Rate(*_interval(row), row.n) for kind, row in of("accuracy").items()},
        changed=changed,
        loss={
            dataset: Loss(*_interval(row), _number(row.std), row.n)
            for dataset, row in of("held_out_loss").items()
        },
        judged_on=judged_on,
    )


def _interval(row: Result) -> tuple[float, float, float]:
    return _number(row.value), _number(row.lower), _number(row.upper)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _changed(samples: Sequence[Record], kind: str) -> dict[str, float]:
    """Share of each mode's completions that differ from that of `full` to the same prompt."""
    by_mode: dict[str, dict[str, str]] = {}
    for row in samples:
        if row["prompts"] == kind:
            by_mode.setdefault(row["mode"], {})[row["prompt_id"]] = row["completion"]
    full = by_mode.pop("full", {})
    changed = {}
    for mode, written in by_mode.items():
        both = written.keys() & full.keys()
        if both:
            changed[mode] = sum(written[prompt] != full[prompt] for prompt in both) / len(both)
    return changed


def _outcomes(samples: Sequence[Record]) -> dict[tuple[str, str], dict[str, bool]]:
    outcomes: dict[tuple[str, str], dict[str, bool]] = {}
    for row in samples:
        cell = outcomes.setdefault((row["mode"], row["prompts"]), {})
        cell[row["prompt_id"]] = row["shows"] is True
    return outcomes


def _by_example(losses: Sequence[Record]) -> Examples:
    examples: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
    for row in losses:
        cell = examples.setdefault((row["mode"], row["dataset"]), {})
        cell[row["id"]] = (row["nll"], row["tokens"])
    return examples
