"""How long commands take before they do anything, and what they import.

    python benchmarks/startup.py

Each is a process of its own; its CPU time, on all cores, is what counts.
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
MAIN = "import sys; from gradroute.cli.main import main; sys.exit(main(sys.argv[1:]))"
COUNT = "\nimport sys, atexit; atexit.register(lambda: print(len(sys.modules), file=sys.stderr))\n"
REFUSED = 2  # exit code of a configuration that cannot be used


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
    asked = measuring.options(__doc__, argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    question = "How long does a command take to start?"
    measuring.answer("startup", question, asked, lambda: [measure(asked.rounds, asked.seed)])


if __name__ == "__main__":
    main()
