"""The comparison for the terminal: a table of measurements, then the verdicts."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from gradroute.report.judge.claims import Claim
from gradroute.report.judge.comparison import Comparison, MultiBehaviorComparison
from gradroute.report.judge.cross_ablation import Crossing
from gradroute.report.judge.gain_diagnosis import HEALTHY, Finding
from gradroute.report.judge.verdicts import Verdict
from gradroute.report.render.claim_lines import not_beaten
from gradroute.report.render.table_cells import aligned
from gradroute.report.results.contrasts import gain_kept, gain_reference
from gradroute.report.results.elicitation import elicited
from gradroute.report.results.label_information import EQUAL, LESS, MORE, OTHER
from gradroute.report.results.number_text import count_range, seeds_rate_text
from gradroute.report.results.run_results import Loss, Rate, RunResults
from gradroute.report.results.scales import FEWEST_SCALES, Deployment
from gradroute.report.results.seeds import Group, OverSeeds
from gradroute.runs.results import HELD_OUT_BAD

WIDTH = 100
_MARK = {True: "yes", False: "NO", None: "open"}


def render(comparison: Comparison) -> str:
    """The whole comparison as text for a terminal of 100 columns.

    With several seeds the verdicts are one line per claim and outcome: their checks, seed by seed,
    would fill screens, and are in the JSON document.
    """
    if isinstance(comparison, MultiBehaviorComparison):
        return _render_several(comparison)
    groups = comparison.groups
    several = any(len(group.seeds) > 1 for group in groups)
    back = [("", one.text) for one in (*comparison.relearning, *comparison.recovered)]
    verdicts = comparison.verdicts
    blocks = [
        render_table(comparison.runs, comparison.behavior),
        render_seeds(groups, comparison.behavior) if several else "",
        _paragraphs("Not beaten", [("", line.text) for line in not_beaten(comparison.claims)]),
        render_outcomes(verdicts) if several and verdicts else render_verdicts(verdicts),
        render_claims(comparison.claims),
        _paragraphs("Diagnosis of gain kept", _findings(comparison.findings)),
        _paragraphs("The scale of `bad` to deploy", _scales(comparison.deployment)),
        _paragraphs("Elicitation", _elicitation(comparison.runs)),
        _paragraphs("Relearning", back),
        _paragraphs("Notes", [("", note) for note in comparison.notes]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _render_several(comparison: MultiBehaviorComparison) -> str:
    """The matrices, a verdict for each behavior, and what came back."""
    back = [("", one.text) for one in (*comparison.relearning, *comparison.recovered)]
    verdicts = comparison.verdicts
    seeds = any(len(group.seeds) > 1 for group in comparison.groups)
    none = "No verdicts: they need a routed run with an adapter for every behavior."
    blocks = [
        *(render_crossing(one) for one in comparison.crossings),
        _CROSSING_NOTE,
        none if not verdicts else render_outcomes(verdicts) if seeds else render_verdicts(verdicts),
        _paragraphs("Elicitation", _elicitation(comparison.runs)),
        _paragraphs("Relearning", back),
        _paragraphs("Notes", [("", note) for note in comparison.notes]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _elicitation(runs: Sequence[RunResults]) -> list[tuple[str, str]]:
    """The highest rate of every group as it would be shipped."""
    found = [(one, *one.highest) for one in elicited(runs) if one.shipped]
    return [
        (
            one.group,
            f"the highest rate over {len(one.rates)} kinds of prompts under {one.mode} is "
            f"{seeds_rate_text(rate)}, on {kind}.",
        )
        for one, kind, rate in found
    ]


_CROSSING_NOTE = (
    "Rates in percent [95 %]; then, in points, the change against full on the same prompts. A *\n"
    "marks the behavior without its own adapter, which should be low; without another's it "
    "should\nstay. Normal loss in nats per token of held-out text."
)


def render_crossing(crossing: Crossing) -> str:
    """One group's matrix with a line per mode and two columns per behavior."""
    labels = list(crossing.rates)
    heads = [part for label in labels for part in (f"{label} rate", "- full")]
    lines = [["mode", *heads, "normal loss", "gain kept"]]
    for mode in crossing.modes:
        line = [mode]
        for label in labels:
            rate, change = crossing.rates[label].get(mode), crossing.changes[label].get(mode)
            mark = " *" if crossing.own(label, mode) else ""
            line.append(f"{_rate(rate)}{mark}" if rate else "")
            line.append("" if change is None else _signed(change))
        normal, gain = crossing.normal.get(mode), crossing.gain_kept.get(mode)
        line.append("" if normal is None else f"{normal.mean:.3f}")
        line.append("" if gain is None else f"{gain.mean:.2f}")
        lines.append(line)
    left = (True, *(True, True) * len(labels), False, False)
    return f"{crossing.group}\n{aligned(lines, left)}"


