"""Scale curves: a run while an adapter is scaled down, and the scale to deploy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradroute.report.results.contrasts import (
    GainKept,
    controls_of,
    gain_kept,
    gain_reference,
    loss_difference,
)
from gradroute.report.results.number_text import gain_text, loss_text, rate_text
from gradroute.report.results.roles import adapter_names
from gradroute.report.results.run_results import Loss, Rate, RunResults
from gradroute.routing.policy import AblationMode

MARGIN = 0.05
"""How far above the reference's upper end the upper end of a rate may lie for deployment."""
FEWEST_SCALES = 5
"""Fewer measured scales than this are hardly a curve."""


@dataclass(frozen=True)
class Point:
    """One scale of a curve.

    Attributes:
        scale: Of the adapters that the curve moves.
        mode: The ablation mode that it is.
        rate: Behavior rate there.
        normal: Held-out loss on normal text.
        behavior: Held-out loss on text with the behavior.
        gain: Gain kept there.
    """

    scale: float
    mode: str
    rate: Rate | None
    normal: Loss | None
    behavior: Loss | None
    gain: GainKept | None


@dataclass(frozen=True)
class Deployment:
    """The scale of `bad` to deploy, chosen from the scales that were measured.

    Attributes:
        run: Name of the run.
        scale: Of `bad`, all other adapters at 1; None where no measured scale is low enough.
        point: What was measured there.
        limit: The behavior rate that the upper end of the interval may reach.
        reference: What the limit is 5 points above.
        measured: How many scales there were to choose from.
        sentence: The choice in words, with its numbers.
        warning: What must hold besides, which no measurement here can show.
    """

    run: str
    scale: float | None
    point: Point | None
    limit: float
    reference: str
    measured: int
    sentence: str
    warning: str


def scale_curve(
    run: RunResults, adapters: Sequence[str], reference: RunResults | None
) -> list[Point]:
    """The measured modes in which these adapters stand at one scale and all others at 1.

    Args:
        run: The run.
        adapters: Which are moved together: `["bad"]`, or all for the shrinkage of the update.
        reference: What gain kept is measured against, see `contrasts.gain_kept`.

    Returns:
        By ascending scale.
    """
    rest = {name: 1.0 for name in adapter_names(run.config) if name not in adapters}
    return _scaled_modes(run, dict.fromkeys(adapters, 1.0), rest, reference)


def shrink_curve(run: RunResults, mode: str, reference: RunResults | None) -> list[Point]:
    """The measured modes that are a mode made weaker or stronger: every scale times one number.

    Of `full` that is the whole update times s, of `bad_ablated` the other adapters times s.

    Args:
        run: The run.
        mode: At scale 1; it leaves something on.
        reference: What gain kept is measured against.

    Returns:
        By ascending scale, 0 (the untuned base) and 1 (the mode itself) among them where they were
        measured.
    """
    scales = AblationMode.parse(mode, adapter_names(run.config)).scales
    moved = {name: scale for name, scale in scales.items() if scale != 0}
    rest = {name: 0.0 for name in scales if name not in moved}
    return _scaled_modes(run, moved, rest, reference)


def _scaled_modes(
    run: RunResults,
    moved: Mapping[str, float],
    rest: Mapping[str, float],
    reference: RunResults | None,
) -> list[Point]:
    """The measured modes with scales s * moved and rest, for any s."""
    points: dict[float, Point] = {}
    for mode, cell in run.cells.items():
        scales = AblationMode.parse(mode, adapter_names(run.config)).scales
        ratios = [scales[name] / one for name, one in moved.items()]
        if any(scales[name] != scale for name, scale in rest.items()):
            continue
        if not all(math.isclose(ratio, ratios[0], abs_tol=1e-9) for ratio in ratios):
            continue
        points.setdefault(
            round(ratios[0], 9),
            Point(
                scale=round(ratios[0], 9),
                mode=mode,
                rate=cell.rate,
                normal=cell.loss.get("normal"),
                behavior=cell.loss.get("behavior"),
                gain=gain_kept(run, reference, mode),
            ),
        )
    return [points[scale] for scale in sorted(points)]


