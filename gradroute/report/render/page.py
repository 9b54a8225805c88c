"""The comparison as one self-contained HTML page that opens offline and sends nothing.

The page is a view of `eval_multi_results.json` and the samples. Everything that came from a run
goes through the template's escaping or, as JSON, into an element that no browser executes; the
content security policy allows the page's own style and script by their hash, images from the page
itself, and nothing else.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradroute.report.judge.comparison import Comparison, SingleBehaviorComparison
from gradroute.report.judge.verdicts import Check
from gradroute.report.render.claim_lines import tone
from gradroute.report.render.explorer import explore
from gradroute.report.render.figure_style import DrawnForms
from gradroute.report.render.figures import MOST_TRAININGS, Picture
from gradroute.report.render.headline import (
    VerdictGroup,
    group_verdicts,
    headline,
    lead_sentences,
)
from gradroute.report.render.limits import limits
from gradroute.report.render.provenance import config_texts, provenance_groups
from gradroute.report.render.scale_figures import bad_curves
from gradroute.report.render.self_contained import self_contained_page
from gradroute.report.render.table_cells import Table
from gradroute.report.render.tables import scales_table
from gradroute.report.results.scales import listed_modes

_TITLES = {
    "headline": "Headline",
    "crossing": "Cross-ablation",
    "controls": "Against controls",
    "verdicts": "Every verdict",
    "rates": "Rates and losses",
    "scales": "Scale of bad",
    "samples": "Samples",
    "geometry": "Geometry",
    "revival": "Relearning",
    "doctor": "Gain kept",
    "training": "Training",
    "configuration": "Configuration",
    "limits": "Limits",
}


@dataclass(frozen=True)
class Embedded:
    """A picture inside the page, drawn for light and for dark paper."""

    picture: Picture
    light: str
    dark: str
    width: int
    height: int


def page_html(
    comparison: Comparison, tables: Sequence[Table], pictures: Sequence[tuple[Picture, DrawnForms]]
) -> str:
    """The whole page.

    Args:
        comparison: What is known of the runs.
        tables: Those of `tables.tables`.
        pictures: Those of `figures.pictures`, drawn.

    Returns:
        HTML; the same comparison gives the same text.
    """
    explorer = explore(comparison)
    images = [_embedded(picture, drawn) for picture, drawn in pictures]
    by_name = {table.name: table for table in tables}
    single = isinstance(comparison, SingleBehaviorComparison)
    own = _of_good_and_bad(comparison, by_name) if single else _NOT_OF_SEVERAL
    there = {picture.section for picture, _ in pictures}
    there |= {"controls"} if "claims" in by_name else set()
    there |= {"scales"} if any(run["scales"] for run in explorer.data["runs"]) else set()
    there |= {"geometry"} if "geometry" in by_name else set()
    there |= {"revival"} if {"relearning", "recovery"} & by_name.keys() else set()
    there |= {"headline", "rates", "samples", "configuration", "limits"}
    there |= {"verdicts"} if comparison.verdicts else set()
    there |= set() if single else {"crossing"}
    there |= {"doctor"} if own["findings"] else set()
    context: dict[str, Any] = {
        "title": _title(comparison),
        "kicker": _kicker(comparison),
        "lead": lead_sentences(comparison),
        "headline": headline(comparison),
        "sections": [{"id": id, "title": title} for id, title in _TITLES.items() if id in there],
        "shown": there,
        "tables": by_name,
        "pictures": images,
        "explorer": explorer,
        "verdicts": [_judged(one) for one in group_verdicts(comparison)],
        "training_note": _training_note(comparison),
        "grounds": provenance_groups(comparison.runs),
        "configs": config_texts(comparison.runs),
        "limits": limits(comparison),
        "notes": comparison.notes,
        **own,
    }
    return self_contained_page(
        "report.html",
        context,
        styles=("report.css",),
        scripts=("common.js", "report.js"),
        data=explorer.data,
    )


# The template names these of every comparison; it refuses a name that it is not given.
_NOT_OF_SEVERAL: Mapping[str, Any] = {
    "claims": (),
    "standing": None,
    "deployments": (),
    "warnings": (),
    "scale_tables": (),
    "findings": (),
}


def _of_good_and_bad(
    comparison: SingleBehaviorComparison, tables: Mapping[str, Table]
) -> Mapping[str, Any]:
    """What the template shows of `good` and `bad` alone."""
    deployment = comparison.deployment
    return {
        "claims": comparison.claims,
        "standing": _open_table(comparison, tables),
        "deployments": [(run, one.sentence) for run, one in deployment.items()],
        "warnings": list(dict.fromkeys(one.warning for one in deployment.values())),
        "scale_tables": _scale_tables(comparison),
        "findings": [(run, found) for run, found in comparison.findings.items() if found],
    }


def _open_table(comparison: SingleBehaviorComparison, tables: Mapping[str, Table]) -> Table | None:
    """The table that stands open: groups where there are seeds, else runs without their scales."""
    if any(len(group.seeds) > 1 for group in comparison.groups):
        return tables.get("seeds")
    modes = tables.get("modes")
    if modes is None:
        return None
    listed = listed_modes(row[1].text for row in modes.rows)
    rows = tuple(row for row in modes.rows if row[1].text in listed)
    return replace(modes, title="Rates and losses by run and mode", rows=rows)


def _embedded(picture: Picture, drawn: DrawnForms) -> Embedded:
    width, height = struct.unpack(">II", drawn.light[16:24])  # of the PNG's header
    return Embedded(picture, _address(drawn.light), _address(drawn.dark), width, height)


def _address(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"


def _title(comparison: Comparison) -> str:
    routed = [group for group in comparison.groups if group.role == "routed"]
    what = "Gradient routing" if routed else "Behavior rates"
    return f"{what}: {comparison.behavior}"


def _kicker(comparison: Comparison) -> str:
    """What is compared, in one line."""
    seeds = sorted({run.seed for run in comparison.runs})
    models = sorted({str(run.config["model"]) for run in comparison.runs})
    runs = f"{len(comparison.runs)} run{'s' if len(comparison.runs) > 1 else ''}"
    word = "seeds" if len(seeds) > 1 else "seed"
    return f"{runs}, {word} {', '.join(map(str, seeds))}, base model {', '.join(models)}"


def _scale_tables(comparison: SingleBehaviorComparison) -> list[Table]:
    return [
        scales_table(curve.run, curve.points, comparison.behavior)
        for curve in bad_curves(comparison)
        if len(curve.points) > 2
    ]


def _judged(one: VerdictGroup) -> dict[str, Any]:
    first, *_ = one.verdicts
    return {
        "outcome": one.outcome,
        "tone": tone(one.outcome) if first.number != 4 else "",
        "names": one.names,
        "claim": one.claim.removesuffix("."),
        "runs": [(v.run, [_check(check) for check in v.checks]) for v in one.verdicts],
    }


def _check(check: Check) -> dict[str, str]:
    if not check.decides:
        return {"mark": "beside", "tone": "info", "text": check.text}
    mark, tone = {True: ("holds", "yes"), False: ("fails", "no"), None: ("open", "open")}[check.met]
    return {"mark": mark, "tone": tone, "text": check.text}


def _training_note(comparison: Comparison) -> str:
    text = "One run of each group, its first seed; `gradroute plot RUN` draws any other."
    left_out = sum(bool(group.runs) for group in comparison.groups) - MOST_TRAININGS
    return text if left_out <= 0 else f"{text} {left_out} more groups are left out here."
