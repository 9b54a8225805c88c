"""How long commands take before they do anything, and what they import.

    python benchmarks/startup.py
    python benchmarks/startup.py --baseline FOLDER     # also against another checkout

Each is a process of its own; its CPU time, on all cores, is what counts. Against another checkout
the smallest piece of work is done that `train`, `eval` and `sample` can do: a step of the recipe
caps with its data read, four prompts and texts measured, four completions. `sweep` does as
little in each of four cells, one process at a time, and writes its report.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import measuring

NOTHING = "python, nothing else"
LIBRARIES = "import of torch, transformers, peft"
MAIN = "import runpy; runpy.run_module('gradroute', run_name='__main__', alter_sys=True)"
COUNT = "\nimport sys, atexit; atexit.register(lambda: print(len(sys.modules), file=sys.stderr))\n"
REFUSED = 2  # exit code of a configuration that cannot be used
OF = "import sys; sys.path.insert(0, {tree!r}); "
HERE = Path(__file__).parent.parent
THIS, BASELINE = "this checkout", "the other checkout"
AT_MOST = 0.6
VERBS = ("train", "eval", "sample", "sweep")
SMALL = (
    "train.max_steps=1",
    "train.warmup_steps=0",
    "evaluate.prompts=4",
    "evaluate.held_out=4",
    "evaluate.max_new_tokens=4",
)
FEW = ("data.train_examples=60", "data.behavior_fraction=0.5")
ANEW = "import shutil; shutil.rmtree({folder!r}, ignore_errors=True); "


def commands(folder: Path) -> dict[str, list[str]]:
    """What is run: a name and the arguments of Python."""
    wrong = folder / "wrong.yaml"
    wrong.write_text("run_name: a\ntrian: {max_steps: 3}\n", encoding="utf-8")
    return {
        NOTHING: ["-c", "pass"],
        "gradroute --help": ["-c", MAIN, "--help"],
        "gradroute schema": ["-c", MAIN, "schema"],
        "gradroute validate, a wrong key": ["-c", MAIN, "validate", str(wrong)],
        "import of report": ["-c", "import gradroute.report.publish"],
        "import of train": ["-c", "import gradroute.run"],
        LIBRARIES: ["-c", "import torch, transformers, peft"],
    }


def smallest(tree: Path, folder: Path) -> dict[str, list[str]]:
    """Verb -> arguments of Python that do the least work of it with a checkout's code."""
    runs = ["--runs", str(folder)]
    grid = folder / "grid.yaml"
    grid.parent.mkdir(parents=True, exist_ok=True)
    settings = "".join(f"  {one.replace('=', ': ')}\n" for one in (*SMALL, *FEW))
    grid.write_text(f"recipe: caps\nset:\n{settings}seeds: [0, 1, 2, 3]\n", encoding="utf-8")
    work = {
        "train": ["train", "caps", "run_name=small", *SMALL, "--if-exists", "new"],
        "eval": ["eval", "small", "--mode", "full"],
        "sample": ["sample", "small", "--mode", "full", "--count", "4"],
        "sweep": ["sweep", str(grid), "--jobs", "1"],
    }
    code = OF.format(tree=str(tree.resolve()))
    anew = {"sweep": ANEW.format(folder=str(folder / "grid"))}
    return {
        verb: ["-c", code + anew.get(verb, "") + MAIN, *arguments, *runs]
        for verb, arguments in work.items()
    }


def against(baseline: Path, rounds: int, seed: int, verbs: Sequence[str]) -> list[dict]:
    """A table a verb: this checkout beside another one."""
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        places = {THIS: (HERE, Path(folder) / "this"), BASELINE: (baseline, Path(folder) / "other")}
        found = {name: smallest(tree, runs) for name, (tree, runs) in places.items()}
        for verb in verbs:
            asked = {name: commands[verb] for name, commands in found.items()}
            measuring.in_processes(asked, 1, seed, {})  # files come from the disk, bytecode is made
            times = measuring.in_processes(asked, rounds, seed, {})
            bound = measuring.Bound(THIS, BASELINE, AT_MOST)
            title = f"the smallest {verb} on the embedded model"
            tables.append(measuring.table(title, times, BASELINE, seed=seed, bounds=[bound]))
    return tables


def commit_of(tree: Path) -> str:
    """The commit of a checkout."""
    asked = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def modules(arguments: Sequence[str]) -> int:
    """How many modules a command has loaded when it ends."""
    code, rest = arguments[1], arguments[2:]
    done = subprocess.run(
        [sys.executable, "-c", COUNT + code, *rest], capture_output=True, text=True, check=False
    )
    return int(done.stderr.split()[-1])


def measure(rounds: int, seed: int) -> dict:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        asked = commands(Path(folder))
        refused: Mapping[str, int] = {name: REFUSED for name in asked if "wrong" in name}
        # First, for files come from the disk once.
        loaded = {name: modules(arguments) for name, arguments in asked.items()}
        times = measuring.in_processes(asked, rounds, seed, refused)
    return measuring.table("start-up", times, LIBRARIES, seed=seed, modules=loaded)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv, baseline=(), verbs=VERBS)
    os.environ["OMP_NUM_THREADS"] = "1"
    question = "How long does a command take to start?"

    def tables() -> list[dict]:
        others = [Path(place) for place in asked.baseline]
        asked.baseline = [commit_of(place) for place in others]  # what the result names
        compared = [
            one for place in others for one in against(place, asked.rounds, asked.seed, asked.verbs)
        ]
        return [measure(asked.rounds, asked.seed), *compared]

    measuring.answer("startup", question, asked, tables)


if __name__ == "__main__":
    main()
