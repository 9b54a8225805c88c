"""The numbers of a comparison as tables: one definition for the page, Markdown and CSV."""

from collections.abc import Sequence
from dataclasses import replace

from gradroute.report.judge.claims import Claim
from gradroute.report.judge.comparison import Comparison, MultiBehaviorComparison
from gradroute.report.render.cross_ablation_tables import behaviors_table, crossing_tables
from gradroute.report.render.provenance import differences_table
from gradroute.report.render.side_tables import side_tables
from gradroute.report.render.table_cells import (
    JUDGED_HEADS,
    Cell,
    Table,
    counts_text,
    gain_cell,
    judged_cells,
    loss_cells,
    number_cell,
    p_value_cell,
    pointer,
    points_cell,
    rate_cell,
    seeds_cell,
    seeds_gain,
    seeds_loss,
    seeds_rate,
)
from gradroute.report.results.elicitation import Elicited, elicited
from gradroute.report.results.label_information import KINDS
from gradroute.report.results.pairs import PairTest
from gradroute.report.results.run_results import RunResults
from gradroute.report.results.scales import Point, listed_modes
from gradroute.report.results.seeds import Group, OverSeeds
from gradroute.runs.results import ELICIT, HELD_OUT_BAD


def tables(comparison: Comparison) -> list[Table]:
    """Every table that has a row, in the order in which a report shows them."""
    if isinstance(comparison, MultiBehaviorComparison):
        made = [
            *crossing_tables(comparison.crossings),
            behaviors_table(comparison.runs),
            elicitation_table(elicited(comparison.runs)),
            *side_tables(comparison, {}),
        ]
    else:
        made = [
            overview_table(comparison.groups, comparison.behavior),
            claims_table(comparison.claims),
            seeds_table(comparison.groups, comparison.behavior),
            modes_table(comparison.runs, comparison.behavior),
            kinds_table(comparison.groups),
            elicitation_table(elicited(comparison.runs)),
            tests_table(comparison.tests),
            *side_tables(comparison, comparison.deployment),
        ]
    made.append(differences_table(comparison.runs))
    return [table for table in made if table.rows]


def overview_table(groups: Sequence[Group], behavior: str) -> Table:
    """What every routed group does, in a line."""
    rows = []
    for index, group in enumerate(groups):
        if group.role == "routed":
            at = ("groups", index)
            rates = (
                seeds_rate(group.rate(mode), mode, *at, "rates", mode, group.judged_on)
                for mode in ("full", "bad_ablated")
            )
            gain = seeds_gain(group.gain_kept, "gain_kept", *at, "gain_kept")
            rows.append((Cell(group.name), *rates, gain))
    return Table(
        "overview",
        "Routed runs in a line each",
        "",
        ("routed", f"{behavior} rate as trained, %", "without bad, %", "gain kept without bad"),
        tuple(rows),
    )


_LABELS = "; ".join(f"{name}: {kind.meaning}" for name, kind in KINDS.items())


def claims_table(claims: Sequence[Claim]) -> Table:
    """Routed groups beside their controls: labels, as measured, and at equal gain kept."""
    rows = []
    for index, claim in enumerate(claims):
        at = ("claims", index)
        equal = claim.equal_gain
        rows.append(
            (
                Cell(claim.group, claim.information.routed),
                Cell(claim.control, "" if claim.kind == claim.control else claim.kind),
                Cell(
                    claim.information.control,
                    claim.information.control_used,
                    numbers={f"labels_{k}": v for k, v in claim.information._asdict().items()},
                    prose=True,
                ),
                Cell(
                    claim.decided,
                    numbers={"kind": claim.kind, "decided": claim.decided},
                    prose=True,
                ),
                seeds_rate(claim.rate, "rate", *at, "rate", counts=False),
                seeds_rate(claim.control_rate, "control_rate", *at, "control_rate", counts=False),
                _points(claim.difference, "difference", *at, "difference"),
                seeds_gain(claim.gain, "gain", *at, "gain"),
                seeds_gain(claim.control_gain, "control_gain", *at, "control_gain"),
                _points(equal.difference, "equal_gain_difference", *at, "equal_gain", "difference"),
                p_value_cell(claim.adjusted, "p_holm", *at, "adjusted"),
                Cell(counts_text(claim.rate.n), numbers={"n": sum(claim.rate.n)}),
            )
        )
    return Table(
        "claims",
        "Routing against each control",
        "Rates in percent; differences in percentage points, routed minus control, seed by seed. "
        "Equal gain: the control's update is scaled until it keeps as much of the gain as the "
        "routed run does; the verdict is based on that. Adjusted p: Holm over this table. n: "
        f"completions of a run, times seeds. Labels that training used ({_LABELS}); those of the "
        "control are less, the same, more or others than those of the routed run.",
        (
            "routed",
            "control",
            "labels of the control",
            "routed is",
            "rate",
            "rate of control",
            "difference",
            "gain kept",
            "gain kept by control",
            "difference at equal gain",
            "adjusted p",
            "n",
        ),
        tuple(rows),
    )


