"""The labels of a run are the same bytes wherever it runs, the same set in any order of the rows.

The examples of a run (id, label, true label, and what is held out) are prepared in processes with
other hash seeds and other locales, and trained with one and with several runs at a time, where the
trace of an audited run says which label each row had. Rows are shuffled and files are cut in two.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.config.run_config import load_config
from gradroute.data.reading import read_examples
from gradroute.experiments.parallel import run_in_parallel
from gradroute.prepare import prepare
from gradroute.system.files import read_lines
from torture.runs import lay

Environment = Mapping[str, str]

# As plain as a machine can be: without these two, Python takes UTF-8 where it is told "C".
_PLAIN = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LOCALES: tuple[Environment, ...] = (
    {},
    {"LANG": "C", "LC_ALL": "C", **_PLAIN},
    {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8"},
)
HASH_SEEDS = ("0", "1", "random")
ENVIRONMENTS: tuple[Environment, ...] = tuple(
    {"PYTHONHASHSEED": seed, **locale} for seed in HASH_SEEDS for locale in LOCALES
)
"""The last has another locale and another hash seed than the first."""

_SETTINGS = ("PYTHONHASHSEED", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", *_PLAIN)
WORDS = (
    "I\u011fd\u0131r",
    "\u0131\u015f\u0131k",
    "\u0130stanbul",
    "straße",
    "日本",
    "big",
    "I",
    "i",
)
WORDS += ("e\u0301té", "\ufb01n", "\u2028")
ROWS = 40


def trials(
    count: int,
    seed: int,
    folder: Path,
    environments: Sequence[Environment] = ENVIRONMENTS,
    jobs: Sequence[int] = (1, 4),
) -> dict[str, Any]:
    """Prepare `count` sets of data in every environment, and train the first under every `jobs`.

    Returns:
        `trials`; `environments`; `prepared`: how often examples were prepared and compared;
        `shuffled` and `cut` files; `trained` runs and the `rows` in their traces; `different`,
        which must be 0; `failures`.
    """
    cases = [
        case for trial in range(count) for case in _cases(folder / f"data-{trial}", seed + trial)
    ]
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    due = [label_lines(case) for case in cases]
    counts: Counter[str] = Counter()
    failures = []
    for environment in environments:
        failures += _in_another_process(folder, environment, due, counts)
    for case, lines in zip(cases, due, strict=True):
        failures += _in_another_order(case, lines, folder, counts)
    for number in jobs:
        failures += _in_runs(cases[: len(cases) // count], number, folder, counts)
    counts["different"] = len(failures)
    keys = ("prepared", "shuffled", "cut", "trained", "rows", "different")
    found = {"trials": count, "environments": len(environments)}
    return found | {key: counts[key] for key in keys} | {"failures": failures[:50]}


def label_lines(overrides: Sequence[str]) -> str:
    """A line of JSON for every example that a run trains on or holds out."""
    prepared = prepare(load_config(None, overrides))
    parts = (prepared.train, prepared.normal, prepared.behaving["bad"])
    return "".join(
        json.dumps([part, e.id, e.label, e.true_label]) + "\n"
        for part, examples in enumerate(parts)
        for e in examples
    )


# ------------------------------------------------------------------ data


def _cases(folder: Path, seed: int) -> list[list[str]]:
    """Configs over embedded examples, and over files of every kind."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    noise = ["data.labeled_fraction=0.6", "data.good_labeled_fraction=0.3"]
    noise += ["data.false_positive_rate=0.1", "data.behavior_fraction=0.4", f"seed={seed}"]
    kinds = {"plain": {}, "labelled": {"label": True}, "both": {"label": True, "true_label": True}}
    files = {name: _file(folder / f"{name}.jsonl", draw, **kind) for name, kind in kinds.items()}
    with files["plain"].open("a", encoding="utf-8") as stream:
        stream.write('{"text": 7}\n{"id": "cut off"')
    return [
        [*noise, "data.train_examples=60", "evaluate.held_out=8", "evaluate.prompts=8"],
        [*noise, "data.train_examples=60", "behavior=wrong_answers", "data.relabel=random"],
        [*noise, f"data.path={files['plain']}", "data.on_bad_row=skip", "data.eval_fraction=0.2"],
        [f"data.path={files['labelled']}", "data.relabel=random", "data.label_seed=3"],
        [f"data.path={files['both']}", "data.drop=labeled_bad", "routing=none"],
    ]


