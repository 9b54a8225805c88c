"""What the page is told when it opens: runs, adapters, settings, measured scale curves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradroute.errors import GradrouteError
from gradroute.playground.asked import HIGH, LOW, MOST, MOST_TOKENS, plain_asked, read_asked
from gradroute.playground.chat import why_no_chat
from gradroute.playground.loaded import Played
from gradroute.playground.rows import row_reader
from gradroute.report.results.reading import read_runs
from gradroute.report.results.run_results import RunResults
from gradroute.report.results.scales import deployment, scale_curve
from gradroute.routing.policy import standard_modes
from gradroute.runs.folder import RunFolder

CURVE = 3
"""Points that make a curve."""
NO_CURVE = "No scale curve was measured: gradroute eval {run} --scale {adapter}=0,0.1,...,1"


def page_facts(played: Mapping[str, Played]) -> dict[str, Any]:
    """The facts of all runs, as plain values; a later run has the place that it was named in."""
    first = next(iter(played.values()))
    adapters = {name: one.adapters for name, one in played.items()}
    labels = tuple(first.behaviors)
    asked = read_asked("", adapters, first.config.evaluate, labels, row_reader(played))
    return {
        "runs": [_run(one, played.values()) for one in played.values()],
        "first": plain_asked(asked),
        "low": LOW,
        "high": HIGH,
        "most_columns": MOST,
        "most_tokens": MOST_TOKENS,
    }


def _run(one: Played, every: Iterable[Played]) -> dict[str, Any]:
    curves, note = scale_curves(one.folder, one.adapters, [other.folder for other in every])
    moved = next((name for name in one.adapters if name in one.behaviors), one.adapters[-1])
    return {
        "name": one.name,
        "adapters": list(one.adapters),
        "modes": {mode.name: dict(mode.scales) for mode in standard_modes(one.adapters)},
        "behaviors": {label: behavior.name for label, behavior in one.behaviors.items()},
        "model": one.config.model,
        "step": one.step,
        "held": str(one.base),
        "no_chat": why_no_chat(one),
        "curves": curves,
        "no_curve": note or ("" if curves else NO_CURVE.format(run=one.folder.name, adapter=moved)),
    }


def scale_curves(
    folder: RunFolder, adapters: Sequence[str], every: Sequence[RunFolder]
) -> tuple[list[dict[str, Any]], str]:
    """The measured curves of a run's adapters: behavior rate by scale, the others at 1.

    Args:
        folder: The run.
        adapters: Its adapters.
        every: All runs that are open; a baseline among them is what the scale to deploy is
            compared with.

    Returns:
        Per adapter and behavior a curve of three points or more, and why there is none where that
        is not that nobody measured it.
    """
    if not folder.results.is_file():
        return [], ""
    try:
        [run] = read_runs([folder])
    except GradrouteError as error:
        return [], str(error)
    runs = _with_others(run, folder, every)
    curves = []
    for part, own in run.parts.items() or (("", run),):
        for adapter in adapters:
            points = [p for p in scale_curve(own, [adapter], None) if p.rate is not None]
            if len(points) < CURVE:
                continue
            chosen = deployment(run, runs) if adapter == "bad" and not part else None
            rows = [[p.scale, *p.rate[:3], p.rate.n] for p in points if p.rate is not None]
            curves.append(
                {
                    "adapter": adapter,
                    "behavior": part,
                    "prompts": own.judged_on,
                    "points": rows,
                    "deploy": None if chosen is None else chosen.scale,
                    "sentence": "" if chosen is None else chosen.sentence,
                }
            )
    return curves, ""


def _with_others(
    run: RunResults, folder: RunFolder, every: Sequence[RunFolder]
) -> list[RunResults]:
    """A run and those of the others that have results on the same behavior."""
    runs = [run]
    for other in every:
        if other.path == folder.path or not other.results.is_file():
            continue
        try:
            [own] = read_runs([other])
        except GradrouteError:  # its own facts say so
            continue
        if own.config["behavior"] == run.config["behavior"]:
            runs.append(own)
    return runs
