"""Routed layers under torch.compile: one graph, the same gradients, routes picked up."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_a_compiled_layer_has_one_graph_for_all_labels_of_a_kind_and_the_same_gradients():
    # In a process of its own: dynamo cannot look into the checks of shapes that tests run under.
    done = subprocess.run(
        [sys.executable, str(TESTS / "routing" / "compiled_layer.py")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    graphs, off, changed = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    assert graphs == (1, 1, 2, 2)
    assert max(off) <= 1e-12
    assert all(changed)
