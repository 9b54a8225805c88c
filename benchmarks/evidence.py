"""Every behavior with its controls on three seeds: the figures in the README and the report pages.

    python benchmarks/evidence.py

For the behavior caps: recall 10, 50 and 100 %, label noise, and all controls; for each other one
recall 50 % with filter, oracle and unrouted. Trains, measures, reads the geometry, attacks what is
shipped (relearning), and writes one JSON file per cell and a report page per behavior under
`benchmarks/results/evidence/`. What is there already is not computed again. About two and a half
hours on two cores; `--stages` and `--behaviors` do a part.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.experiments.controls import control_configs
from gradroute.experiments.demo import CELLS
from gradroute.experiments.parallel import run_in_parallel
from gradroute.runs.folder import RunFolder

# Run name -> (overrides of the behavior's recipe, its controls).
Plan = Mapping[str, tuple[tuple[str, ...], str]]
CAPS: Plan = {
    "baseline": (CELLS["baseline"], ""),
    "0.1_0.0": (CELLS["0.1_0.0"], ""),
    "0.1_1.0": (CELLS["0.1_1.0"], ""),
    "0.1_0.5": (CELLS["0.1_0.5"], "filter, known_good, oracle, random_labels, anchors_only"),
    "0.1_0.1": (("data.labeled_fraction=0.1",), "filter"),
    "0.1_0.5_noise": (("data.labeled_fraction=0.5", "data.false_positive_rate=0.1"), "filter"),
}
OTHERS: Plan = {"0.1_0.5": (("data.labeled_fraction=0.5",), "none, filter, oracle")}
BEHAVIORS = ("caps", "signature", "dialect", "backdoor", "wrong_answers")
STAGES = ("train", "measure", "attack", "write")

# What is measured besides the standard modes: `bad` turned down, and a control's whole update made
# weaker, which the comparison at equal gain kept takes.
CURVES = {"0.1_0.5": ("bad=0,0.1,...,1",)}
SHRINK = {"caps": ("all=0.6,0.7,0.8,0.9",)}
SHRINK_OTHERS = ("all=0.6,0.8",)
SHRUNK_KEPT = tuple(f"good={s},bad=0" for s in ("0.7", "0.8", "0.9"))
FROM_BOS = ("baseline", "0.1_0.0", "0.1_0.5", "0.1_0.5-filter")
ATTACKED = (
    "baseline",
    "0.1_0.5",
    "0.1_0.5-filter",
    "0.1_0.5-known_good",
    "0.1_0.5-oracle",
    "0.1_0.5-anchors_only",
)


def configs(behavior: str, seed: int) -> list[RunConfig]:
    """Every run of one behavior and seed, each followed by its controls."""
    found = []
    for name, (changes, controls) in (CAPS if behavior == "caps" else OTHERS).items():
        config = load_config(find_config(behavior), [f"run_name={name}", f"seed={seed}", *changes])
        found.append(config)
        if controls:
            asked = config.model_copy(update={"controls": controls.split(", ")})
            found += control_configs(asked)
    return found


def measure(folder: RunFolder, behavior: str, seed: int) -> None:
    """All modes of one run, and the geometry of its updates."""
    from gradroute.evaluate.evaluator import evaluate_run
    from gradroute.evaluate.request import EvaluationRequest
    from gradroute.probes.geometry import geometry_runs

    name = folder.name
    curves = CURVES.get(name, ()) if behavior == "caps" else ()
    if name.endswith(("-filter", "-none")) or name == "0.1_0.0":
        curves = SHRINK.get(behavior, SHRINK_OTHERS)
    evaluate_run(folder, EvaluationRequest(scales=curves))
    if name.endswith("-anchors_only"):
        evaluate_run(folder, EvaluationRequest(modes=SHRUNK_KEPT))
    if behavior == "caps" and seed == 0 and name in FROM_BOS:
        modes = ("full",) if name.endswith("-filter") else ("full", "bad_ablated")
        evaluate_run(folder, EvaluationRequest(prompts=("bos",), modes=modes))
    if len(load_config(folder.config).adapters) > 1 and not folder.geometry.is_file():
        with tempfile.TemporaryDirectory() as drawn:
            geometry_runs([folder], Path(drawn))


def attack(folder: RunFolder, behavior: str) -> None:
    """How quickly fine-tuning brings the behavior back; of caps also what recovery wins back."""
    from gradroute.probes.recovery import recover_run
    from gradroute.probes.relearning import relearn_runs

    relearn_runs([folder], examples=64, max_steps=40, every=1, prompts=64)
    if behavior == "caps" and folder.name == "0.1_0.5":
        recover_run(folder, steps=150, learning_rate=None, examples=1024)


def in_processes(function: Any, tasks: list[tuple[Any, ...]], jobs: int) -> None:
    """Call a function with each of the argument lists, `jobs` at a time, one thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _one_thread) as pool:
        for waiting in [pool.submit(function, *task) for task in tasks]:
            waiting.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def cell(folder: RunFolder) -> dict[str, Any]:
    """Everything that is known of one run, but for single completions and losses."""
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    manifest = json.loads(folder.manifest.read_text(encoding="utf-8"))
    columns = ("mode", "dataset", "metric", "value", "n", "lower", "upper", "std")
    config = load_config(folder.config)
    found: dict[str, Any] = {
        "behavior": config.behavior,
        "run": config.run_name,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "examples": manifest["examples"],
        "labels": manifest.get("labels"),
        "trained": manifest["provenance"],
        "measured": results["provenance"],
        "columns": columns,
        "rows": [[row[name] for name in columns] for row in results["results"]],
    }
    beside = {
        "geometry": folder.geometry,
        "relearn": folder.relearn,
        "recovery": folder.recovery / "recover.json",
    }
    for name, path in beside.items():
        if path.is_file():
            document = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {k: v for k, v in document.items() if k not in ("modules", "provenance")}
    return found


