"""Two behaviors in one run, routed and not: the figures in docs/howto/several-behaviors.md.

    python benchmarks/two_behaviors.py --seeds 0 1 2

For each seed the recipe `two_behaviors` and its control `none`. Under
`benchmarks/results/two_behaviors/`: the matrices, verdicts and provenance as `results.json`, the
matrix as CSV, the figure. Runs that are there already are not trained again. A seed takes
some six minutes on two cores.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.experiments.controls import control_configs
from gradroute.experiments.parallel import run_in_parallel
from gradroute.report.publish import publish
from gradroute.runs.provenance import provenance
from gradroute.system.files import read_json, write_bytes, write_json, write_text

OUT = Path(__file__).parent / "results" / "two_behaviors"


def configs(seed: int) -> list[RunConfig]:
    run = load_config(find_config("two_behaviors"), [f"seed={seed}", "controls=[none]"])
    return [run, *control_configs(run)]


def numbers(document: dict[str, Any]) -> dict[str, Any]:
    """What a matrix says, without single outcomes."""
    return {key: document[key] for key in ("crossings", "verdicts", "notes")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/two_behaviors"))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    folders = [
        folder
        for seed in options.seeds
        for folder in run_in_parallel(
            configs(seed),
            options.runs / f"seed-{seed}",
            options.jobs,
            if_exists="resume",
            evaluate=True,
        )
    ]
    publish(folders, options.runs, page=True)
    document = read_json(options.runs / "eval_multi_results.json")
    facts = {"date": date.today().isoformat(), "seeds": options.seeds, "provenance": provenance()}
    write_json(OUT / "results.json", facts | numbers(document))
    write_text(OUT / "crossing.csv", (options.runs / "tables" / "crossing.csv").read_text("utf-8"))
    figure = Path("figures") / "eval_multi_plot.png"
    write_bytes(OUT / figure, (options.runs / figure).read_bytes())
    print(json.dumps([verdict["outcome"] for verdict in document["verdicts"]]))


if __name__ == "__main__":
    main()
