"""What a worker of `parallel` does in place of a run, where a new process finds it.

A new interpreter imports this module, so it imports nothing that takes long.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from gradroute.errors import DataError

VARIABLES = ("GRADROUTE_TEST", "OMP_NUM_THREADS", "PYTHONSAFEPATH")


def says_what_it_has(place):
    found = {name: os.environ.get(name) for name in VARIABLES}
    threads = len(list(Path("/proc/self/task").iterdir()))
    preloaded = "gradroute.run" in sys.modules and sys.modules["bitsandbytes"] is None
    place.write_text(json.dumps([found, threads, preloaded]), encoding="utf-8")


def works():
    pass


def fails(kind):
    raise kind("what was given, and what to do.")


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def is_asked():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def waits(ready):
    ready.touch()
    time.sleep(60)


def stands_in(config, root, **_):
    (root / config.run_name).touch()
    if config.run_name == "long":
        time.sleep(60)
    if config.run_name == "bad":
        while not (root / "long").exists():
            time.sleep(0.01)
        raise DataError("what was given, and what to do.")


def says_what_is_at_hand(place):
    from gradroute.data.embedded import drawn
    from gradroute.models.base import load_base

    threads = len(list(Path("/proc/self/task").iterdir()))
    loaded = load_base("embedded"), load_base("embedded")
    first, second = ([w.data_ptr() for w in base.model.parameters()] for base in loaded)
    drawn("stories", "tune", 30, 7)
    where = sys.modules["gradroute.experiments.parallel"].__file__
    place.write_text(json.dumps([threads, first == second, drawn.cache_info().hits, where]))


def counted(place):
    place.with_name(f"{place.name}-{len(list(place.parent.iterdir()))}").touch()


def trains_in_turn(config, root, *_, **__):
    _take_a_turn(root, f"train-{config.run_name}")


def evaluates_in_turn(config, root):
    _take_a_turn(root, f"eval-{config.run_name}")


def _take_a_turn(root, name):
    with (root / "turns").open("a", encoding="utf-8") as out:
        out.write(f"{name}\n")