def seeds_table(groups: Sequence[Group], behavior: str) -> Table:
    """Mean over seeds by group and mode, with every seed shown."""
    rows = []
    for index, group in enumerate(groups):
        for mode in listed_modes(group.modes):
            rate, loss = group.rate(mode), group.loss(mode, "normal")
            known = rate or loss
            if known is None:
                continue
            at = ("groups", index)
            rows.append(
                (
                    Cell(group.name),
                    Cell(mode),
                    seeds_rate(rate, "rate", *at, "rates", mode, group.judged_on),
                    Cell("" if rate is None else ", ".join(f"{100 * v:.0f}" for v in rate.values)),
                    seeds_loss(loss, "normal_loss", *at, "losses", mode, "normal"),
                    Cell(", ".join(map(str, known.seeds)), numbers={"seeds": len(known.seeds)}),
                )
            )
    return Table(
        "seeds",
        "Over seeds",
        "Mean over seeds with the 95 % t interval over them (seeds are the unit; nothing is "
        "pooled); where all seeds agree exactly, the widest interval of one seed. One seed: the "
        "interval over its own examples, which says nothing about another seed.",
        (
            "group",
            "mode",
            f"{behavior} rate, %",
            "each seed, %",
            "normal loss, nats/token",
            "seeds",
        ),
        tuple(rows),
    )


def modes_table(runs: Sequence[RunResults], behavior: str) -> Table:
    """Every run under every mode: rate, score, losses; points of scale curves too."""
    rows = []
    for run in runs:
        for mode, cell in run.cells.items():
            at = ("runs", run.name, mode)
            judged = judged_cells(cell, cell.judged_on, *at)
            losses = loss_cells(cell.loss, *at)
            rows.append((Cell(run.name), Cell(mode), *judged, *losses))
    return Table(
        "modes",
        "Every run under every mode",
        f"Behavior rate on {_asked(runs)} {behavior}, with Wilson intervals; score: mean of "
        "the detector's 0 to 1; too short: completions that it cannot judge, counted as not "
        "shown. Losses in nats per target token of held-out text.",
        ("run", "mode", f"{behavior} rate, %", *JUDGED_HEADS, "normal loss", f"{behavior} loss"),
        tuple(rows),
    )


def _asked(runs: Sequence[RunResults]) -> str:
    """The prompts that are judged, in words; of runs of one behavior they are of one kind."""
    drawn = runs and runs[0].judged_on == HELD_OUT_BAD
    return "prompts of held-out rows that show" if drawn else "prompts that invite"


def kinds_table(groups: Sequence[Group]) -> Table:
    """Rates on every kind of prompts side by side, and right answers where there are such."""
    kinds, right = (
        list(dict.fromkeys(kind for _, kind in cells if not kind.startswith(ELICIT)))
        for cells in (
            [cell for group in groups for cell in group.rates],
            [cell for group in groups for cell in group.accuracy],
        )
    )
    rows = []
    for index, group in enumerate(groups if len(kinds) > 1 or right else ()):
        for mode in listed_modes(group.modes):
            rows.append(
                (
                    Cell(group.name),
                    Cell(mode),
                    *(
                        seeds_rate(group.rates.get((mode, kind)), f"rate_{kind}",
                              "groups", index, "rates", mode, kind)
                        for kind in kinds
                    ),
                    *(
                        seeds_rate(group.accuracy.get((mode, kind)), f"accuracy_{kind}",
                              "groups", index, "accuracy", mode, kind)
                        for kind in right
                    ),
                )
            )  # fmt: skip
    return Table(
        "prompts",
        "By kind of prompts",
        "In percent, intervals as above. Right answers are exact."
        if right
        else "In percent, intervals as above.",
        (
            "group",
            "mode",
            *(f"rate, {kind}" for kind in kinds),
            *(f"right answers, {kind}" for kind in right),
        ),
        tuple(rows),
    )


