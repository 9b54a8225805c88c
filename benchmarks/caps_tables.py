"""The caps experiment under every named table: the figures in the README.

    python benchmarks/caps_tables.py --seeds 0 1 2

For each seed the demo's six runs; with seed 0 also `absorb` and `exclusive` at 50 % and 100 %
labels, and the original description taken to the word. One JSON file per seed under
`benchmarks/results/`; runs that are there already are not trained again. A seed takes about six
minutes on two cores, seed 0 twice that.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.experiments.demo import demo_configs
from gradroute.experiments.parallel import run_in_parallel
from gradroute.report.publish import publish
from gradroute.runs.provenance import provenance

NO_ANCHORS = "data.good_labeled_fraction=0"
EXTRA = {
    f"{table}_{labeled}": (f"routing={table}", f"data.labeled_fraction={labeled}", NO_ANCHORS)
    for table in ("absorb", "exclusive")
    for labeled in ("0.5", "1.0")
}
# "Good LoRA: updated on all examples; Bad LoRA: only updated on labeled bad examples", to the word.
TO_THE_WORD = (
    "routing={bad: {good: update, bad: update}, unlabeled: {good: update, bad: freeze}, "
    "good: {good: update, bad: freeze}}"
)
EXTRA["to_the_word_0.5"] = (TO_THE_WORD, "data.labeled_fraction=0.5", NO_ANCHORS)


def configs(seed: int) -> list[RunConfig]:
    """Every run of one seed."""
    recipe = find_config("caps")
    extra = [
        load_config(recipe, [f"run_name={name}", f"seed={seed}", *changes])
        for name, changes in EXTRA.items()
        if seed == 0
    ]
    return [*demo_configs(seed, quick=False), *extra]


def numbers(document: dict[str, Any]) -> dict[str, Any]:
    """The measured numbers of a comparison, without configurations and provenance."""
    runs = {
        name: {key: value for key, value in run.items() if key not in ("config", "provenance")}
        for name, run in document["runs"].items()
    }
    for run in runs.values():
        del run["geometry"]["cosines"]
    verdicts = [
        {key: verdict[key] for key in ("number", "run", "outcome", "sentence")}
        for verdict in document["verdicts"]
    ]
    return {"runs": runs, "comparisons": document["comparisons"], "verdicts": verdicts}


def markdown(records: list[dict[str, Any]]) -> str:
    """The table of the README: a run per line, the seeds side by side in every cell."""
    lines = [
        "| run | full | bad_ablated | good_ablated | good_x2 | normal loss, bad_ablated "
        "| gain kept | caps loss, bad_ablated | cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for record in records for name in record["runs"]):
        there = [record for record in records if name in record["runs"]]
        runs = [record["runs"][name] for record in there]
        kept = [record["comparisons"][name]["gain_kept"] for record in there]
        last = "bad_ablated" if "bad_ablated" in runs[0] else "full"
        cells = [
            _cell([run.get(mode, {}).get("behavior_rate", {}).get("mean") for run in runs], 100, 0)
            for mode in ("full", "bad_ablated", "good_ablated", "good_x2")
        ]
        cells += [
            _cell([run[last]["held_out_loss"]["normal"]["mean"] for run in runs], 1, 3),
            _cell([one and one["value"] for one in kept], 1, 2),
            _cell([run[last]["held_out_loss"]["behavior"]["mean"] for run in runs], 1, 2),
            _cell([run["geometry"]["mean_absolute_cosine"] for run in runs], 1, 2),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float | None], factor: float, digits: int) -> str:
    return " · ".join("" if v is None else f"{factor * v:.{digits}f}" for v in values).strip(" ·")


def main() -> None:
    """Run the seeds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/caps_tables"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--table", action="store_true", help="only print the table of the README")
    options = parser.parse_args()
    if options.table:
        paths = sorted(options.out.glob("caps_tables_seed*.json"))
        print(markdown([json.loads(path.read_text(encoding="utf-8")) for path in paths]))
        return
    for seed in options.seeds:
        root = options.runs / f"seed-{seed}"
        folders = run_in_parallel(configs(seed), root, None, if_exists="resume", evaluate=True)
        publish(folders, root, page=False)
        document = json.loads((root / "eval_multi_results.json").read_text(encoding="utf-8"))
        record = {
            "question": "the caps experiment under every named table",
            "command": f"python benchmarks/caps_tables.py --seeds {seed}",
            "date": date.today().isoformat(),
            "provenance": provenance(),
            "recipe": load_config(find_config("caps")).model_dump(mode="json"),
            **numbers(document),
        }
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"caps_tables_seed{seed}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
