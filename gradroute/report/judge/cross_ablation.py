"""Several behaviors in one run: the effect of ablating each adapter on each of them.

The matrix of behavior by ablation mode: its diagonal, a behavior without its own adapter, is to
fall, and all else to stay. The reading of it is a verdict per behavior, claim 5 of `verdicts`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gradroute.report.judge.verdicts import (
    RATE_MARGIN,
    Check,
    Verdict,
    at_least,
    beside_rates,
    learned,
    modes_differ,
    outcome_of,
    stays_low,
    whole_under,
)
from gradroute.report.results.contrasts import (
    controls_of,
    gain_kept,
    gain_reference,
    mode_difference,
)
from gradroute.report.results.number_text import join_words, points_text, rate_text
from gradroute.report.results.roles import adapter_names
from gradroute.report.results.run_results import RunResults
from gradroute.report.results.seeds import (
    Group,
    OverSeeds,
    gain_over_seeds,
    over_seeds,
    rate_over_seeds,
)


@dataclass(frozen=True)
class Crossing:
    """The matrix of one group of runs.

    Attributes:
        group: Its name.
        role: See `roles.role_of`.
        behaviors: Label -> behavior.
        modes: Those that were measured, without points of scale curves.
        rates: Label -> mode -> behavior rate on the prompts that draw it.
        changes: Label -> mode -> that rate minus the one under `full`, by seed, on the same
            prompts.
        losses: Label -> mode -> loss on held-out text with the behavior, nats per token.
        normal: Mode -> loss on held-out normal text.
        gain_kept: Mode -> share of the gain on normal text that is kept.
    """

    group: str
    role: str
    behaviors: Mapping[str, str]
    modes: tuple[str, ...]
    rates: Mapping[str, Mapping[str, OverSeeds]]
    changes: Mapping[str, Mapping[str, OverSeeds]]
    losses: Mapping[str, Mapping[str, OverSeeds]]
    normal: Mapping[str, OverSeeds]
    gain_kept: Mapping[str, OverSeeds]

    def own(self, label: str, mode: str) -> bool:
        """Whether a cell is on the diagonal: the mode takes away this behavior's adapter alone."""
        return mode == f"{label}_ablated"


def crossings(runs: Sequence[RunResults], groups: Sequence[Group]) -> list[Crossing]:
    """The matrices of the groups whose runs have several behaviors."""
    by_name = {run.name: run for run in runs}
    found = []
    for group in groups:
        members = [by_name[name] for name in group.runs]
        if members[0].parts:
            found.append(_crossing(group, members, runs))
    return found


def _crossing(group: Group, members: Sequence[RunResults], runs: Sequence[RunResults]) -> Crossing:
    first = members[0]
    modes = tuple(dict.fromkeys(m for run in members for m in run.cells if "=" not in m))
    parts = {label: [run.parts[label] for run in members] for label in first.parts}
    gains = {
        mode: gain_over_seeds(
            [run.seed for run in members],
            [gain_kept(run, gain_reference(run, runs), mode) for run in members],
        )
        for mode in modes
    }
    return Crossing(
        group=group.name,
        role=group.role,
        behaviors=dict(first.config["behavior"]),
        modes=modes,
        rates={label: _measured_modes(modes, own, _rate) for label, own in parts.items()},
        changes={label: _measured_modes(modes, own, _change) for label, own in parts.items()},
        losses={label: _measured_modes(modes, own, _loss) for label, own in parts.items()},
        normal={mode: loss for mode in modes if (loss := group.loss(mode, "normal")) is not None},
        gain_kept={mode: gain for mode, gain in gains.items() if gain is not None},
    )


def _measured_modes(
    modes: Sequence[str],
    parts: Sequence[RunResults],
    number: Callable[[Sequence[RunResults], str], OverSeeds | None],
) -> dict[str, OverSeeds]:
    found = {mode: number(parts, mode) for mode in modes}
    return {mode: one for mode, one in found.items() if one is not None}