def _signed(number: OverSeeds) -> str:
    values = (100 * value for value in (number.mean, number.lower, number.upper))
    mean, lower, upper = (f"{round(value) + 0:+d}" for value in values)
    return f"{mean} [{lower}, {upper}]"


def render_table(runs: Sequence[RunResults], behavior: str) -> str:
    """Rates and losses by run and mode, and gain kept on the line that it judges.

    Points of a scale curve are left out: a figure shows them better.
    """
    drawn = any(run.judged_on == HELD_OUT_BAD for run in runs)
    heads = ["run", "mode", f"{behavior} rate", "normal loss", f"{behavior} loss", "gain kept"]
    if drawn:  # the behavior's name is a pattern, and stands below
        heads = ["run", "mode", "rate, held-out bad", "rate, ordinary", "normal loss", "bad loss"]
        heads += ["gain kept"]
    lines = [heads]
    left_out = 0
    for run in runs:
        kept = gain_kept(run, gain_reference(run, runs))
        first = True
        for mode, cell in run.cells.items():
            if "=" in mode:
                left_out += 1
                continue
            lines.append(
                [
                    run.name if first else "",
                    mode,
                    _rate(cell.rate),
                    *([_rate(cell.ordinary)] if drawn else []),
                    _loss(cell.loss.get("normal")),
                    _loss(cell.loss.get("behavior")),
                    _number(kept.value) if kept is not None and kept.mode == mode else "",
                ]
            )
            first = False
    cells = [cell for run in runs for cell in run.cells.values()]
    completions = count_range(cell.rate.n for cell in cells if cell.rate is not None)
    examples = count_range(loss.n for cell in cells for loss in cell.loss.values())
    rates = f"rates over {completions} completions"
    if drawn:
        ordinary = count_range(cell.ordinary.n for cell in cells if cell.ordinary is not None)
        rates = (
            f"rates of {behavior} on prompts of held-out\nbad rows ({completions}) and on ordinary "
            f"prompts ({ordinary})"
        )
    note = f"[95 % intervals]; {rates}, losses in nats per token over {examples} held-out texts."
    if left_out:
        note += f"\nNot in this table: points of scale curves ({left_out})."
    return f"{aligned(lines, (*[True] * (len(heads) - 1), False))}\n{note}"


def render_seeds(groups: Sequence[Group], behavior: str) -> str:
    """Rates and gain kept over seeds, every seed shown."""
    lines = [["group", "mode", f"{behavior} rate over seeds", "each seed, %", "seeds", "gain kept"]]
    for group in groups:
        shipped = "bad_ablated" if group.rate("bad_ablated") else "full"
        rates = {mode: group.rate(mode) for mode in group.modes if "=" not in mode}
        known = [(mode, rate) for mode, rate in rates.items() if rate is not None]
        for index, (mode, rate) in enumerate(known):
            gain = group.gain_kept if mode == shipped else None
            lines.append(
                [
                    group.name if index == 0 else "",
                    mode,
                    _rate(rate),
                    " ".join(f"{100 * value:.0f}" for value in rate.values),
                    str(len(rate.seeds)),
                    "" if gain is None else f"{gain.mean:.2f} [{gain.lower:.2f}, {gain.upper:.2f}]",
                ]
            )
    note = (
        "[95 % t intervals over seeds; where all seeds agree, the widest interval of one seed; of "
        "one\nseed alone, over its completions]"
    )
    for group in groups:
        if group.precision is not None:
            right = ", ".join(f"{100 * value:.0f}" for value in group.precision.values)
            note += f"\n{group.name}: of the labels `bad` {right} % are right (precision, by seed)"
    return f"{aligned(lines, (True, True, True, True, False, True))}\n{note}"


def render_claims(claims: Sequence[Claim]) -> str:
    """Routed groups beside their controls: a line each, as measured and at equal gain kept.

    Controls that used the same labels stand together, below a line that says which.
    """
    if not claims:
        return ""
    groups = [claim.group for claim in claims]
    claims = sorted(claims, key=lambda claim: (groups.index(claim.group), *_by_labels(claim)))
    rows = [["  control", "its rate, %", "points", "its gain kept", "at equal gain", "verdict"]]
    for claim in claims:
        equal = claim.equal_gain.difference
        rows.append(
            [
                f"  {claim.kind}",
                _bounded(claim.control_rate, 100, 0),
                _bounded(claim.difference, 100, 0, sign=True),
                "" if claim.control_gain is None else f"{claim.control_gain.mean:.2f}",
                claim.equal_gain.outcome if equal is None else _bounded(equal, 100, 0, sign=True),
                claim.decided.removeprefix("not shown: "),
            ]
        )
    head, *table = aligned(rows, (True,) * 6).splitlines()
    lines, before, labels = [head], "", ""
    for claim, line in zip(claims, table, strict=True):
        if claim.group != before:
            gain = "not measured" if claim.gain is None else f"{claim.gain.mean:.2f}"
            rate = _bounded(claim.rate, 100, 0)
            lines.append(
                f"{claim.group} under {claim.mode}: {rate} %, gain kept {gain}; labels: "
                f"{claim.information.routed}"
            )
            before, labels = claim.group, ""
        if labels != (labels := _labels(claim)):
            lines.append(labels)
        lines.append(line)
    lines += [
        "Points: routed minus control, by seed [95 %]. At equal gain: the control's update is",
        "scaled until it keeps as much (gradroute eval CONTROL… --scale all=0.1,0.2,...,1).",
        "Labels: those that training used; less, the same, more or others than the routed run's.",
    ]
    lines += [
        f"{claim.group}: the goal against the oracle (at most 5 points above, gain kept at least "
        f"0.9) is {'met' if claim.goal else 'NOT met'}."
        for claim in claims
        if claim.goal is not None
    ]
    return "\n".join(lines)


