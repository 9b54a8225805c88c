"""What every test stands on: no network, one thread, repeatable examples, and a tiny model."""

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from shape_hook import check_shapes

# Before torch, transformers or matplotlib are imported by anybody.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)

# A shell that starts the tests in the background lets them ignore Ctrl-C, and their processes too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a failure is found again, and a green run stays green.
settings.register_profile("gradroute", deadline=None, derandomize=True, database=None)
settings.load_profile("gradroute")

# Shapes in signatures are checked where there are any. Elsewhere a check at run time would find
# what the type checker has found.
check_shapes(Path(__file__).parent.parent / "gradroute")


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of runs are forked from one that has what they import, for where that is no matter.

    A new interpreter for each, as users have it, is in `test_interruptions.py` and
    `experiments/test_parallel.py`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torture.preloaded"])
    root = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    instead = SimpleNamespace(get_context=lambda method: context)
    monkeypatch.setattr("gradroute.experiments.parallel.multiprocessing", instead)
