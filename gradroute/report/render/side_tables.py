"""Tables beside rates and losses: labels, geometry, revival, deployment."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.report.judge.comparison import Comparison
from gradroute.report.render.table_cells import (
    Cell,
    Table,
    count_cell,
    loss_cell,
    number_cell,
    percent_cell,
    pointer,
    points_cell,
    rate_cell,
    steps_cell,
)
from gradroute.report.results.run_results import Rate, RunResults, by_behavior
from gradroute.report.results.scales import Deployment
from gradroute.system.secrets import redact


def side_tables(comparison: Comparison, deployment: Mapping[str, Deployment]) -> list[Table]:
    """All of them, empty ones too.

    Args:
        comparison: The runs.
        deployment: By run, the scale of `bad` to deploy; of several behaviors there is none.
    """
    return [
        labels_table(comparison.runs),
        geometry_table(comparison.runs),
        deployment_table(deployment),
        relearning_table(comparison),
        recovery_table(comparison),
    ]


def labels_table(runs: Sequence[RunResults]) -> Table:
    """What each run was trained on, and how right its labels were."""
    rows = []
    for run in runs:
        if not run.manifest:
            continue
        labels = run.manifest.get("labels") or {}
        at = ("runs", run.name, "labels")
        given = labels.get("labeled_bad")
        notes = " ".join(redact(str(note)) for note in run.manifest.get("notes") or ())
        rows.append(
            (
                Cell(run.name),
                Cell(redact(str(run.manifest.get("data", "")))),
                count_cell(labels.get("true_bad"), "true_bad", *at, "true_bad"),
                count_cell(given, "labeled_bad", *at, "labeled_bad"),
                percent_cell(labels.get("precision"), "precision", *at, "precision"),
                percent_cell(labels.get("recall"), "recall", *at, "recall"),
                Cell(notes, prose=True),
            )
        )
    return Table(
        "labels",
        "Data and labels",
        "Precision: share of the examples labeled bad that are bad. Recall: share of the bad "
        "examples that are labeled so.",
        ("run", "data", "truly bad", "labeled bad", "precision, %", "recall, %", "preparation"),
        tuple(rows),
    )


def relearning_table(comparison: Comparison) -> Table:
    """Steps until plain fine-tuning brings the behavior back."""
    rows = []
    for i, one in enumerate(comparison.relearning):
        at, most = ("relearning", i), one.max_steps
        others = steps_cell(one.against_steps, most, "against_steps", *at, "against_steps")
        rows.append(
            (
                Cell(one.run),
                Cell(
                    f"{one.learning_rate:.3g}",
                    "" if one.of_rates is None else f"all weights, strongest of {one.of_rates}",
                    numbers={"learning_rate": one.learning_rate},
                ),
                steps_cell(one.steps, most, "steps", *at, "steps"),
                Cell(one.against or ""),
                others if one.against else Cell(""),
                Cell(one.outcome, numbers={"outcome": one.outcome}),
            )
        )
    return Table(
        "relearning",
        "Steps of plain fine-tuning until the behavior is back",
        "The same attack on every run, on examples of the behavior that neither training nor "
        "evaluation saw; a run that relearns faster than one that never saw the behavior has it "
        "suppressed, not removed. All weights: an attacker who trains every weight and chooses the "
        "learning rate that needs the fewest steps.",
        ("run", "learning rate", "steps", "beside", "its steps", "reading"),
        tuple(rows),
    )


def recovery_table(comparison: Comparison) -> Table:
    """What a short tune after ablation cost or revived."""
    records = {run.name: run.recovery or {} for run in by_behavior(comparison.runs)}
    rows = []
    for i, one in enumerate(comparison.recovered):
        before = records[one.run].get("before", {}).get(one.mode) or {}
        after = records[one.run].get("after", {}).get(one.mode) or {}
        at = ("recovered", i)
        rows.append(
            (
                Cell(one.run),
                Cell(one.mode),
                count_cell(one.steps, "steps", *at, "steps"),
                _recorded_rate(before.get("rate"), "rate_before"),
                _recorded_rate(after.get("rate"), "rate_after"),
                points_cell(one.rate, "rate_change", *at, "rate"),
                number_cell(before.get("normal_loss"), "normal_before", 3),
                number_cell(after.get("normal_loss"), "normal_after", 3),
                number_cell(one.normal, "normal_change", 3, *at, "normal", sign=True),
            )
        )
    return Table(
        "recovery",
        "A short tune of the kept adapters after ablation",
        "On the same prompts with the same noise: rate in percent and its change in percentage "
        "points, normal loss in nats per token.",
        (
            "run",
            "mode",
            "steps",
            "rate before",
            "rate after",
            "change",
            "normal loss before",
            "after",
            "change",
        ),
        tuple(rows),
    )


def _recorded_rate(record: Mapping[str, Any] | None, name: str) -> Cell:
    if record is None:
        return Cell("")
    return rate_cell(Rate(record["mean"], record["lower"], record["upper"], record["n"]), name)


def geometry_table(runs: Sequence[RunResults]) -> Table:
    """Cosine of updates and overlap of subspaces, each beside random ones of the same shapes."""
    rows = []
    for run in runs:
        if run.geometry is None:
            continue
        summary, random = run.geometry["summary"], run.geometry.get("random") or {}
        rows.append(
            (
                Cell(run.name),
                Cell(run.role),
                *(_beside_random(run.name, key, summary, random) for key in _GEOMETRY),
            )
        )
    return Table(
        "geometry",
        "Angles between the updates of good and bad",
        "Means over modules; in gray the same of random updates or subspaces of these shapes. "
        "Routing has an effect if a routed run differs from the unrouted one, not if it differs "
        "from random.",
        ("run", "role", *_GEOMETRY.values()),
        tuple(rows),
    )


_GEOMETRY = {
    "mean_absolute_cosine": "|cosine| of updates",
    "mean_cos2_A": "overlap of A",
    "mean_cos2_B": "overlap of B",
}


def _beside_random(
    run: str, key: str, summary: Mapping[str, Any], random: Mapping[str, Any]
) -> Cell:
    value, chance = summary.get(key), random.get(key)
    if value is None:
        return Cell("")
    text = "" if not chance else f"random {chance['mean']:.3f}"
    numbers = {key: value, f"{key}_random": chance["mean"] if chance else None}
    return Cell(f"{value:.3f}", text, numbers, pointer("runs", run, "geometry", "summary", key))


def deployment_table(deployment: Mapping[str, Deployment]) -> Table:
    """The scale of bad to deploy, by run."""
    rows = []
    for run, chosen in deployment.items():
        point = chosen.point
        at = ("deployment", run)
        rows.append(
            (
                Cell(run),
                Cell(f"{chosen.scale:g}", numbers={"scale": chosen.scale}, at=pointer(*at, "scale"))
                if chosen.scale is not None
                else Cell("none is low enough", numbers={"scale": None}),
                rate_cell(point and point.rate, "rate", *at, "rate"),
                loss_cell(point and point.normal, "normal_loss", *at, "normal_loss"),
                percent_cell(chosen.limit, "limit", *at, "limit"),
                count_cell(chosen.measured, "measured", *at, "measured"),
            )
        )
    return Table(
        "deployment",
        "The scale of bad to deploy",
        "The measured scale with the lowest held-out normal loss among those whose rate's upper "
        "end stays within the limit.",
        ("run", "scale", "rate, %", "normal loss", "limit, %", "scales measured"),
        tuple(rows),
    )
