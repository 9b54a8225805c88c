"""The suite: every benchmark in a process of its own, one after another, then the page.

python benchmarks/bench.py            # make bench: under half an hour on two cores
python benchmarks/bench.py --long     # make bench-long: 64k tokens a step, the whole experiment
python benchmarks/bench.py --only training_step memory
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SHORT = (
    "training_step",
    "trainers",
    "frozen_half",
    "memory",
    "evaluation",
    "scoring",
    "scaling",
    "pipeline",
    "startup",
)
LONG = ("scaling", "experiment", "finding_cost", "gated_cost", "ranks", "playground")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for; with few rounds nothing gets into the results, nor the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="the long ones")
    parser.add_argument("--only", nargs="+", help="names of benchmarks")
    parser.add_argument("--rounds", type=int, help="of each variant; under 10 it is a try")
    asked = parser.parse_args(argv)
    for name in asked.only or (LONG if asked.long else SHORT):
        more = ["--long"] if asked.long and name == "scaling" else []
        if asked.rounds and name != "experiment":
            more += ["--rounds", str(asked.rounds)]
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        subprocess.run([sys.executable, str(HERE / f"{name}.py"), *more], check=True)
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
    if asked.rounds is None or asked.rounds >= 10:
        subprocess.run([sys.executable, str(HERE / "page.py")], check=True)


if __name__ == "__main__":
    main()
