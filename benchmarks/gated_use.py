"""Gated use: are both models of one routed run as good as a run for each?

    python benchmarks/gated_use.py caps --seeds 100 --tables none oracle anchored bad-x4
    python benchmarks/gated_use.py --table

With `bad` on, the run is held to an unrouted run of the same data; with `bad` off, to a run without
a bad row (oracle). All have the same steps and total rank. CPU seconds are those of the process
while it trains, from reading the data to the last checkpoint. One JSON file per cell; a cell that
is there is not computed again. A cell takes three minutes on one quiet core. The table also reads
the runs of `evidence.py` and `label_curve.py`, whose CPU seconds are not known.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from label_curve import write

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.experiments.controls import control_config
from gradroute.run import evaluate_run, train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
CONTROLS = ("none", "oracle")
TABLES: Mapping[str, str] = {
    "anchored": "anchored",
    "absorb": "absorb",
    # `anchored`, with the gradient of a labeled row four times as large
    "bad-x4": "{bad: {good: freeze, bad: {update: 4}}, unlabeled: {good: update, bad: update}, "
    "good: {good: update, bad: ablate}}",
}
# Names in `evidence.py` of the same two controls; every other routed run there is `anchored`.
KNOWN = {"caps": ("0.1_0.0", "0.1_0.5-oracle"), "": ("0.1_0.5-none", "0.1_0.5-oracle")}
LOSS_MARGIN, RATE_MARGIN, CPU_SHARE = 0.05, 0.05, 0.6
COLUMNS = (
    "behavior",
    "run",
    "labeled",
    "behavior loss, full (unrouted)",
    "rate, full (unrouted), %",
    "rate, bad off (oracle), %",
    "normal loss, bad off (oracle)",
    "behavior loss, bad off (oracle)",
    "CPU",
    "reached",
)

Cell = dict[str, Any]


def config_of(behavior: str, table: str, labeled: float, seed: int) -> RunConfig:
    """The routed run, or the control, of a cell; controls do not depend on the labels."""
    control = table in CONTROLS
    name = table if control else f"{table}-labeled-{labeled:g}"
    changes = [
        f"run_name={name}",
        f"seed={seed}",
        f"data.labeled_fraction={labeled}",
        f"evaluate.modes=[{'full' if control else 'full, bad_ablated'}]",
        *(() if control else (f"routing={TABLES[table]}",)),
    ]
    config = load_config(find_config(behavior), changes)
    if not control:
        return config
    alone = {"run_name": name, "control_of": None, "control": None}
    return control_config(config, table).model_copy(update=alone)


def cell(config: RunConfig, root: Path, path: Path) -> None:
    """Train and measure one run, as far as that is not done, and write it."""
    folder = RunFolder(root / config.run_name)
    spent = folder.path / "cpu_seconds.json"
    if not spent.is_file():  # a run that goes on would count its last part alone
        before = time.process_time()
        train_run(config, root, if_exists="new", bar=False)
        write_json(spent, {"cpu_seconds": time.process_time() - before})
    evaluate_run(folder)
    write(folder, path, beside=read_json(spent))


def table(out: Path) -> list[str]:
    """The committed cells as Markdown, seed beside seed."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + len(COLUMNS) * "---|"]
    for place in sorted((RESULTS / "evidence").iterdir()):
        runs = _read(place)
        if place.name == "caps":
            for name, seeds in _read(RESULTS / "label_curve").items():
                runs.setdefault(name, {}).update(seeds)
        controls = KNOWN.get(place.name, KNOWN[""])
        routed = [name for name in runs if name.startswith("0.1_") and name.count("_") == 1]
        lines += _rows(place.name, runs, controls, [n for n in routed if "-" not in n])
    for place in sorted(path for path in out.iterdir() if path.is_dir()):
        runs = _read(place)
        lines += _rows(place.name, runs, CONTROLS, [n for n in runs if n not in CONTROLS])
    return lines


def _read(place: Path) -> dict[str, dict[int, Cell]]:
    """Run -> seed -> its cell, with the results by mode, data and metric in `by`."""
    runs: dict[str, dict[int, Cell]] = {}
    for path in sorted(place.glob("*_seed*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        one["by"] = {(row[0], row[1], row[2]): row[3] for row in one["rows"]}
        runs.setdefault(one["run"], {})[one["seed"]] = one
    return runs


def _rows(
    behavior: str, runs: Mapping[str, dict[int, Cell]], controls: tuple[str, str], routed: list[str]
) -> list[str]:
    lines = []
    for name in sorted(set(routed) - {*controls}):
        columns: list[list[str]] = [[] for _ in COLUMNS[3:]]
        for seed, own in sorted(runs[name].items()):
            unrouted, oracle = (runs.get(control, {}).get(seed) for control in controls)
            if unrouted and oracle:
                for column, text in zip(columns, _compared(own, unrouted, oracle), strict=True):
                    column.append(text)
        if columns[0]:
            data = next(iter(runs[name].values()))["config"]["data"]
            texts = [" · ".join(column).strip(" ·") for column in columns]
            share = f"{100 * data['labeled_fraction']:.0f} %"
            lines.append(f"| {behavior} | `{name}` | {share} | {' | '.join(texts)} |")
    return lines


def _compared(own: Cell, unrouted: Cell, oracle: Cell) -> list[str]:
    """The columns of one routed run, beside the two controls of its seed."""
    rate, loss = ("prefix", "behavior_rate"), ("behavior", "held_out_loss")
    normal = ("normal", "held_out_loss")
    full, off = "full", "bad_ablated"

    def pair(mode: str, key: tuple[str, str], other: Cell, text: str, scale: int = 1) -> str:
        values = (scale * own["by"][mode, *key], scale * other["by"][full, *key])
        return f"{values[0]:{text}} ({values[1]:{text}})"

    gap = own["by"][full, *loss] - unrouted["by"][full, *loss]
    dirt = own["by"][off, *rate] - oracle["by"][full, *rate]
    known = all("cpu_seconds" in one for one in (own, unrouted, oracle))
    both = known and unrouted["cpu_seconds"] + oracle["cpu_seconds"]
    share = own["cpu_seconds"] / both if both else None
    reached = gap <= LOSS_MARGIN and dirt <= RATE_MARGIN and (share or 0) <= CPU_SHARE
    return [
        pair(full, loss, unrouted, ".3f"),
        pair(full, rate, unrouted, ".0f", 100),
        pair(off, rate, oracle, ".0f", 100),
        pair(off, normal, oracle, ".3f"),
        pair(off, loss, oracle, ".2f"),
        "" if share is None else f"{share:.2f}",
        "yes" if reached else "no",
    ]


def main() -> None:
    """Train and measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behavior", nargs="?", default="caps")
    parser.add_argument("--labeled", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--tables", nargs="+", default=(*CONTROLS, "anchored"))
    parser.add_argument("--runs", type=Path, default=Path("runs/gated_use"))
    parser.add_argument("--out", type=Path, default=RESULTS / "gated_use")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            for name in options.tables:
                config = config_of(options.behavior, name, options.labeled, seed)
                path = options.out / options.behavior / f"{config.run_name}_seed{seed}.json"
                if not path.is_file():
                    cell(config, options.runs / options.behavior / f"seed-{seed}", path)
    print("\n".join(table(options.out)))


if __name__ == "__main__":
    main()
