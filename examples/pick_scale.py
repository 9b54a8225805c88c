"""Measure a run while *bad* is turned down from 1 to 0, and pick the scale to deploy.

A scale of 0 deletes *bad*. A small scale may keep more of the ordinary gain, and leave more of the
behavior. The choice below is the one that the report makes: the best ordinary loss among the scales
whose behavior rate is not above that of the untuned base by more than 5 points.

    python examples/own_data.py        # trains own_data/runs/mine
    python examples/pick_scale.py [RUN]
"""

import sys
from pathlib import Path

from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.report.results.reading import read_runs
from gradroute.report.results.scales import Deployment, Point, deployment, scale_curve
from gradroute.runs.folder import RunFolder

SCALES = "bad=0,0.25,...,1"


def main(run: Path) -> tuple[list[Point], Deployment | None]:
    """The measured curve, and the choice with its reasons."""
    folder = RunFolder(run)
    evaluate_run(folder, EvaluationRequest(modes=("full", "bad_ablated", "base"), scales=(SCALES,)))
    [results] = read_runs([folder])
    return scale_curve(results, ["bad"], None), deployment(results, [results])


if __name__ == "__main__":
    curve, choice = main(Path(sys.argv[1] if len(sys.argv) > 1 else "own_data/runs/mine"))
    for point in curve:
        rate = "-" if point.rate is None else f"{point.rate.mean:.0%} of {point.rate.n}"
        loss = "-" if point.normal is None else f"{point.normal.mean:.3f}"
        print(f"bad at {point.scale:4g}: behavior rate {rate}, ordinary loss {loss}")
    print("no scale can be picked" if choice is None else choice.sentence)
