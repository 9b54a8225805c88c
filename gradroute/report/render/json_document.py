"""The comparison as one nested JSON document, for other programs to read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gradroute.report.judge.comparison import Comparison, SingleBehaviorComparison
from gradroute.report.results.contrasts import (
    controls_of,
    gain_kept,
    gain_reference,
    localization,
    loss_difference,
    rate_difference,
)
from gradroute.report.results.elicitation import elicited
from gradroute.report.results.run_results import Cell, Rate, RunResults
from gradroute.report.results.scales import Deployment
from gradroute.report.results.seeds import Group, OverSeeds
from gradroute.runs.results import LEARNED_RATE, PREFIX

DOCUMENT_VERSION = 2
"""Of the layout below; raised when a reader of the old one would misread it."""


def eval_multi(comparison: Comparison) -> dict[str, Any]:
    """Everything that is known of the runs, as plain values (NaN for what is not known).

    `runs.<run>.<mode>` holds `behavior_rate` {mean, lower, upper, n}, `behavior_score` {mean},
    `too_short` and `changed_from_full` of the prompts that draw the behavior (`judged_on` names
    their kind where it is not `prefix`),
    `prompts.<kind>` the same of every kind of prompts, with `accuracy` where there is such a
    thing, and `held_out_loss.{normal,behavior}` {mean, lower, upper, std, n}: mean over target
    tokens in nats, std over examples. Beside the modes stand `geometry`, `labels`, `role`, `step`,
    `seed`, `config` and `provenance`.

    `comparisons.<run>` holds the numbers that take several cells, `verdicts` the judgments run by
    run, `groups` the same over seeds (`rates.<mode>.<kind>`, `losses.<mode>.<dataset>`,
    `gain_kept`), `claims` routed groups beside their controls (`information` has the labels of both
    sides, `not_beaten` whether a control with no more of them does as well), `tests` modes on the
    same prompts, `findings.<run>` what gain kept points to, `deployment.<run>` the scale to deploy,
    `relearning` and `recovered` what came back. With several behaviors in a run `crossings` holds
    the matrices, `elicitation` the rates over kinds of prompts, where they were asked, and
    `runs.<run>.behaviors.<label>.<mode>` what is above under `runs.<run>.<mode>`.
    `behavior_rate` and the like over seeds are {seeds, values, n, mean, lower, upper, basis}.
    """
    runs = comparison.runs
    # These keys are there of several behaviors too, so that a reader finds a list or an object.
    judged: dict[str, Any] = {"claims": [], "tests": [], "findings": {}, "deployment": {}}
    crossings = {}
    if isinstance(comparison, SingleBehaviorComparison):
        judged = _judged(comparison)
    else:
        crossings = {"crossings": [asdict(one) for one in comparison.crossings]}
    return {
        "schema_version": DOCUMENT_VERSION,
        "behavior": comparison.behavior,
        "runs": {run.name: _run(run) for run in runs},
        "comparisons": {run.name: _comparison(run, runs) for run in runs},
        "verdicts": [verdict.to_plain() for verdict in comparison.verdicts],
        "groups": [_group(group) for group in comparison.groups],
        **judged,
        "relearning": [
            {key: value for key, value in asdict(one).items() if (key, value) != ("of_rates", None)}
            for one in comparison.relearning
        ],
        "recovered": [
            asdict(one) | {"rate": one.rate and one.rate._asdict()} for one in comparison.recovered
        ],
        "notes": list(comparison.notes),
        **crossings,
        **_elicited(comparison.runs),
    }


def _elicited(runs: Sequence[RunResults]) -> dict[str, Any]:
    """The elicitation grid, where it was asked."""
    found = [asdict(one) | {"highest": one.highest[0]} for one in elicited(runs)]
    return {"elicitation": found} if found else {}


def _judged(comparison: SingleBehaviorComparison) -> dict[str, Any]:
    return {
        "claims": [
            asdict(claim)
            | {
                "information": claim.information._asdict(),
                "rival": claim.rival,
                "not_beaten": claim.not_beaten,
                "sentence": claim.sentence,
            }
            for claim in comparison.claims
        ],
        "tests": [
            asdict(test) | {"difference": test.difference._asdict()} for test in comparison.tests
        ],
        "findings": {
            run: [asdict(finding) for finding in findings]
            for run, findings in comparison.findings.items()
        },
        "deployment": {run: _deployment(found) for run, found in comparison.deployment.items()},
    }


def _run(run: RunResults) -> dict[str, Any]:
    random = run.random_cosine
    measured = run.geometry or {}
    cells = {mode: _cell(cell) for mode, cell in run.cells.items()}
    parts = {
        label: {mode: _cell(cell) for mode, cell in part.cells.items()}
        for label, part in run.parts.items()
    }
    return (
        cells
        | ({"behaviors": parts} if parts else {})
        | {
            "geometry": {
                "mean_absolute_cosine": run.cosine,
                "random": random and random._asdict(),
                "cosines": dict(run.cosines),
                "summary": measured.get("summary"),
                "random_subspaces": measured.get("random"),
            },
            "labels": run.manifest.get("labels"),
            "role": run.role,
            "step": run.step,
            "seed": run.seed,
            "config": dict(run.config),
            "provenance": dict(run.provenance),
        }
        | ({} if run.learned == LEARNED_RATE else {"learned": run.learned})
    )


def _cell(cell: Cell) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if cell.judged_on in cell.rates:
        entry |= _prompts(cell, cell.judged_on) | {"changed_from_full": cell.changed}
    kinds = {kind: _prompts(cell, kind) for kind in cell.rates}
    losses = {name: loss._asdict() for name, loss in cell.loss.items()}
    judged = {} if cell.judged_on == PREFIX else {"judged_on": cell.judged_on}
    return entry | judged | {"prompts": kinds, "held_out_loss": losses}


def _prompts(cell: Cell, kind: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "behavior_rate": cell.rates[kind]._asdict(),
        "behavior_score": {"mean": cell.scores.get(kind)},
        "too_short": cell.unjudged.get(kind),
    }
    right: Rate | None = cell.accuracy.get(kind)
    return entry if right is None else entry | {"accuracy": right._asdict()}


def _comparison(run: RunResults, runs: Sequence[RunResults]) -> dict[str, Any]:
    controls = controls_of(run, runs)
    baseline, unrouted = controls.get("baseline"), controls.get("unrouted")
    kept, local = gain_kept(run, gain_reference(run, runs)), localization(run)
    above = None
    if unrouted is not None:
        above = loss_difference((run, "bad_ablated"), (unrouted, "bad_ablated"), "behavior")
    reference = baseline.rate("full") if baseline else run.rate("base")
    return {
        "controls": {role: other.name for role, other in controls.items()},
        "gain_kept": kept and kept._asdict(),
        "localization": local and local._asdict(),
        "behavior_loss_above_unrouted": above and above._asdict(),
        "rate_above": {
            "reference": baseline.name if baseline else "its own base",
            "modes": {
                mode: gap._asdict()
                for mode in run.cells
                if (gap := rate_difference(run.rate(mode), reference)) is not None
            },
        },
    }


def _group(group: Group) -> dict[str, Any]:
    plain = asdict(group)
    if group.judged_on == PREFIX:
        del plain["judged_on"]
    return plain | {
        "rates": _nested(group.rates),
        "accuracy": _nested(group.accuracy),
        "losses": _nested(group.losses),
    }


def _nested(cells: Mapping[tuple[str, str], OverSeeds]) -> dict[str, dict[str, Any]]:
    """(mode, of what) -> number, as mode -> of what -> number."""
    nested: dict[str, dict[str, Any]] = {}
    for (mode, what), number in cells.items():
        nested.setdefault(mode, {})[what] = asdict(number)
    return nested


def _deployment(found: Deployment) -> dict[str, Any]:
    point = found.point
    return {
        "scale": found.scale,
        "mode": point and point.mode,
        "rate": point and point.rate and point.rate._asdict(),
        "normal_loss": point and point.normal and point.normal._asdict(),
        "limit": found.limit,
        "reference": found.reference,
        "measured": found.measured,
        "sentence": found.sentence,
        "warning": found.warning,
    }