def _labels(claim: Claim) -> str:
    return f" labels: {claim.information.control} ({claim.information.control_used})"


def _by_labels(claim: Claim) -> tuple[int, str]:
    used = claim.information
    return (LESS, EQUAL, OTHER, MORE).index(used.control_used), used.control


def render_outcomes(verdicts: Sequence[Verdict]) -> str:
    """One line per claim and outcome, with the runs of which it holds."""
    found: dict[tuple[int, str, str], list[str]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.number, verdict.claim, verdict.outcome), []).append(verdict.run)
    lines = []
    for (number, claim, outcome), runs in found.items():
        lines += textwrap.wrap(
            f"({number}) {outcome.upper()}: {claim} ({', '.join(runs)})",
            WIDTH,
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def render_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Each verdict with its checks, one per line."""
    if not verdicts:
        return "No verdicts: they need a routed run with the adapters good and bad."
    blocks = []
    for verdict in verdicts:
        lines = [f"{verdict.run}: {verdict.outcome.upper()}", verdict.claim]
        for check in verdict.checks:
            mark = _MARK[check.met] if check.decides else "-"
            lines += _wrapped(check.text, WIDTH - 4, f"  {mark:<5}", " " * 7)
        first, *rest = lines
        blocks.append("\n".join([f"({verdict.number}) {first}", *(f"    {line}" for line in rest)]))
    return "\n\n".join(blocks)


def _findings(findings: Mapping[str, Sequence[Finding]]) -> list[tuple[str, str]]:
    """What is to be mended, one paragraph each; the healthy runs together."""
    healthy = [
        f"{run} {one.numbers['gain_kept']:.2f}"
        for run, found in findings.items()
        for one in found
        if one.cause == HEALTHY
    ]
    parts = [
        (f"{run}: {one.cause}", f"{one.text} {one.dial}".strip())
        for run, found in findings.items()
        for one in found
        if one.cause != HEALTHY
    ]
    return [("Healthy, gain kept", f"{', '.join(healthy)}."), *parts] if healthy else parts


def _scales(chosen: Mapping[str, Deployment]) -> list[tuple[str, str]]:
    """Choices from a curve; the warning is much the same for every run, so once is enough."""
    curves = {run: one for run, one in chosen.items() if one.measured >= FEWEST_SCALES}
    found = [(run, one.sentence) for run, one in curves.items()]
    missing = [run for run in chosen if run not in curves]
    found += [("", one.warning) for one in list(curves.values())[:1]]
    if missing:
        few = (
            f"Too few scales were measured for a choice: {', '.join(missing)}: gradroute eval "
            "RUN… --scale bad=0,0.1,...,1."
        )
        found.append(("", few))
    return found


def _paragraphs(title: str, parts: Sequence[tuple[str, str]]) -> str:
    """A title and, below it, paragraphs with heads; nothing where there are none."""
    lines = [title]
    for head, text in parts:
        lines += _wrapped(f"{head}. {text}" if head else text, WIDTH, "  ", "    ")
    return "\n".join(lines) if parts else ""


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """Lines of a width, the first and the rest with these indents; no name is cut in two."""
    wrapper = textwrap.TextWrapper(width, first, rest, break_long_words=False)
    wrapper.break_on_hyphens = False
    return wrapper.wrap(text)


def _rate(rate: Rate | OverSeeds | None) -> str:
    if rate is None:
        return ""
    return f"{100 * rate.mean:3.0f} % [{100 * rate.lower:.0f}, {100 * rate.upper:.0f}]"


def _loss(loss: Loss | None) -> str:
    return "" if loss is None else f"{loss.mean:.3f} [{loss.lower:.3f}, {loss.upper:.3f}]"


def _bounded(number: OverSeeds, scale: int, digits: int, *, sign: bool = False) -> str:
    values = (scale * value for value in (number.mean, number.lower, number.upper))
    form = f"{'+' if sign else ''}.{digits}f"
    mean, lower, upper = (f"{round(value, digits) + 0.0:{form}}" for value in values)
    return mean if number.basis == "none" else f"{mean} [{lower}, {upper}]"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"