def _file(
    path: Path, draw: random.Random, *, label: bool = False, true_label: bool = False
) -> Path:
    """Rows with words that some locales spell otherwise, half of them without ids."""
    rows: list[dict[str, Any]] = []
    for number in range(ROWS):
        row: dict[str, Any] = {"text": f"{' '.join(draw.choices(WORDS, k=4))} {number}."}
        if draw.random() < 0.5:
            row["id"] = f"{draw.choice(WORDS)} {number}"
        if label:
            row["label"] = ("good", "bad", "unlabeled")[number % 3]
        if true_label:
            row["true_label"] = draw.choice(["good", "bad"])
        rows.append(row)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------ other processes


def _in_another_process(
    folder: Path, environment: Environment, due: Sequence[str], counts: Counter[str]
) -> Iterator[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([root, inherited.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torture.labels", str(folder / "cases.json")],
        capture_output=True,
        env={**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    if done.returncode:
        yield f"{dict(environment)}: ended with {done.returncode}: {done.stderr[-300:]!r}"
        return
    found = done.stdout.split(b"\0")
    for case, (lines, expected) in enumerate(zip(found, due, strict=True)):
        counts["prepared"] += 1
        if lines != expected.encode("ascii"):
            yield f"{dict(environment)}: case {case} has other labels"


def _print_labels(cases: Path) -> None:
    every = [label_lines(case) for case in json.loads(cases.read_text(encoding="utf-8"))]
    sys.stdout.buffer.write("\0".join(every).encode("ascii"))


# ------------------------------------------------------------------ other orders


def _in_another_order(
    case: Sequence[str], due: str, folder: Path, counts: Counter[str]
) -> Iterator[str]:
    """Shuffled, rows have the labels that they had; cut in two files, they are the same rows."""
    paths = [one.removeprefix("data.path=") for one in case if one.startswith("data.path=")]
    if not paths:
        return
    path = Path(paths[0])
    lines = path.read_bytes().splitlines(keepends=True)
    draw = random.Random(len(lines))
    other = folder / "other.jsonl"
    for _ in range(3):
        draw.shuffle(lines)
        other.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
        shuffled = label_lines([one for one in case if "path=" not in one] + [f"data.path={other}"])
        counts["shuffled"] += 1
        if sorted(shuffled.splitlines()) != sorted(due.splitlines()):
            yield f"{path.name}: other labels in another order"
    whole = read_examples(path, skip_bad_rows=True).examples
    part, lines = [], path.read_bytes().splitlines(keepends=True)
    at = draw.randrange(1, ROWS)
    for some in (lines[:at], lines[at:]):
        other.write_bytes(b"".join(some))
        part += read_examples(other, skip_bad_rows=True).examples
    counts["cut"] += 1
    if part != whole:
        yield f"{path.name}: other rows, cut in two after line {at}"


# ------------------------------------------------------------------ several runs at a time


def _in_runs(
    cases: Sequence[Sequence[str]], jobs: int, folder: Path, counts: Counter[str]
) -> Iterator[str]:
    """What the audited runs of some cases say of every row's label, `jobs` runs at a time."""
    root = folder / f"jobs-{jobs}"
    base = lay(root / "ground").base
    small = [f"model={base}", "layers=all", "adapters.good.rank=2", "adapters.bad.rank=2"]
    small += ["train.max_steps=4", "train.batch_size=16", "train.log_gradients_every=0"]
    small += ["data.max_length=48", "train.save_every=0"]
    configs = [
        load_config(None, [*case, *small, f"run_name=case-{number}"])
        for number, case in enumerate(cases)
    ]
    for config, run in zip(
        configs,
        run_in_parallel(configs, root, jobs, if_exists="fail", evaluate=False, audit=True),
        strict=True,
    ):
        prepared = prepare(config)
        due = dict(enumerate(prepared.policy.label_ids(e.label for e in prepared.train)))
        seen = [(row[0], row[1]) for line in read_lines(run.audit) for row in line["rows"]]
        counts["trained"] += 1
        counts["rows"] += len(seen)
        if dict(seen) != due or any(due[place] != label for place, label in seen):
            yield f"{config.run_name} with {jobs} at a time: the trace has other labels"


if __name__ == "__main__":
    _print_labels(Path(sys.argv[1]))