def _rate(parts: Sequence[RunResults], mode: str) -> OverSeeds | None:
    known = [(part.seed, rate) for part in parts if (rate := part.rate(mode)) is not None]
    return rate_over_seeds(*zip(*known, strict=True)) if known else None


def _change(parts: Sequence[RunResults], mode: str) -> OverSeeds | None:
    if mode == "full":
        return None
    known = []
    for part in parts:
        gap, rate = mode_difference(part, mode, "full"), part.rate(mode)
        if gap is not None and rate is not None:
            known.append((part.seed, gap, rate.n))
    if not known:
        return None
    seeds, gaps, counts = zip(*known, strict=True)
    intervals = [(gap.lower, gap.upper) for gap in gaps]
    return over_seeds(seeds, [gap.value for gap in gaps], counts, intervals, (-1.0, 1.0))


def _loss(parts: Sequence[RunResults], mode: str) -> OverSeeds | None:
    known = [(p.seed, loss) for p in parts if (loss := p.loss(mode, "behavior")) is not None]
    if not known:
        return None
    return over_seeds(
        [seed for seed, _ in known],
        [loss.mean for _, loss in known],
        [loss.n for _, loss in known],
        [(loss.lower, loss.upper) for _, loss in known],
    )


def judge_crossings(runs: Sequence[RunResults]) -> list[Verdict]:
    """Claim 5 of every routed run, for each of its behaviors that has an adapter of its name."""
    return [
        _verdict(run, label, runs)
        for run in runs
        if run.role == "routed"
        for label in run.parts
        if label in adapter_names(run.config)
    ]


def _verdict(run: RunResults, label: str, runs: Sequence[RunResults]) -> Verdict:
    """The behavior is gone without its own adapter and stays without any other."""
    part, mode = run.parts[label], f"{label}_ablated"
    others = [other for other in run.parts if other != label]
    there = [other for other in others if other in adapter_names(run.config)]
    baseline = controls_of(run, runs).get("baseline")
    never = None if baseline is None else baseline.parts.get(label)
    checks = [
        learned(part),
        *modes_differ(part, mode),
        stays_low(mode, part, never),
        *(_stays(part, other) for other in there),
        _keeps(run, mode, runs),
        *beside_rates(part, mode),
        Check(_sentence(part, label, there), None, decides=False),
    ]
    beside = f" and stays without {join_words([f'`{name}`' for name in there])}" if there else ""
    claim = f"{_named(run, label)} goes when the adapter `{label}` is ablated{beside}."
    return Verdict(5, claim, run.name, outcome_of(checks), tuple(checks))


def _stays(part: RunResults, other: str) -> Check:
    mode = f"{other}_ablated"
    change = mode_difference(part, mode, "full")
    return Check(
        f"{mode} shows it in {rate_text(part.rate(mode))}, {points_text(change)} against full (at "
        f"least {-100 * RATE_MARGIN:.0f})",
        at_least(change, -RATE_MARGIN),
    )


def _keeps(run: RunResults, mode: str, runs: Sequence[RunResults]) -> Check:
    """That the model is whole without the adapter: a broken one shows nothing either."""
    check = whole_under(run, gain_reference(run, runs), mode)
    return Check(f"{mode}: {check.text}", check.met, failed=check.failed)


def _sentence(part: RunResults, label: str, others: Sequence[str]) -> str:
    """By how much it falls with its own adapter, and by how much with another."""
    own = mode_difference(part, f"{label}_ablated", "full")
    text = f"against full it changes by {points_text(own)} without its own adapter"
    for other in others:
        gap = mode_difference(part, f"{other}_ablated", "full")
        text += f", by {points_text(gap)} without `{other}`"
    return text


def _named(run: RunResults, label: str) -> str:
    """The behavior as it is called: by its label, and by its name where that is another."""
    name = str(run.config["behavior"][label])
    return label if name == label else f"{label} ({name})"


def behaviors_text(run: RunResults) -> str:
    """The behaviors of a run in words."""
    behavior = run.config["behavior"]
    if not run.parts:
        return str(behavior)
    return join_words([_named(run, label) for label in run.parts])
