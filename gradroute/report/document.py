"""The comparison as one nested JSON document, for other programs to read."""

from collections.abc import Sequence
from typing import Any

from gradroute.report.analysis import (
    RunResults,
    controls_of,
    gain_kept,
    localization,
    loss_difference,
    rate_difference,
)
from gradroute.report.verdicts import Verdict


def eval_multi(runs: Sequence[RunResults], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that is known of the runs, as plain values (NaN for what is not known).

    `runs.<run>.<mode>` holds `behavior_rate` {mean, lower, upper, n}, `behavior_score` {mean} and
    `held_out_loss.{normal,behavior}` {mean, lower, upper, std, n}: mean over target tokens in
    nats, std over examples. Beside the modes stand `geometry`, `role`, `step`, `seed`,
    `config` and `provenance`. `comparisons.<run>` holds the numbers that take several cells, and
    `verdicts` the judgements.
    """
    return {
        "runs": {run.name: _run(run) for run in runs},
        "comparisons": {run.name: _comparison(run, runs) for run in runs},
        "verdicts": [verdict.to_dict() for verdict in verdicts],
    }


def _run(run: RunResults) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for mode, cell in run.cells.items():
        entry: dict[str, Any] = {}
        if cell.rate is not None:
            entry["behavior_rate"] = cell.rate._asdict()
            entry["behavior_score"] = {"mean": cell.score}
            entry["too_short"] = cell.too_short
            entry["changed_from_full"] = cell.changed
        entry["held_out_loss"] = {name: loss._asdict() for name, loss in cell.loss.items()}
        document[mode] = entry
    random = run.random_cosine
    return document | {
        "geometry": {
            "mean_absolute_cosine": run.cosine,
            "random": None if random is None else random._asdict(),
            "cosines": dict(run.cosines),
        },
        "role": run.role,
        "step": run.step,
        "seed": run.seed,
        "config": dict(run.config),
        "provenance": dict(run.provenance),
    }


def _comparison(run: RunResults, runs: Sequence[RunResults]) -> dict[str, Any]:
    controls = controls_of(run, runs)
    baseline, unrouted = controls.get("baseline"), controls.get("unrouted")
    kept, local = gain_kept(run, baseline), localization(run)
    above = loss_difference(run, unrouted, "bad_ablated", "behavior") if unrouted else None
    reference = baseline.rate("full") if baseline else run.rate("base")
    return {
        "controls": {role: other.name for role, other in controls.items()},
        "gain_kept": None if kept is None else kept._asdict(),
        "localization": None if local is None else local._asdict(),
        "behavior_loss_above_unrouted": None if above is None else above._asdict(),
        "rate_above": {
            "reference": baseline.name if baseline else "own base",
            "modes": {
                mode: gap._asdict()
                for mode in run.cells
                if (gap := rate_difference(run.rate(mode), reference)) is not None
            },
        },
    }
