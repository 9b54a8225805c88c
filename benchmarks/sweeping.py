"""What a sweep costs beside its runs: `gradroute sweep` on this machine, and the same runs bare.

    python benchmarks/sweeping.py

Four runs of the caps recipe, two at a time: by a sweep, by the pool that the demo uses, and by one
`gradroute train` after another. CPU time of all processes is what counts; wall clock beside it.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measuring

SWEEP, POOL, COMMANDS = "gradroute sweep --jobs 2", "a pool of two", "gradroute train, four times"
STEPS = 60
SETTINGS = {
    "train.max_steps": STEPS,
    "data.train_examples": 600,
    "train.warmup_steps": 0,
    "train.batch_size": 8,
}
SHARES = ("0.1", "0.2", "0.5", "1.0")
MAIN = "from gradroute.cli.main import main"
BODIES = {
    SWEEP: f"""
{MAIN}
code = main(["sweep", "run", file, "--jobs", "2", "--runs", runs])
""",
    POOL: """
from gradroute.experiments.parallel import run_in_parallel
from gradroute.experiments.sweep.cells import read_sweep
configs = [cell.config for cell in read_sweep(Path(file)).cells]
run_in_parallel(configs, Path(runs), 2, if_exists="fail", evaluate=False)
""",
    COMMANDS: f"""
import subprocess
run = "import sys; {MAIN}; sys.exit(main(sys.argv[1:]))"
for at, share in enumerate({SHARES!r}):
    words = ["train", "caps", f"run_name=r{{at}}", f"data.labeled_fraction={{share}}"]
    words += {[f"{key}={value}" for key, value in SETTINGS.items()]!r}
    code = subprocess.run([sys.executable, "-c", run, *words, "--runs", runs]).returncode
    if code:
        break
""",
}
HEAD = """
import sys
import tempfile
from pathlib import Path
file, code = sys.argv[1], 0
if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as runs:
"""


def programs(folder: Path) -> dict[str, list[str]]:
    """A program for each way, as the arguments of Python; each starts with no run there."""
    file = folder / "grid.yaml"
    settings = "".join(f"  {key}: {value}\n" for key, value in SETTINGS.items())
    file.write_text(
        f"recipe: caps\nevaluate: false\nset:\n{settings}"
        f"axes: {{data.labeled_fraction: [{', '.join(SHARES)}]}}\n",
        encoding="utf-8",
    )
    found = {}
    for number, (name, body) in enumerate(BODIES.items()):
        path = folder / f"way_{number}.py"  # a file: a pool's processes read it again
        inside = "".join(f"        {line}\n" for line in body.strip().splitlines())
        path.write_text(f"{HEAD}{inside}    sys.exit(code)\n", encoding="utf-8")
        found[name] = [str(path), str(file)]
    return found


def measure(rounds: int, seed: int) -> dict:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        times = measuring.in_processes(programs(Path(folder)), rounds, seed, {})
    return measuring.table(
        f"{len(SHARES)} runs of {STEPS} steps",
        times,
        POOL,
        seed=seed,
        bounds=[measuring.Bound(SWEEP, POOL, 1.1)],
        unit="s",
        scale=1,
        runs=len(SHARES),
        steps=STEPS,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    question = "What does a sweep cost beside its runs?"
    measuring.answer("sweeping", question, asked, lambda: [measure(asked.rounds, asked.seed)])


if __name__ == "__main__":
    main()
