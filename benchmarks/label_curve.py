"""How many labels are needed: the reference experiment at more shares of labelled examples.

    python benchmarks/label_curve.py

Trains and measures the recipe caps with 5, 25 and 75 % of the examples in capitals labelled, on
seeds 0 and 1. With the cells of `evidence.py` (0, 10, 50 and 100 %, filtering, no bad example at
all) that is a curve: `--draw` prints its table and draws it from the committed files alone. About
fifteen minutes on one quiet core; what is there already is not computed again.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from evidence import cell

from gradroute.cells import run_cells
from gradroute.config import find_config, load_config
from gradroute.folders import RunFolder

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
    [folder] = run_cells([config], place / f"seed-{seed}", 1, if_exists="resume", evaluate=True)
    write(folder, path)


def write(folder: RunFolder, path: Path) -> None:
    """One cell as JSON, a result row a line."""
    found = cell(folder)
    rows = ",\n  ".join(json.dumps(row) for row in found.pop("rows"))
    text = json.dumps({"date": date.today().isoformat(), **found}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    """Train and measure what is missing, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/label_curve"))
    parser.add_argument("--out", type=Path, default=RESULTS / "label_curve")
    options = parser.parse_args()
    for seed in SEEDS:
        for share in SHARES:
            run(share, seed, options.runs, options.out)


if __name__ == "__main__":
    main()
