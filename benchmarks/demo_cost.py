"""What `gradroute demo` costs beside another checkout: the whole experiment, from nothing.

    python benchmarks/demo_cost.py --baseline FOLDER --rounds 2

Each checkout trains, measures, draws and judges its own demo with the jobs that it takes by itself;
set-up is not in it. A demo that has more runs than the other's is judged with what it has. CPU time
of all processes is one table, wall clock the other.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measuring
from grid import beside, in_both
from startup import ANEW, MAIN, OF, commit_of

from gradroute.experiments.demo import CELLS

WALL = 0.70  # at most, of the other checkout's with one run less


def command(tree: Path, folder: Path) -> list[str]:
    """Arguments of Python that run the demo anew with a checkout's code."""
    code = OF.format(tree=str(tree.resolve())) + ANEW.format(folder=str(folder)) + MAIN
    return ["-c", code, "demo", "--runs", str(folder)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv, baseline=())
    if len(asked.baseline) != 1:
        raise SystemExit("error: name one other checkout: --baseline FOLDER")
    os.environ["OMP_NUM_THREADS"] = "1"
    baseline = Path(asked.baseline[0])

    def tables() -> list[dict]:
        asked.baseline = [commit_of(baseline)]  # what the result names
        with tempfile.TemporaryDirectory() as folder:
            return beside(
                f"the demo, {len(CELLS)} runs",
                in_both(command, Path(folder), baseline),
                {"wall clock": WALL},
                baseline,
                asked.rounds,
                asked.seed,
            )

    measuring.answer("demo_cost", "What does the demo cost?", asked, tables)


if __name__ == "__main__":
    main()