def listed_modes(modes: Iterable[str]) -> list[str]:
    """The modes that stand side by side: all but the points of a scale curve, which has its own."""
    found = list(modes)
    own = [mode for mode in found if "=" in mode]
    return [mode for mode in found if len(own) < 3 or "=" not in mode]


def deployment(run: RunResults, runs: Sequence[RunResults]) -> Deployment | None:
    """The scale of `bad` to deploy; None for a run that is not routed with `good` and `bad`.

    Of the scales from 0 to 1 whose rate has the upper end of its interval at most 5 points above
    that of the reference (the baseline's `full`, else the untuned base), and at which the model is
    better than the untuned base, it is the one with the best held-out loss on normal text, or the
    smallest whose loss is not measurably above that.
    A scale chosen on the numbers that recommend it looks a little better than it is.
    """
    if run.role != "routed" or not {"good", "bad"} <= set(adapter_names(run.config)):
        return None
    baseline = controls_of(run, runs).get("baseline")
    allowed = run.rate("base") if baseline is None else baseline.rate("full")
    reference = "the untuned base" if baseline is None else baseline.name
    points = scale_curve(run, ["bad"], gain_reference(run, runs))
    measured = [p for p in points if 0 <= p.scale <= 1 and p.rate and p.normal]
    if allowed is None or not measured:
        return None
    limit = min(1.0, allowed.upper + MARGIN)
    base = run.loss("base", "normal")
    worst = math.inf if base is None else base.mean
    low = [p for p in measured if p.rate and p.rate.upper <= limit]
    best = _best(run, [p for p in low if p.normal and p.normal.mean < worst])
    return Deployment(
        run=run.name,
        scale=None if best is None else best.scale,
        point=best,
        limit=limit,
        reference=reference,
        measured=len(measured),
        sentence=_choice(best, measured, limit, reference),
        warning=_warning(run, best),
    )


def _best(run: RunResults, points: Sequence[Point]) -> Point | None:
    """The smallest scale whose normal loss does not lie above the best one, by its interval."""
    best = min(points, key=lambda p: p.normal.mean if p.normal else math.inf, default=None)
    if best is None:
        return None
    for point in points:
        gap = loss_difference((run, point.mode), (run, best.mode), "normal")
        if gap is not None and gap.lower <= 0:
            return point
    return best


def _choice(best: Point | None, measured: Sequence[Point], limit: float, reference: str) -> str:
    among = f"{len(measured)} scales of `bad` measured ({measured[0].scale:g} to "
    among += f"{measured[-1].scale:g})"
    bound = (
        f"a behavior rate whose upper end is at most {100 * limit:.1f} % (that of {reference} "
        f"and {100 * MARGIN:.0f} points)"
    )
    if best is None:
        return (
            f"No scale to deploy: none of {among} gives a model better than the untuned base with "
            f"{bound}."
        )
    gain = "" if best.gain is None else f", gain kept {gain_text(best.gain)}"
    text = (
        f"Deploy `bad` at {best.scale:g}: among {among} with {bound}, it is the smallest whose "
        f"normal loss is not measurably above the best: "
        f"{loss_text(best.normal)}, behavior rate "
        f"{rate_text(best.rate)}{gain}."
    )
    if len(measured) < FEWEST_SCALES:
        few = (
            "Too few scales were measured for a choice: gradroute eval RUN --scale bad=0,0.1,...,1"
        )
        return f"{few}. {text.replace('Deploy `bad` at', 'For now, `bad` at', 1)}"
    return text


def _warning(run: RunResults, best: Point | None) -> str:
    what = (
        "The detector must see any remaining behavior: the rates count what "
        f"{run.config['behavior']!r} scores on these prompts, and a form of the behavior that it "
        "does not see would ship unnoticed."
    )
    if best is not None and best.scale > 0:
        what += f" At {best.scale:g} a part of `bad` is shipped on purpose; at 0 none of it is."
    return what
