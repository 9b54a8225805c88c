"""What every test stands on: no network, one thread, repeatable examples, and a tiny model."""

import gc
import os
import signal
from pathlib import Path

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


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: tests of processes wait for them half of the time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish() -> None:
    """What is imported by now stays until the end, so the collector need not look at it again."""
    gc.collect()
    gc.freeze()
