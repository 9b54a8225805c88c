"""How many labels are needed: the reference experiment at more shares of labeled examples.

    python benchmarks/label_curve.py

Trains and measures the recipe caps with 5, 25 and 75 % of the examples in capitals labeled, on
seeds 0 and 1. With the cells of `evidence.py` (0, 10, 50 and 100 %, filtering, no bad example at
all) that is a curve: `--draw` prints its table and draws it from the committed files alone. About
fifteen minutes on one quiet core; what is there already is not computed again.
"""

import argparse
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evidence import cell

from gradroute.config.run_config import find_config, load_config
from gradroute.experiments.parallel import run_in_parallel
from gradroute.runs.folder import RunFolder

RESULTS = Path(__file__).parent / "results"
EVIDENCE = RESULTS / "evidence" / "caps"
SHARES = ("0.05", "0.25", "0.75")
SEEDS = (0, 1)


def run(share: str, seed: int, place: Path, out: Path) -> None:
    """Train and measure one cell, and write what is known of it."""
    name = f"0.1_{share}"
    path = out / f"{name}_seed{seed}.json"
    if path.is_file():
        return
    changes = [f"run_name={name}", f"seed={seed}", f"data.labeled_fraction={share}"]
    config = load_config(find_config("caps"), changes)
    [folder] = run_in_parallel(
        [config], place / f"seed-{seed}", 1, if_exists="resume", evaluate=True
    )
    write(folder, path)


def write(folder: RunFolder, path: Path, beside: Mapping[str, Any] = MappingProxyType({})) -> None:
    """One cell as JSON, a result row a line, with what was measured beside it."""
    found = {**cell(folder), **beside}
    rows = ",\n  ".join(json.dumps(row) for row in found.pop("rows"))
    text = json.dumps({"date": date.today().isoformat(), **found}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


def cells(out: Path) -> dict[float, dict[str, list[dict[str, Any]]]]:
    """Share of labels -> "routed" and "filter" -> the committed cells, a seed each."""
    names = {0.0: "0.1_0.5-anchors_only", 0.1: "0.1_0.1", 0.5: "0.1_0.5", 1.0: "0.1_1.0"}
    filters = {0.0: "0.1_0.0", 0.1: "0.1_0.1-filter", 0.5: "0.1_0.5-filter", 1.0: "0.1_0.5-oracle"}
    found: dict[float, dict[str, list[dict[str, Any]]]] = {}
    for share in sorted({*names, *map(float, SHARES)}):
        place, name = (EVIDENCE, names[share]) if share in names else (out, f"0.1_{share:g}")
        found[share] = {
            "routed": _read(place, name),
            "filter": _read(EVIDENCE, filters[share]) if share in filters else [],
        }
    return found


def _read(place: Path, name: str) -> list[dict[str, Any]]:
    paths = sorted(place.glob(f"{name}_seed*.json"))
    read = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [{(row[0], row[1], row[2]): row[3] for row in one["rows"]} for one in read]


RATE, LOSS = ("prefix", "behavior_rate"), "held_out_loss"


def table(found: dict[float, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """The curve as Markdown, seed beside seed; rates in percent."""
    lines = [
        "| labeled | full | bad_ablated | good_ablated | good_x2 | normal loss | caps loss "
        "| filter with the same labels |",
        "|" + 8 * "---|",
    ]
    for share, of in found.items():
        runs = of["routed"]
        if not runs:
            continue
        rates = [
            " · ".join(f"{100 * run[mode, *RATE]:.0f}" for run in runs)
            for mode in ("full", "bad_ablated", "good_ablated", "good_x2")
        ]
        losses = [
            " · ".join(f"{run['bad_ablated', kind, LOSS]:.{digits}f}" for run in runs)
            for kind, digits in (("normal", 3), ("behavior", 2))
        ]
        filtered = " · ".join(f"{100 * run['full', *RATE]:.0f}" for run in of["filter"])
        lines.append(f"| {100 * share:.0f} % | {' | '.join([*rates, *losses, filtered])} |")
    return lines


def draw(found: dict[float, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """The curve as a picture: rates on the left, on the right what ships loses on capitals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), constrained_layout=True)
    curves = (
        ("routed, bad off (what is shipped)", "routed", "bad_ablated", "#1b6ca8", "o", "-"),
        ("routed, good off (is it in bad?)", "routed", "good_ablated", "#c8553d", "s", "--"),
        ("filter (labeled ones dropped)", "filter", "full", "#666666", "^", ":"),
    )
    for name, kind, mode, color, marker, style in curves:
        _curve(left, found, kind, (mode, *RATE), 100, (name, color, marker, style))
    left.set(xlabel="bad examples that are labeled, %", ylabel="completions in capitals, %")
    left.set(ylim=(-4, 104))
    left.legend(loc="upper left", fontsize=8, frameon=False, bbox_to_anchor=(0.0, 0.92))
    key = ("bad_ablated", "behavior", LOSS)
    _curve(right, found, "routed", key, 1, ("routed", "#1b6ca8", "o", "-"))
    never = sum(one[("full", "behavior", LOSS)] for one in _read(EVIDENCE, "0.1_0.5-oracle")) / 3
    right.axhline(never, color="#666666", linestyle=":", linewidth=1)
    right.text(2, never + 0.06, "a model that never saw one (oracle)", fontsize=8, color="#444444")
    right.set(xlabel="bad examples that are labeled, %")
    right.set(ylabel="loss on capitals, bad off, nats")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(
    axis: Any,
    found: dict[float, dict[str, list[dict[str, Any]]]],
    kind: str,
    key: tuple[str, ...],
    factor: float,
    look: tuple[str, str, str, str],
) -> None:
    """A line through the means over seeds, and every seed as a mark."""
    name, color, marker, style = look
    points = {100 * s: [factor * run[key] for run in of[kind]] for s, of in found.items()}
    points = {share: values for share, values in points.items() if values}
    means = [sum(values) / len(values) for values in points.values()]
    axis.plot(list(points), means, style, color=color, label=name, linewidth=1.5)
    every = [(share, value) for share, values in points.items() for value in values]
    axis.scatter(*zip(*every, strict=True), color=color, marker=marker, s=18, zorder=3)


def main() -> None:
    """Train and measure what is missing, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/label_curve"))
    parser.add_argument("--out", type=Path, default=RESULTS / "label_curve")
    parser.add_argument("--draw", action="store_true", help="only the table and the picture")
    options = parser.parse_args()
    if not options.draw:
        for seed in SEEDS:
            for share in SHARES:
                run(share, seed, options.runs, options.out)
    found = cells(options.out)
    print("\n".join(table(found)))
    draw(found, options.out / "label_curve.png")


if __name__ == "__main__":
    main()
