"""The comparison of run folders, all parts of a report; reads files only, never torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradroute.report.judge.claims import Claim, judge_claims
from gradroute.report.judge.cross_ablation import (
    Crossing,
    behaviors_text,
    crossings,
    judge_crossings,
)
from gradroute.report.judge.gain_diagnosis import Finding, examine
from gradroute.report.judge.relearning import Recovered, Relearning, recoveries, relearnings
from gradroute.report.judge.verdicts import Verdict, judge
from gradroute.report.results.number_text import join_words
from gradroute.report.results.pairs import PairTest, pair_tests
from gradroute.report.results.reading import read_runs
from gradroute.report.results.roles import adapter_names, behavior_labels, not_comparable
from gradroute.report.results.run_results import RunResults, by_behavior
from gradroute.report.results.scales import Deployment, deployment
from gradroute.report.results.seeds import Group, group_runs
from gradroute.routing.policy import shipped_mode
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import ELICIT


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """What is known of compared runs, whatever the number of their behaviors.

    Attributes:
        behavior: The behavior that all of them are about; of several, all in words.
        runs: In the order in which they were named.
        verdicts: The claims of the method, run by run.
        groups: Runs that differ in their seed alone, in the order of their first run.
        relearning: Every run that was attacked by fine-tuning, at every learning rate.
        recovered: Every run that was tuned after ablation, mode by mode.
        notes: What was ignored or is missing, counted, one sentence each.
    """

    behavior: str
    runs: tuple[RunResults, ...]
    verdicts: tuple[Verdict, ...]
    groups: tuple[Group, ...]
    relearning: tuple[Relearning, ...]
    recovered: tuple[Recovered, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SingleBehaviorComparison(_Compared):
    """Runs of one behavior, with the adapters `good` and `bad` or one of them.

    Attributes:
        claims: Routed groups beside their controls, over seeds and at equal gain kept.
        tests: `full` against the other modes of each run on the same prompts.
        findings: By run, what its gain kept points to; runs that are not routed have none.
        deployment: By run, the scale of `bad` to deploy; runs that are not routed have none.
    """

    claims: tuple[Claim, ...]
    tests: tuple[PairTest, ...]
    findings: Mapping[str, tuple[Finding, ...]]
    deployment: Mapping[str, Deployment]


@dataclass(frozen=True, kw_only=True)
class MultiBehaviorComparison(_Compared):
    """Runs with the same several behaviors, each of which may have an adapter of its name.

    Attributes:
        crossings: By group, the rate of each behavior without each adapter.
    """

    crossings: tuple[Crossing, ...]


Comparison = SingleBehaviorComparison | MultiBehaviorComparison
"""What is known of several runs, ready to be written, drawn or printed."""


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Read measured runs and compare them.

    Raises:
        ConfigError: No run is given, two runs are of different behaviors, or two have one name
            and one seed.
        DataError: A run was not evaluated, or a file of it is damaged or of a newer schema.
    """
    return comparison_of(read_runs(folders))


def comparison_of(runs: Sequence[RunResults]) -> Comparison:
    """Compare runs of one behavior, or of the same several, that have been read; at least one."""
    return multi_behavior_comparison(runs) if runs[0].parts else single_behavior_comparison(runs)


def single_behavior_comparison(runs: Sequence[RunResults]) -> SingleBehaviorComparison:
    """Compare runs of one behavior that have been read; at least one."""
    groups = group_runs(runs)
    found = {run.name: examine(run, runs) for run in runs}
    chosen = {run.name: deployment(run, runs) for run in runs}
    return SingleBehaviorComparison(
        behavior=str(runs[0].config["behavior"]),
        runs=tuple(runs),
        verdicts=tuple(judge(runs)),
        groups=tuple(groups),
        claims=tuple(judge_claims(runs, groups)),
        tests=tuple(pair_tests(runs)),
        findings={name: findings for name, findings in found.items() if findings},
        deployment={name: scale for name, scale in chosen.items() if scale is not None},
        relearning=tuple(relearnings(runs)),
        recovered=tuple(recoveries(runs)),
        notes=tuple(_notes(runs)),
    )


def multi_behavior_comparison(runs: Sequence[RunResults]) -> MultiBehaviorComparison:
    """Compare runs of the same several behaviors that have been read; at least one."""
    groups = group_runs(runs)
    parts = by_behavior(runs)
    return MultiBehaviorComparison(
        behavior=behaviors_text(runs[0]),
        runs=tuple(runs),
        verdicts=tuple(judge_crossings(runs)),
        groups=tuple(groups),
        relearning=tuple(relearnings(parts)),
        recovered=tuple(recoveries(parts)),
        notes=tuple(_notes(parts)),
        crossings=tuple(crossings(runs, groups)),
    )


def _notes(runs: Sequence[RunResults]) -> list[str]:
    """What a reader of the numbers would otherwise not know."""
    notes = []
    for run in runs:
        steps = run.config["train"]["max_steps"]
        if run.cells and run.step < steps:
            notes.append(f"{run.name} was measured at step {run.step} of {steps}.")
        notes += _too_short(run)
        shipped = shipped_mode(adapter_names(run.config), behavior_labels(run.config))
        mode = "bad_ablated" if shipped is None else shipped.name
        if run.why_unjudged:
            notes.append(
                f"{run.name}: the behavior rate on prompts of held-out bad rows is not measured: "
                f"{run.why_unjudged}."
            )
        elif run.role == "routed" and run.rate(mode) is None:
            notes.append(
                f"{run.name} was not measured under {mode}, so no claim is made about it; "
                f"gradroute eval RUN --mode {mode}."
            )
    notes += _no_controls(runs)
    unchecked = [run.name for run in runs if run.cells and not (run.samples and run.examples)]
    if unchecked:
        notes.append(
            f"{', '.join(unchecked)}: no per-example results, so the differences are unpaired, and "
            f"the rates and losses could not be computed again."
        )
    return notes


def _too_short(run: RunResults) -> list[str]:
    """Completions that nobody can judge, a sentence per kind of prompts; one for the whole grid."""
    notes, most = [], 0
    for kind in dict.fromkeys(kind for cell in run.cells.values() for kind in cell.unjudged):
        short = {mode: cell.unjudged.get(kind, 0) for mode, cell in run.cells.items()}
        if kind.startswith(ELICIT):
            most = max(most, *short.values())
        elif named := ", ".join(f"{mode} {count}" for mode, count in short.items() if count):
            notes.append(
                f"{run.name}, {kind}: too short to judge, and so counted as not shown: {named}."
            )
    if most:
        notes.append(
            f"{run.name}, elicitation grid: up to {most} completions of a kind and mode are too "
            "short to judge, and so counted as not shown."
        )
    return notes


def _no_controls(runs: Sequence[RunResults]) -> list[str]:
    """Runs that look like a control of a routed run, and did another task or were asked others."""
    facts = {run.name: run.facts for run in runs}
    return [
        f"{found.name} is not a control ({found.role}) of {run.name}, so nothing is claimed "
        f"against it: the two differ in {join_words(list(found.fields))}."
        for run in runs
        if run.role == "routed"
        for found in not_comparable(run.name, facts)
    ]
