"""Geometry, relearning and recovery for the terminal: a table each, with a reading note."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.report.judge.relearning import FULL_CURVES, strongest
from gradroute.report.render.table_cells import aligned
from gradroute.runs.results import HELD_OUT_BAD
from gradroute.system.terminal import safe_text

Record = Mapping[str, Any]


def geometry_text(runs: Sequence[tuple[str, bool, Record]]) -> str:
    """Means over the modules of each run, beside those of random updates of the same shapes.

    Args:
        runs: name, whether the run routes, and `geometry.json` of each.
    """
    lines = [["run", "routed", "|cos| of updates", "A, mean cos²", "B, mean cos²"]]
    for name, routed, record in runs:
        numbers = [
            f"{_number(record['summary'][key])} ({_number(record['random'][key]['mean'])})"
            for key in ("mean_absolute_cosine", "mean_cos2_A", "mean_cos2_B")
        ]
        lines.append([name, "yes" if routed else "no", *numbers])
    note = (
        "Means over the modules; in brackets the same of random updates of those shapes. Two "
        "adapters\nshare nothing if a number equals the one in brackets; the unrouted run shows "
        "how much is shared\nwithout any routing."
    )
    if all(routed for _, routed, _ in runs):
        note += " There is no unrouted run here: name one too (routing=none, both adapters)."
    return safe_text(f"{aligned(lines)}\n{note}")


def found_text(place: str, summary: Record) -> str:
    """What `find` found in one run.

    Args:
        place: The folder of the files that were written.
        summary: `<by>.json` of that folder.
    """
    by = summary["by"]
    (_, first), *others = found_facts(summary)
    lines = [f"{summary['run']}: {first}", *(sentence for _, sentence in others)]
    lines += summary.get("notes", ())
    lines.append(
        f"written: {place}: {by}.html (review the rows), {by}.jsonl (the rows found; train with "
        f"data.found), {by}_scores.jsonl (every row), {by}.json"
    )
    return safe_text("\n".join(lines))


def found_facts(summary: Record) -> list[tuple[str, str]]:
    """What `find` found: a heading and a sentence each."""
    bad, truth, file = summary["bad"], summary["truth"], summary.get("file")
    rows = "unlabeled rows" if file is None else f"unlabeled rows of {file['name']}"
    facts = [
        (
            "Found",
            f"{summary['found']} of {summary['unlabeled']} {rows} look like "
            f"{summary['behavior']} by {summary['by']}; at most {100 * summary['fdr']:g} % of them "
            "are false, on average.",
        ),
        (
            "In all",
            f"About {bad['estimate']:.0f} [{bad['low']:.0f}, {bad['high']:.0f}] of the {rows} are "
            f"bad; about {summary['remaining']:.0f} of these were not found.",
        ),
        (
            "Compared with",
            f"{summary['null']} rows known to be good, whose label training did not see, say how "
            "often a good row scores as high. By rank alone they could tell "
            f"{summary['least_by_rank']} rows or more; fewer are told by a fitted tail.",
        ),
    ]
    if truth["bad"]:
        shares = [
            f"{name} {100 * own['value']:.0f} % "
            f"[{100 * own['lower']:.0f}, {100 * own['upper']:.0f}]"
            for name in ("precision", "recall")
            if (own := truth[name])
        ]
        told = ", ".join(shares) or "none found"
        facts.append(("By the true labels", f"By the true labels, {truth['bad']} are bad: {told}."))
    return facts


def relearn_text(runs: Sequence[tuple[str, Record]]) -> str:
    """Steps until the behavior is back, run by run.

    Args:
        runs: name and `relearn.json` of each; of one behavior or several.
    """
    best = [strongest(record) for _, record in runs]
    lora, full = any(record["curves"] for _, record in runs), any(best)
    heads = ["run", "shipped as", "behavior", "at first"]
    heads += ["own learning rate", "a third of it"] if lora else []
    heads += ["all weights, strongest"] if full else []
    lines = [heads]
    for (name, record), own in zip(runs, best, strict=True):
        curves = sorted(record["curves"], key=lambda curve: -curve["learning_rate"])
        first = (curves or [own or {}])[0]["points"][0]
        start = f"{first['shown']} of {first['n']}"
        found = [_steps(curve) for curve in curves] or (["-", "-"] if lora else [])
        found += ["-" if own is None else _steps(own)] if full else []
        lines.append([name, record["kept_mode"], record["behavior"], start, *found])
    some = runs[0][1]
    drawn = any(record.get("settings", {}).get("kind") == HELD_OUT_BAD for _, record in runs)
    note = (
        f"Steps of plain fine-tuning (a fresh adapter, AdamW, constant rate) on {some['examples']} "
        f"examples\nof the behavior until {100 * some['threshold']:.0f} % of the completions show "
        "it. A run that takes fewer steps than one that\nnever saw the behavior had it suppressed "
        "rather than absent."
    )
    if full:
        rates = len(some.get(FULL_CURVES, ()))
        note += f"\nAll weights: every weight is trained, at the strongest of {rates} rates."
    if drawn:
        note += "\nThe prompts are those of held-out rows that show the behavior."
    return safe_text(f"{aligned(lines)}\n{note}")


def recover_text(name: str, behavior: str, record: Record) -> str:
    """Rate and losses of each mode before and after the tune of what is kept.

    Args:
        name: of the run.
        behavior: its name.
        record: `recover.json`.
    """
    lines = [["mode", "", f"{behavior} rate", "normal loss", f"{behavior} loss"]]
    for mode in record["before"]:
        for when in ("before", "after"):
            cell = record[when][mode]
            head = mode if when == "before" else ""
            losses = [_number(cell["normal_loss"]), _number(cell["behavior_loss"])]
            lines.append([head, when, _rate(cell["rate"]), *losses])
    title = (
        f"{name}: {record['steps']} steps at learning rate {record['learning_rate']:.2g} on "
        f"{record['examples']} known-good examples, {record['mode']}"
    )
    return safe_text(f"{title}\n{aligned(lines)}{_asked(record)}{_cost(record)}")


def _asked(record: Record) -> str:
    """On which prompts the rates are, where it is not those that invite the behavior."""
    if record.get("kind") != HELD_OUT_BAD:
        return ""
    if record["before"][record["mode"]]["rate"] is None:
        return "\nRates are not measured: no held-out row shows the behavior."
    return "\nRates are on prompts of held-out rows that show the behavior."


def _cost(record: Record) -> str:
    """What of the normal loss that ablation cost came back."""
    mode = record["mode"]
    ablated, after = (record[when][mode]["normal_loss"] for when in ("before", "after"))
    full = record["before"]["full"]["normal_loss"]
    if ablated is None or after is None or full is None:
        return ""
    return (
        f"\nNormal loss under {mode}: {after - ablated:+.3f} nats by the tune; ablation had cost "
        f"{ablated - full:+.3f} over full."
    )


def _steps(curve: Record) -> str:
    rate = f"(at {curve['learning_rate']:.2g})"
    reached = curve["steps_to_threshold"]
    if reached is None:
        return f"not in {curve['max_steps']} {rate}"
    return f"{reached} {rate}" if reached else f"there already {rate}"


def _rate(rate: Record | None) -> str:
    if rate is None:
        return "-"
    return (
        f"{100 * rate['mean']:3.0f} % [{100 * rate['lower']:.0f}, {100 * rate['upper']:.0f}] "
        f"of {rate['n']}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.4f}"
