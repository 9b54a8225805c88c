"""What `find` finds: precision, recall and realized false discovery rate, behavior by behavior.

    python benchmarks/finding.py caps signature dialect wrong_answers --flags 0.1 --good 0.3
    python benchmarks/finding.py --table

At each point the routed run of `equal_information` is trained (seeds it has trained are not trained
again) and its unlabeled rows are scored by the adapter and by classifiers with the same labels. One
JSON file per cell. A cell takes three to five minutes on one quiet core.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from equal_information import RUNS, Point, routed

from gradroute.probes.finder import FDR, find_rows
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines, write_json

RESULTS = Path(__file__).parent / "results" / "finding"
FINDERS = ("adapter", "hidden", "words")
COLUMNS = ("behavior", "flags", "known good", "by", "R-precision", "found", "recall", "precision")


def cell(behavior: str, flags: float, good: float, seed: int, root: Path) -> dict[str, Any]:
    """Train the routed run and score its unlabeled rows by every finder."""
    config = routed(Point(behavior, flags, good), seed)
    folder = train_run(config, root / behavior / f"seed-{seed}", if_exists="resume", bar=False)
    summaries = {by: _summary(folder, by) for by in FINDERS}
    point = {"behavior": behavior, "flags": flags, "known_good": good, "seed": seed}
    return {**point, "found": summaries}


def _summary(folder: RunFolder, by: str) -> dict[str, Any]:
    summary = dict(find_rows(folder, by=by, fdr=FDR))
    lines = list(read_lines(folder.found / f"{by}_scores.jsonl"))
    bad = np.array([line["true_label"] == summary["behavior"] for line in lines])
    total = int(bad.sum())
    return {
        **{key: value for key, value in summary.items() if key != "provenance"},
        "r_precision": float(bad[:total].mean()) if total else None,
        "in_top_tenth": float(bad[: len(bad) // 10].sum() / total) if total else None,
    }


def table(out: Path) -> list[str]:
    """The committed cells as Markdown, a line per point and finder, seed beside seed."""
    points: dict[tuple[str, float, float, str], list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        for by in FINDERS:
            key = (one["behavior"], one["flags"], one["known_good"], by)
            points.setdefault(key, []).append(one["found"][by])
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + len(COLUMNS) * "---|"]
    for (behavior, flags, good, by), found in points.items():
        cells = (
            [f"{one['r_precision']:.2f}" for one in found],
            [str(one["found"]) for one in found],
            [_value(one["truth"]["recall"]) for one in found],
            [_value(one["truth"]["precision"]) for one in found],
        )
        told = " | ".join(" · ".join(own) for own in cells)
        lines.append(f"| {behavior} | {100 * flags:g} % | {100 * good:g} % | `{by}` | {told} |")
    return lines


def _value(share: dict[str, float] | None) -> str:
    return "-" if share is None else f"{share['value']:.2f}"


def main() -> None:
    """Measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behaviors", nargs="*")
    parser.add_argument("--flags", type=float, default=0.1)
    parser.add_argument("--good", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    for seed in options.seeds:
        for behavior in () if options.table else options.behaviors:
            name = f"{behavior}_{Point(behavior, options.flags, options.good).name}_seed{seed}.json"
            if not (options.out / name).is_file():
                found = cell(behavior, options.flags, options.good, seed, options.runs)
                write_json(options.out / name, found)
    print("\n".join(table(options.out)))


if __name__ == "__main__":
    main()