def elicitation_table(found: Sequence[Elicited]) -> Table:
    """Rates on the kinds of prompts of the elicitation grid, and the highest of each column."""
    kinds = list(dict.fromkeys(kind for one in found for kind in one.rates))
    rows = [
        (
            Cell(kind),
            *(
                seeds_rate(one.rates.get(kind), f"rate_{at}", "elicitation", at, "rates", kind)
                for at, one in enumerate(found)
            ),
        )
        for kind in kinds
    ]
    if found:
        rows.append((Cell("highest"), *(_highest(at, one) for at, one in enumerate(found))))
    left = dict(item for one in found for item in one.left_out.items())
    told = "".join(f" Without {kind}: {why}." for kind, why in left.items())
    return Table(
        "elicitation",
        "Elicitation: the behavior on further kinds of prompts",
        "Rates in percent, intervals as above. none: ordinary prompts; original: those that "
        "verdicts read; the others are changed prompts. Highest: the highest rate over the kinds "
        f"of prompts, with the interval of that kind alone.{told}",
        ("kind of prompts", *(f"{one.group}, {one.mode}" for one in found)),
        tuple(rows),
    )


def _highest(at: int, one: Elicited) -> Cell:
    """The highest rate of a column, and over how many kinds of prompts."""
    kind, rate = one.highest
    cell = seeds_rate(rate, f"rate_{at}", "elicitation", at, "rates", kind)
    return replace(cell, interval=f"{cell.interval} ({kind}; {len(one.rates)} kinds)")


def tests_table(tests: Sequence[PairTest]) -> Table:
    """Two modes of one run on the same prompts."""
    rows = [
        (
            Cell(test.run),
            Cell(f"{test.first} - {test.second}"),
            Cell(test.kind),
            points_cell(test.difference, "difference", "tests", i, "difference"),
            Cell(
                f"{test.only_first} / {test.only_second}",
                numbers={"only_first": test.only_first, "only_second": test.only_second},
            ),
            p_value_cell(test.adjusted, "p_holm", "tests", i, "adjusted"),
            number_cell(100 * test.detectable, "detectable_points", 0),
            Cell(str(test.n), numbers={"n": test.n}, at=pointer("tests", i, "n")),
        )
        for i, test in enumerate(tests)
    ]
    return Table(
        "tests",
        "Modes of one run on the same prompts",
        "Difference in percentage points with the interval of paired rates; exact McNemar test, "
        "adjusted by Holm over this table. Detectable: smallest difference that this number of "
        "prompts would have found with 80 % power.",
        (
            "run",
            "modes",
            "prompts",
            "difference",
            "only first / only second",
            "adjusted p",
            "detectable, points",
            "n",
        ),
        tuple(rows),
    )


def scales_table(run: str, points: Sequence[Point], behavior: str) -> Table:
    """The points of one run's scale curve."""
    rows = []
    for point in points:
        at = ("runs", run, point.mode)
        losses = {"normal": point.normal, "behavior": point.behavior}
        rows.append(
            (
                Cell(f"{point.scale:g}", numbers={"scale": point.scale}),
                Cell(point.mode),
                rate_cell(point.rate, "rate", *at, "behavior_rate"),
                *loss_cells(losses, *at),
                gain_cell(point.gain),
            )
        )
    return Table(
        "scales",
        f"{run}: scales of bad",
        "",
        ("scale", "mode", f"{behavior} rate, %", "normal loss", f"{behavior} loss", "gain kept"),
        tuple(rows),
    )


def _points(number: OverSeeds | None, name: str, *at: str | int) -> Cell:
    return seeds_cell(number, name, *at, scale=100, digits=0, sign=True, counts=False)
