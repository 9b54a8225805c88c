"""The diagnosis of lost gain: causes that the measurements support.

A routed run is to keep what tuning gained when `bad` is taken out. Where it does not, there are
four usual reasons, and each leaves a trace in numbers that were measured anyway.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from gradroute.report.judge.outcomes import GOAL_GAIN
from gradroute.report.results.contrasts import (
    OWN_FULL,
    GainKept,
    controls_of,
    gain_kept,
    gain_reference,
)
from gradroute.report.results.number_text import gain_text, rate_text
from gradroute.report.results.roles import Config, adapter_names
from gradroute.report.results.run_results import Record, RunResults

HEALTHY = "healthy"

ALWAYS = 0.9
"""Behavior rate without `good` from which on `bad` shows the behavior always."""
CLEAN = 0.9
"""Precision of the label `bad` below which labels are noisy."""
GAP = 0.05
"""Gain that goes with `bad` from which on ablation is to be explained."""
_TENTH = 0.1


@dataclass(frozen=True)
class Finding:
    """One thing that the measurements of a run point to.

    Attributes:
        cause: `healthy`, `co-adaptation`, `shared update`, `rank`, `learning rate`, `label noise`,
            `wrong anchors`, `not measured` or `unclear`.
        text: In words, with the numbers of that run that it stands on.
        dial: What to turn, naming the configuration's keys; empty where nothing is to be done.
        numbers: The numbers in the text by name.
    """

    cause: str
    text: str
    dial: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class _Case:
    """A run with what every examination needs."""

    run: RunResults
    reference: RunResults | None
    kept: GainKept
    full: GainKept | None

    @property
    def lost_by_training(self) -> bool:
        """Whether gain is missing before anything is ablated."""
        return self.full is not None and self.full.value < GOAL_GAIN

    @property
    def lost_by_ablation(self) -> bool:
        """Whether gain goes with `bad`."""
        return self.full is None or self.full.value - self.kept.value >= GAP


def examine(run: RunResults, runs: Sequence[RunResults]) -> tuple[Finding, ...]:
    """What is behind a low gain kept; for a healthy run one finding that says so with numbers.

    A run that is not routed with `good` and `bad` has no ablation gap, and no finding.
    """
    if run.role != "routed" or not {"good", "bad"} <= set(adapter_names(run.config)):
        return ()
    reference = gain_reference(run, runs)
    kept = gain_kept(run, reference, "bad_ablated")
    if kept is None or math.isnan(kept.value):
        return (_not_measured(kept),)
    case = _Case(run, reference, kept, gain_kept(run, reference, "full"))
    if kept.value >= GOAL_GAIN:
        return (_healthy(case),)
    examinations: tuple[Callable[[_Case], Finding | None], ...] = (
        _co_adaptation,
        lambda case: _shared_update(case, controls_of(case.run, runs).get("unrouted")),
        _rank,
        _learning_rate,
        _label_noise,
        _wrong_anchors,
    )
    findings = tuple(found for look in examinations if (found := look(case)) is not None)
    return findings or (_unclear(case),)


def _not_measured(kept: GainKept | None) -> Finding:
    text = (
        f"Gain kept without `bad` is {gain_text(kept)}: it needs the normal loss under bad_ablated "
        f"and base, and a reference that gains something."
    )
    dial = (
        "Measure the missing values: gradroute eval RUN."
        if kept is None
        else "Raise train.learning_rate or train.max_steps, so that there is a gain to keep."
    )
    return Finding("not measured", text, dial, {})


def _healthy(case: _Case) -> Finding:
    rate = case.run.rate("bad_ablated")
    shows = f"and shows the behavior in {rate_text(rate)} without it."
    if rate is None:
        shows = "and its rate of the behavior without `bad` is not measured."
    text = (
        f"Without `bad` the run keeps {gain_text(case.kept)} (at least {GOAL_GAIN:g}), "
        f"with it {_short(case.full)}, {shows}"
    )
    numbers = _gains(case)
    if rate is not None:
        numbers["rate_bad_ablated"] = rate.mean
    return Finding(HEALTHY, text, "", numbers)


def _co_adaptation(case: _Case) -> Finding | None:
    """Full fine or nearly so, ablated broken, `bad` alone always showing it."""
    run, alone = case.run, case.run.rate("good_ablated")
    if not case.lost_by_ablation or alone is None or alone.mean < ALWAYS:
        return None
    numbers = _gains(case) | {"rate_good_ablated": alone.mean}
    text = (
        f"With both adapters the run keeps {_short(case.full)} of the gain, without "
        f"`bad` {gain_text(case.kept)}; `bad` alone (good_ablated) shows the behavior in "
        f"{rate_text(alone)}"
    )
    loss, base = run.loss("good_ablated", "normal"), run.loss("base", "normal")
    if loss is not None and base is not None:
        numbers |= {"normal_loss_good_ablated": loss.mean, "normal_loss_base": base.mean}
        text += f" with a normal loss of {loss.mean:.2f} (untuned base {base.mean:.2f})"
    text += ". `bad` learned to show it always, and `good` to undo it."
    return Finding("co-adaptation", text, _anchor_dial(run), numbers)


def _shared_update(case: _Case, unrouted: RunResults | None) -> Finding | None:
    """Ablated weaker, `bad` alone not always showing it: what is normal lies in both."""
    run, alone = case.run, case.run.rate("good_ablated")
    if not case.lost_by_ablation or (alone is not None and alone.mean >= ALWAYS):
        return None
    numbers = _gains(case)
    text = (
        f"With both adapters the run keeps {_short(case.full)} of the gain, without "
        f"`bad` {gain_text(case.kept)}, so `bad` contains a part of what was "
        f"learned from normal text"
    )
    if alone is not None:
        numbers["rate_good_ablated"] = alone.mean
        text += f"; `bad` alone shows the behavior in {rate_text(alone)}"
    twice = gain_kept(run, case.reference, "good_x2")
    if twice is not None and not math.isnan(twice.value):
        numbers["gain_kept_good_x2"] = twice.value
        weak = twice.value > case.kept.value
        text += f"; `good` at twice its scale keeps {twice.value:.2f}, so it is "
        text += "too weak rather than wrong" if weak else "not merely too weak"
    other = None if unrouted is None else gain_kept(unrouted, case.reference, "bad_ablated")
    if unrouted is not None and other is not None and not math.isnan(other.value):
        numbers["gain_kept_unrouted"] = other.value
        text += f"; the unrouted run {unrouted.name} keeps {other.value:.2f} without `bad`"
    return Finding("shared update", f"{text}.", _anchor_dial(run), numbers)


def _rank(case: _Case) -> Finding | None:
    """`good` is small beside `bad`, or beside what it is measured against."""
    ranks = _ranks(case.run.config)
    reference = case.run if case.reference is None else case.reference
    total = sum(_ranks(reference.config).values())
    if ranks["good"] >= ranks["bad"] and 2 * ranks["good"] >= total:
        return None
    text = (
        f"`good` has rank {ranks['good']}, `bad` {ranks['bad']}, and "
        f"{reference.name} {total} in all; without `bad` the run keeps {gain_text(case.kept)}, "
        f"with it {_short(case.full)}."
    )
    numbers = _gains(case) | {
        "rank_good": float(ranks["good"]),
        "rank_bad": float(ranks["bad"]),
        "rank_reference": float(total),
    }
    enough = max(ranks["bad"], total // 2)
    dial = f"Raise adapters.good.rank (now {ranks['good']}) to at least {enough}."
    return Finding("rank", text, dial, numbers)


def _learning_rate(case: _Case) -> Finding | None:
    """Training loss still falling at the end, or no lower than at the start; full itself is low."""
    losses = [loss for line in case.run.metrics if (loss := _normal_loss(line)) is not None]
    tenth = int(len(losses) * _TENTH)
    if not case.lost_by_training or tenth < 5:
        return None
    start, before, end = losses[:tenth], losses[-2 * tenth : -tenth], losses[-tenth:]
    falling = fmean(before) - fmean(end)
    error = math.hypot(stdev(before), stdev(end)) / math.sqrt(tenth)
    rate = _learning_rates(case.run.config)["good"]
    numbers = _gains(case) | {
        "training_loss_start": fmean(start),
        "training_loss_before": fmean(before),
        "training_loss_end": fmean(end),
        "learning_rate_good": rate,
    }
    course = (
        f"Training loss on examples not labeled bad was {fmean(start):.3f} in the first tenth of "
        f"the steps, {fmean(before):.3f} in the last but one and {fmean(end):.3f} in the last; "
        f"with both adapters the run keeps {_short(case.full)} of the gain"
    )
    steps = case.run.config["train"]["max_steps"]
    if fmean(end) >= fmean(start):
        text = f"{course}: it is too high, nothing was learned."
        dial = f"Lower train.learning_rate (now {rate:g}, of `good`), or lengthen the warm-up."
    elif falling > 2 * error:
        text = f"{course}: it was still falling, the rate is too low or the steps are too few."
        dial = (
            f"Raise train.learning_rate (now {rate:g}, of `good`) or train.max_steps (now {steps})."
        )
    else:
        return None
    return Finding("learning rate", text, dial, numbers)


def _label_noise(case: _Case) -> Finding | None:
    """Ordinary examples labeled bad train `bad` alone, so `good` never learns from them."""
    labels = case.run.manifest.get("labels") or {}
    precision, labeled = labels.get("precision"), labels.get("labeled_bad")
    if precision is None or not labeled or precision >= CLEAN:
        return None
    wrong = labeled - round(precision * labeled)
    text = (
        f"Of {labeled} examples labeled bad {wrong} are not (precision "
        f"{100 * precision:.0f} %), and what they teach goes into `bad`; without `bad` the run "
        f"keeps {gain_text(case.kept)}."
    )
    dial = (
        "Label with a stricter threshold: a bad example that stays unlabeled costs less than an "
        "ordinary one labeled bad (data.false_positive_rate, now "
        f"{case.run.config['data']['false_positive_rate']:g})."
    )
    numbers = _gains(case) | {"precision": precision, "labeled_bad": float(labeled)}
    return Finding("label noise", text, dial, numbers)


def _wrong_anchors(case: _Case) -> Finding | None:
    """Bad examples labeled good teach `good` the behavior, alone."""
    examples = case.run.manifest.get("examples") or {}
    wrong = examples.get("bad labeled good", 0)
    if not wrong:
        return None
    right = examples.get("good labeled good", 0)
    rate = case.run.rate("bad_ablated")
    text = (
        f"{wrong} of {wrong + right} examples labeled good show the behavior, and train the kept "
        f"adapters; without `bad` it is shown in {rate_text(rate)}, and gain kept is "
        f"{gain_text(case.kept)}."
    )
    numbers = _gains(case) | {"bad_labeled_good": float(wrong), "good_labeled_good": float(right)}
    return Finding("wrong anchors", text, "Label good only what is known to be.", numbers)


def _unclear(case: _Case) -> Finding:
    ranks, rates = _ranks(case.run.config), _learning_rates(case.run.config)
    alone = rate_text(case.run.rate("good_ablated"))
    text = (
        f"Without `bad` the run keeps {gain_text(case.kept)}, with it {_short(case.full)}; `bad` "
        f"alone shows the behavior in {alone}, ranks are {ranks['good']} and {ranks['bad']}, "
        f"learning rates {rates['good']:g} and {rates['bad']:g}, and none of these explains the "
        f"loss."
    )
    dial = (
        "Look at the training curves (gradroute plot RUN), or tune the kept adapters: gradroute "
        "recover RUN."
    )
    return Finding("unclear", text, dial, _gains(case))


def _anchor_dial(run: RunResults) -> str:
    """The dials against co-adaptation, strongest first, each with its present value."""
    data, routing = run.config["data"], run.config["routing"]
    table = routing if isinstance(routing, str) else "a table of its own"
    rates = _learning_rates(run.config)
    ratio = rates["bad"] / rates["good"]
    anchored = data["good_labeled_fraction"]
    return (
        f"More anchored examples: data.good_labeled_fraction (now {anchored:g}) under "
        f"routing=anchored (now {table}), so that `good` is trained in the form in which it is "
        f"shipped. Or a lower "
        f"adapters.bad.learning_rate (now {ratio:g} times that of `good`). Or tune the kept "
        f"adapters: gradroute recover RUN."
    )


def _gains(case: _Case) -> dict[str, float]:
    gains = {"gain_kept": case.kept.value}
    if case.full is not None and not math.isnan(case.full.value):
        gains["gain_kept_full"] = case.full.value
    return gains


def _short(kept: GainKept | None) -> str:
    """Gain kept without what it is measured against, which the sentence says already."""
    if kept is None or math.isnan(kept.value):
        return "(not measured)"
    if kept.against == OWN_FULL:
        return "1.00 by definition, since there is no baseline"
    interval = "" if math.isnan(kept.lower) else f" [{kept.lower:.2f}, {kept.upper:.2f}]"
    return f"{kept.value:.2f}{interval}"


def _ranks(config: Config) -> dict[str, int]:
    return {name: config["adapters"][name]["rank"] for name in adapter_names(config)}


def _learning_rates(config: Config) -> dict[str, float]:
    shared = config["train"]["learning_rate"]
    return {
        name: shared if (own := config["adapters"][name]["learning_rate"]) is None else own
        for name in adapter_names(config)
    }


def _normal_loss(line: Record) -> float | None:
    """Training loss of a step over examples that are not labeled bad, by token; None if none."""
    losses, tokens = line.get("loss_per_label", {}), line.get("tokens", {})
    labels = [label for label in losses if label != "bad" and losses[label] is not None]
    total = sum(tokens.get(label, 0) for label in labels)
    return sum(losses[label] * tokens[label] for label in labels) / total if total else None
