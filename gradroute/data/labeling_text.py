"""The terminal text of the labeling of a file."""

from collections.abc import Iterator, Mapping
from typing import Any


def labeling_text(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines about a report of `gradroute.data.labeling.label_file`."""
    rows = report["rows"]
    yield f"{rows} rows of {report['file']}"
    for label, counted in report["labels"].items():
        examples = ", ".join(counted["examples"])
        more = f"  first: {examples}" if examples else ""
        yield f"  {label:<10}{counted['k']:>8}  {100 * counted['share']:5.1f} %{more}"
    if report["without_score"]:
        yield (
            f"  {report['without_score']} of the unlabeled rows have no score (missing, or too "
            "short to judge)"
        )
    if report["rest"] == "good":
        yield (
            "  good: every row that is not bad, unchecked. Such rows train the shipped adapter, "
            "which learns any bad row that was missed."
        )
    if report["with_true_label"]:
        yield f"against the true_label of {report['with_true_label']} rows:"
        yield f"  precision of bad  {_of(report['precision'], 'row is labeled bad')}"
        yield f"  recall of bad     {_of(report['recall'], 'row is truly bad')}"
        if report["bad_among_good"]:
            yield f"  bad among good    {_of(report['bad_among_good'], '')}"


def _of(share: Mapping[str, Any] | None, missing: str) -> str:
    if share is None:
        return f"not known: no {missing}"
    percent, low, high = (f"{100 * share[name]:.1f}" for name in ("share", "lower", "upper"))
    return f"{share['k']} of {share['n']}  {percent} % (95 % interval {low} to {high})"