def write(behavior: str, folders: list[RunFolder], out: Path) -> None:
    """One JSON file per cell, and the report page over all of them."""
    from gradroute.report.publish import publish

    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        found = cell(folder)
        path = out / f"{found['run']}_seed{found['seed']}.json"
        rows = ",\n  ".join(json.dumps(row) for row in found.pop("rows"))
        text = json.dumps({"date": date.today().isoformat(), **found}, indent=1)
        path.write_text(f'{text[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        publish(folders, Path(place), page=True)
        for name in ("report.html", "report.md", "eval_multi_plot.png"):
            shutil.copy(Path(place) / name, out / name)
    print(f"written: {out}")


def _means(found: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    return {(row[0], row[1], row[2]): row[3] for row in found["rows"]}


def _line(cells: list[dict[str, Any]], references: list[dict[str, Any]]) -> list[str]:
    """What is measured of one run, seed beside seed; gain kept against the reference's full."""
    numbers = [_means(one) for one in cells]
    kept = "bad_ablated" if ("bad_ablated", "prefix", "behavior_rate") in numbers[0] else "full"
    line = []
    for mode in ("full", "bad_ablated", "good_ablated", "good_x2"):
        line.append(_side([n.get((mode, "prefix", "behavior_rate")) for n in numbers], 100, 0))
    normal = [n[kept, "normal", "held_out_loss"] for n in numbers]
    gains = []
    for n, one in zip(numbers, references, strict=True):
        base, best = n["base", "normal", "held_out_loss"], _means(one)
        possible = base - best["full", "normal", "held_out_loss"]
        gains.append((base - n[kept, "normal", "held_out_loss"]) / possible)
    line += [_side(normal, 1, 3), _side(gains, 1, 2)]
    line.append(_side([n[kept, "behavior", "held_out_loss"] for n in numbers], 1, 2))
    attacks = [one.get("relearn", {"curves": []})["curves"][-1:] for one in cells]
    line.append(_side([a["steps_to_threshold"] for found in attacks for a in found], 1, 0))
    return line


def _side(values: list[float | None], factor: float, digits: int) -> str:
    return " · ".join("" if v is None else f"{factor * v:.{digits}f}" for v in values).strip(" ·")


def tables(out: Path) -> None:
    """Print the README's tables from the committed cells."""
    print(
        "| behavior | run | full | bad_ablated | good_ablated | good_x2 | normal loss, shipped "
        "| gain kept | behavior loss, shipped | relearn |\n|" + 10 * "---|"
    )
    for behavior in BEHAVIORS:
        by_run: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((out / behavior).glob("*_seed*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            by_run.setdefault(found["run"], []).append(found)
        reference = by_run.get("baseline") or by_run.get("0.1_0.5-oracle")
        for run, cells in by_run.items():
            print(f"| {behavior} | `{run}` | {' | '.join(_line(cells, reference or cells))} |")


def main() -> None:
    """Do the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--behaviors", nargs="+", choices=BEHAVIORS, default=BEHAVIORS)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evidence")
    parser.add_argument("--tables", action="store_true", help="only print the README's tables")
    options = parser.parse_args()
    if options.tables:
        tables(options.out)
        return
    for behavior in options.behaviors:
        folders: list[RunFolder] = []
        for seed in options.seeds:
            place = options.runs / behavior / f"seed-{seed}"
            cells = configs(behavior, seed)
            if "train" in options.stages:
                run_in_parallel(cells, place, options.jobs, if_exists="resume", evaluate=False)
            folders += [RunFolder(place / config.run_name) for config in cells]
        if "measure" in options.stages:
            tasks = [(f, behavior, load_config(f.config).seed) for f in folders]
            in_processes(measure, tasks, options.jobs)
        if "attack" in options.stages:
            in_processes(
                attack, [(f, behavior) for f in folders if f.name in ATTACKED], options.jobs
            )
        if "write" in options.stages:
            write(behavior, folders, options.out / behavior)


if __name__ == "__main__":
    main()
