"""The example of the method in one file does what it says."""

import runpy
from pathlib import Path

import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_loop.py"


def test_the_minimal_loop_localises_the_capitals():
    with torch.random.fork_rng():
        results = runpy.run_path(str(EXAMPLE))["main"]()
    capitals = {mode: rate for mode, (rate, _) in results.items()}
    losses = {mode: loss for mode, (_, loss) in results.items()}
    assert capitals["full"] > 0.9
    assert capitals["bad_ablated"] < 0.25 and capitals["good_x2"] < 0.25
    assert capitals["good_ablated"] > 0.8
    assert losses["bad_ablated"] < 0.05 < losses["base"]


def test_the_minimal_loop_stays_minimal():
    assert len(EXAMPLE.read_text().splitlines()) < 140
