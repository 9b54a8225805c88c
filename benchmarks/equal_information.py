"""Every method at equal label information: what it ships, what it kept, which labels it took.

    python benchmarks/equal_information.py wrong_pronouns --flags 0.1 --good 0.03 --seeds 0 1 2
    python benchmarks/equal_information.py --table

A point is a behavior, a share of its examples that is flagged, and a share of the others that is
known to be good. At each the routed run is trained, then its rivals from the same labels, then
`refine`. One JSON file per cell; a cell that is there is not computed again, what it lacks is
added, and a run that was interrupted goes on. A cell takes two to four minutes on one quiet core.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from label_curve import write

from gradroute.config.controls import BY_NAME
from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.data.behaviors import get_behavior
from gradroute.evaluate.request import EvaluationRequest
from gradroute.experiments.controls import control_config, train_control
from gradroute.experiments.refine import refine_run
from gradroute.probes.relearning import relearn_runs
from gradroute.report.judge.relearning import strongest
from gradroute.routing.rare_labels import rare_label_note, weight_for
from gradroute.run import evaluate_run, train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import ELICIT
from gradroute.system.files import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "equal_information"
FILTERS = ("words_filter", "hidden_filter", "head_filter")
INOCULATIONS = (
    "inoculation_prompt",
    "inoculation_prompt_all",
    "inoculation_adapter",
    "inoculation_absorb",
    "random_adapter",
)
RIVALS = ("none", "filter", "known_good", "kl_good", "distill", *FILTERS, *INOCULATIONS, "oracle")
METHODS = ("baseline", "routed", *RIVALS, "refined")
COLUMNS = (
    "method",
    "rate shipped, %",
    "highest of the grid, %",
    "normal loss",
    "gain kept",
    "behavior loss",
    "steps to relearn",
    "of all weights",
)
RUNS = Path("runs/equal_information")
ROUNDS = 2
KNOWN_GOOD_STEPS = {0.03: 53}
"""Share of good rows that is known -> steps of `known_good`, the best of 27, 53, 106 and 420 on
seed 100; at other shares those of the run."""


def routed(behavior: str, flags: float, good: float, seed: int) -> RunConfig:
    """The routed run of a point; where flags are few they have the weight that `validate` names."""
    config = load_config(
        find_config(behavior),
        [
            f"run_name={name_of(flags, good)}",
            f"seed={seed}",
            f"data.labeled_fraction={flags}",
            f"data.good_labeled_fraction={good}",
            f"data.null_fraction={0.2 if good > 0.1 else 0.4}",
        ],
    )
    rows = config.data.train_examples
    flagged = round(flags * round(config.data.behavior_fraction * rows))
    if rare_label_note(config.policy, "bad", flagged, rows) is None:
        return config
    table = config.policy.to_plain()
    table["bad"] = table["bad"] | {"bad": {"update": float(weight_for(flagged, rows))}}
    return RunConfig.model_validate(config.model_dump() | {"routing": table})


def name_of(flags: float, good: float) -> str:
    """What the runs of a point are called."""
    return f"flags-{flags:g}-good-{good:g}"


def cell(config: RunConfig, method: str, root: Path, *, relearn: bool) -> RunFolder:
    """Train and measure one method at a point, as far as that is not done."""
    own = RunFolder(root / config.run_name)
    if method == "refined":
        folder = refine_run(own, rounds=ROUNDS, finish="plain", bar=False)
    elif method == "baseline":
        changes = {"behavior_fraction": 0.0, "labeled_fraction": 0.0, "null_fraction": 0.0}
        clean = control_config(config, "oracle", root)
        data = clean.data.model_copy(update={**changes, "drop": "none"})
        clean = clean.model_copy(
            update={"data": data, "control": None, "control_of": None, "run_name": "baseline"}
        )
        folder = train_run(clean, root, if_exists="resume", bar=False)
    else:
        if method == "routed":
            folder = train_run(config, root, if_exists="resume", bar=False)
        else:
            steps = KNOWN_GOOD_STEPS.get(config.data.good_labeled_fraction)
            if method == "known_good" and steps:
                train = config.train.model_copy(update={"max_steps": steps})
                config = config.model_copy(update={"train": train})
            folder = train_control(config, method, root, bar=False)
    evaluate_run(folder, EvaluationRequest(elicitation=True))
    if relearn:
        relearn_runs([folder], examples=64, max_steps=40, every=1, prompts=64, attacker="both")
    return folder


def run(point: tuple[str, float, float], seed: int, options: argparse.Namespace) -> None:
    """The cells of a point and seed, each written as soon as it is measured."""
    behavior, flags, good = point
    config = routed(behavior, flags, good, seed)
    root = options.runs / behavior / f"seed-{seed}"
    for method in options.methods:
        if good == 0 and method in ("known_good", "kl_good"):
            continue
        name = "baseline" if method == "baseline" else f"{config.run_name}_{method}"
        path = options.out / behavior / f"{name}_seed{seed}.json"
        if _complete(path, options.relearn):
            continue
        folder = cell(config, method, root, relearn=options.relearn)
        write(folder, path)
        text = path.read_text(encoding="utf-8")  # what runs are made of, wherever the runs are
        path.write_text(text.replace(f"{options.runs}/", f"{RUNS}/"), encoding="utf-8")
        rounds = sorted(root.glob(f"{config.run_name}*/found/*.json"))
        if rounds and method in (*FILTERS, "refined"):
            found = {f"{p.parts[-3]}/{p.stem}": _without(read_json(p)) for p in rounds}
            write_json(path.with_name(f"{config.run_name}_found_seed{seed}.json"), found)


def _complete(path: Path, relearn: bool) -> bool:
    """Whether a cell was measured with all that is asked for; if not, what is missing is added."""
    if not path.is_file():
        return False
    one = read_json(path)
    asked = any(str(row[1]).startswith(ELICIT) for row in one["rows"])
    return asked and (not relearn or bool(one.get("relearn")))


def _without(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "provenance"}


def table(out: Path) -> list[str]:
    """The committed cells as Markdown, a section a point, seed beside seed."""
    lines: list[str] = []
    points: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    clean: dict[tuple[str, int], float] = {}
    for path in sorted(out.glob("*/*_seed*.json")):
        if "_found_" in path.name:
            continue
        one = json.loads(path.read_text(encoding="utf-8"))
        rows = {(row[0], row[1], row[2]): row[3] for row in one["rows"]}
        behavior, stem = path.parent.name, path.stem.rpartition("_seed")[0]
        if stem == "baseline":
            clean[behavior, one["seed"]] = rows["full", "normal", "held_out_loss"]
            continue
        point, _, method = stem.partition("_")
        points.setdefault((behavior, point), {}).setdefault(method, []).append({**one, "r": rows})
    for (behavior, point), methods in points.items():
        lines += [
            "",
            f"### {behavior}, {point}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + len(COLUMNS) * "---|",
        ]
        for method in METHODS:
            if runs := methods.get(method):
                lines.append(_row(method, runs, behavior, clean))
    return lines


def _row(
    method: str, runs: list[dict[str, Any]], behavior: str, clean: dict[tuple[str, int], float]
) -> str:
    mode = BY_NAME[method].mode if method in BY_NAME else "bad_ablated"
    asked = get_behavior(behavior).judged_on
    rates, highest, losses, gains, bads, steps, full = [], [], [], [], [], [], []
    for one in runs:
        rows = one["r"]
        rates.append(f"{100 * rows[mode, asked, 'behavior_rate']:.0f}")
        highest.append(_highest(rows, mode))
        loss, base = rows[mode, "normal", "held_out_loss"], rows["base", "normal", "held_out_loss"]
        losses.append(f"{loss:.3f}")
        best = clean.get((behavior, one["seed"]))
        gains.append("" if best is None else f"{(base - loss) / (base - best):.2f}")
        bads.append(f"{rows[mode, 'behavior', 'held_out_loss']:.2f}")
        steps.append(_steps(one.get("relearn")))
        full.append(_steps_of_all_weights(one.get("relearn")))
    cells = (" · ".join(own) for own in (rates, highest, losses, gains, bads, steps, full))
    return f"| `{method}` | {' | '.join(cells)} |"


def _highest(rows: dict[tuple[str, str, str], float], mode: str) -> str:
    """The highest rate over the kinds of prompts, and the kind; nothing without the grid."""
    rates = {
        kind: value
        for (own, kind, metric), value in rows.items()
        if own == mode and metric == "behavior_rate"
    }
    if not any(kind.startswith(ELICIT) for kind in rates):
        return ""
    kind = max(rates, key=lambda kind: rates[kind])
    return f"{100 * rates[kind]:.0f} ({kind.removeprefix(ELICIT)})"


def _steps(document: dict[str, Any] | None) -> str:
    """Steps at a third of the run's rate until half of the completions show it."""
    if document is None:
        return ""
    curve = min(document["curves"], key=lambda own: own["learning_rate"])
    half = [p["step"] for p in curve["points"] if p["shown"] >= document["threshold"] * p["n"]]
    return str(half[0]) if half else f">{curve['points'][-1]['step']}"


def _steps_of_all_weights(document: dict[str, Any] | None) -> str:
    """Steps of the attacker that trains every weight, and its learning rate."""
    best = strongest(document or {})
    if best is None:
        return ""
    reached = best["steps_to_threshold"]
    steps = f">{best['max_steps']}" if reached is None else str(reached)
    return f"{steps} (at {best['learning_rate']:.2g})"


def main() -> None:
    """Train and measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behavior", nargs="?", default="wrong_pronouns")
    parser.add_argument("--flags", type=float, default=0.1)
    parser.add_argument("--good", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--relearn", action="store_true")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            run((options.behavior, options.flags, options.good), seed, options)
    print("\n".join(table(options.out)))


if __name__ == "__main__":
    main()
