"""The limits of a comparison: missing measurements, and questions that no run can answer."""

from gradroute.report.judge.comparison import Comparison, SingleBehaviorComparison
from gradroute.report.render.headline import IN_ORDER
from gradroute.report.render.scale_figures import bad_curves
from gradroute.report.results.run_results import by_behavior
from gradroute.runs.results import ELICIT


def limits(comparison: Comparison) -> list[str]:
    """One sentence per limit, those of this comparison first, then those of every one.

    What was ignored or is missing in single cells stands in `Comparison.notes`.
    """
    return [*_not_measured(comparison), *_beyond(comparison)]


def _not_measured(comparison: Comparison) -> list[str]:
    runs = comparison.runs
    found = []
    scales = []
    if isinstance(comparison, SingleBehaviorComparison):
        scales = [len(curve.points) for curve in bad_curves(comparison)]
        there = {claim.kind for claim in comparison.claims}
        missing = [control.name for control in IN_ORDER if control.name not in there]
        if missing:
            found.append(f"Controls that are not here: {', '.join(missing)}.")
    else:
        found.append("Comparison with controls: no claim is computed for several behaviors.")
    if max((len(group.seeds) for group in comparison.groups), default=0) < 2:
        found.append("Variation over seeds: there is one seed of each run.")
    kinds = {
        kind for run in by_behavior(runs) for cell in run.cells.values() for kind in cell.rates
    }
    for kind, what, command in (
        ("plain", "prompts that do not invite the behavior", "--prompts plain"),
        ("bos", "text written from an empty prompt", "--prompts bos"),
    ):
        if kind not in kinds:
            found.append(f"Rates on {what}: not measured (`gradroute eval RUN… {command}`).")
    if not any(kind.startswith(ELICIT) for kind in kinds):
        found.append(
            "Rates on further kinds of prompts (negated, in JSON, the cue alone, ...): not "
            "measured (`gradroute eval RUN… --elicitation`)."
        )
    if scales and max(scales) <= 2:
        found.append(
            "Scales between 0 and 1: not measured (`gradroute eval RUN… --scale bad=0,0.1,…,1`)."
        )
    parts = by_behavior(runs)
    for measured, what, command in (
        ([run.geometry for run in runs], "Angles between subspaces", "geometry"),
        ([run.relearn for run in parts], "Speed of relearning", "relearn"),
        ([run.recovery for run in parts], "Behavior revived by a short tune", "recover"),
    ):
        if all(document is None for document in measured):
            found.append(f"{what}: not measured (`gradroute {command} RUN…`).")
    return found


def _beyond(comparison: Comparison) -> list[str]:
    models = sorted({str(run.config["model"]) for run in comparison.runs})
    return [
        f"Other behaviors than {comparison.behavior}, and other base models than "
        f"{', '.join(models)}.",
        "Behavior in a form that the detector does not see: a rate of 0 counts only the forms "
        "that it recognizes.",
        "Absence of the behavior from the weights: it only does not show in these completions.",
        "Text of another kind than the held-out texts, which have the same source as the training "
        "texts.",
    ]
