"""The ground that the trials stand on: a tiny base, small configs, and what must be equal.

A trial trains and measures by the real command line, in processes that `torture.forks` forks. Two
runs of one config are equal where `finals` of them are: the sha256 of weights, moments, metrics,
results, samples and losses.
"""

import hashlib
import json
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from gradroute.data.stories import stories
from gradroute.models.checkpoint import latest_checkpoint
from torture.bases import save_base
from torture.forks import Child, Server

NAME = "x"
"""Every trial's run has this name; its root folder tells it from the others."""
OUTSIDE = 98
"""How a child ends that a signal reached between its commands."""
STEPS = 24
SAVE_EVERY = 3
EPOCH = 12
"""Steps in an epoch: 96 examples, 8 in a step."""

# Dropout and accumulation are always on; what is logged and measured differs.
VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"train.log_gradients_every": 7},
    {"train.measure_every": 5},
    {"train.log_gradients_every": 4, "train.measure_every": 6, "train.save_every": 5},
    {"train.save_every": 4, "train.loss_mean": "example", "seed": 3},
    {"train.batch_size": 3, "train.gradient_accumulation": 3, "routing": "exclusive"},
)


@dataclass(frozen=True)
class Ground:
    """A base model, a data file and config files in one folder."""

    folder: Path

    @property
    def base(self) -> Path:
        """The base model, in Hugging Face format."""
        return self.folder / "base"

    @property
    def data(self) -> Path:
        """The examples, without labels: training puts the behavior in."""
        return self.folder / "data.jsonl"

    def config(self, changes: Mapping[str, Any], name: str) -> Path:
        """Write a config file that differs from the usual one in some `section.key` values."""
        values: dict[str, Any] = {
            "run_name": NAME,
            "model": str(self.base),
            "layers": "all",
            "adapters": {
                "good": {"rank": 3, "dropout": 0.1},
                "bad": {"rank": 2, "dropout": 0.1, "weight_decay": 0.01},
            },
            "data": {
                "path": str(self.data),
                "max_length": 24,
                "behavior_fraction": 0.4,
                "eval_fraction": 0.2,
            },
            "train": {
                "max_steps": STEPS,
                "batch_size": 4,
                "gradient_accumulation": 2,
                "learning_rate": 0.01,
                "save_every": SAVE_EVERY,
                "log_gradients_every": 0,
                "measure_prompts": 2,
            },
            "evaluate": {"prompts": 3, "max_new_tokens": 4, "held_out": 6},
        }
        for key, value in changes.items():
            place = values
            *parents, last = key.split(".")
            for parent in parents:
                place = place[parent]
            place[last] = value
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path


def lay(folder: Path) -> Ground:
    """Make the ground: two layers of 16 numbers, and 120 beginnings of stories."""
    ground = Ground(folder)
    save_base(ground.base, 2048, 64)
    rows = [
        {"id": f"s{i}", "text": " ".join(text.split()[:9])}
        for i, text in enumerate(stories("tune", 120))
    ]
    ground.data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ground


def lines(config: Path, *more: str) -> list[list[str]]:
    """What a user types: train, then measure."""
    return [["train", str(config), *more], ["eval", NAME]]


def command(lines: Sequence[Sequence[str]]) -> int:
    """In a child: the command lines one after the other, until one does not end well.

    A signal that comes before, between or after them is none of theirs, and ends with `OUTSIDE`.
    """
    from gradroute.cli.main import main

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _outside)
    code = 0
    for line in lines:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = main(line)
            signal.signal(signal.SIGINT, _outside)
        except KeyboardInterrupt as error:
            depth = len(traceback.extract_tb(error.__traceback__))
            if depth > 3:
                raise  # it came in the middle of the command, which should have dealt with it
            return OUTSIDE
        if code:
            break
    return code


def _outside(number: int, frame: FrameType | None) -> None:
    os._exit(OUTSIDE)


def start(server: Server, lines: Sequence[Sequence[str]], root: Path) -> Child:
    """Start command lines in `root`, under which `runs/` comes to be."""
    return server.start("torture.runs:command", {"lines": lines}, root)


def finals(run: Path) -> dict[str, str]:
    """Name -> sha256 of everything that two equal runs have equal; of what is there."""
    newest = max((run / "checkpoints").glob("step-*"), default=run / "none")
    files = {
        str(path.relative_to(newest)): path
        for path in sorted(newest.rglob("*"))
        if path.suffix == ".safetensors" or path.name in ("state.json", "adapter_config.json")
    }
    for name in ("metrics.jsonl", "eval/during.jsonl", "eval/results.json"):
        files[name] = run / name
    for name in ("eval/samples.jsonl", "eval/losses.jsonl"):
        files[name] = run / name
    found = {name: sha256(path) for name, path in files.items() if path.is_file()}
    return found | {"step": newest.name}


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unequal(run: Path, quiet: Mapping[str, str]) -> list[str]:
    """The names under which a run's final state differs from the quiet one's."""
    found = finals(run)
    return sorted(k for k in {*found, *quiet} if found.get(k) != quiet.get(k))


@dataclass(frozen=True)
class Quiet:
    """A config with the result and the seconds of a run of it that nobody disturbed."""

    config: Path
    finals: Mapping[str, str]
    seconds: float


def quiet_runs(server: Server, ground: Ground, wanted: int = len(VARIANTS)) -> list[Quiet]:
    """Train and measure the first variants, undisturbed."""
    found = []
    for number, variant in enumerate(VARIANTS[:wanted]):
        config = ground.config(variant, f"variant-{number}")
        found.append(quiet_run(server, lines(config), ground.folder / f"quiet-{number}", config))
    return found


def quiet_run(
    server: Server,
    lines: Sequence[Sequence[str]],
    root: Path,
    config: Path,
    runs: str = "runs",
) -> Quiet:
    """Run command lines undisturbed, in `root`, where the run's folder is in `runs`.

    Raises:
        RuntimeError: they do not end well, so that there is nothing to compare with.
    """
    began = time.monotonic()
    child = start(server, lines, root)
    if child.wait():
        raise RuntimeError(f"an undisturbed run ended with {child.code}: {child.said[-2000:]}")
    seconds = time.monotonic() - began
    left = finals(root / runs / NAME)
    if not {"optimizer.safetensors", "metrics.jsonl", "eval/samples.jsonl"} <= left.keys():
        raise RuntimeError(f"an undisturbed run left {', '.join(left)} alone.")
    return Quiet(config, left, seconds)


@dataclass(frozen=True)
class Standing:
    """What can be seen of a run folder from outside.

    Attributes:
        newest: the step of the newest checkpoint that verifies, 0 where there is none.
        done: the last step in `metrics.jsonl`, whole lines only.
        unfinished: a save was begun and not ended.
    """

    newest: int
    done: int
    unfinished: bool


def standing(run: Path) -> Standing:
    """Look at a run folder that nobody writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        newest = latest_checkpoint(run / "checkpoints")
    return Standing(
        newest=0 if newest is None else newest.step,
        done=steps_done(run),
        unfinished=saving(run),
    )


def broken(run: Path) -> list[str]:
    """What is wrong with any checkpoint of a run, by the hashes in its manifest."""
    trouble = []
    for folder in sorted((run / "checkpoints").glob("step-*")):
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            trouble.append(f"{folder.name} has no manifest")
            continue
        expected = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
        there = {
            str(path.relative_to(folder)): sha256(path)
            for path in folder.rglob("*")
            if path.is_file() and path != manifest
        }
        differing = sorted(k for k in {*there, *expected} if there.get(k) != expected.get(k))
        trouble += [f"{folder.name}/{name} is not what its manifest says" for name in differing]
    return trouble


def one_line_error(child: Child, code: int) -> str | None:
    """What is wrong with how a child refused; None where it ended with `code` and one line."""
    errors = [line for line in child.said.splitlines() if line.startswith("error: ")]
    if child.code != code:
        return f"ended with {child.code} instead of {code}: {child.said[-300:]}"
    if len(errors) != 1 or "Traceback" in child.said:
        return f"did not say one line of error: {child.said[-600:]}"
    if not child.said.rstrip().splitlines()[-1].startswith("error: "):
        return f"went on speaking after its error: {child.said[-300:]}"
    return None


def saving(run: Path) -> bool:
    """Whether a save is under way."""
    return any((run / "checkpoints").glob(".tmp-step-*"))


def steps_done(run: Path) -> int:
    """Whole lines in `metrics.jsonl`."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@dataclass(frozen=True)
class Signs:
    """What tells from outside, quickly, what a run is doing."""

    saving: Callable[[], bool]
    steps: Callable[[], int]


def signs(run: Path) -> Signs:
    """Those of a run folder of ours."""
    return Signs(lambda: saving(run), lambda: steps_done(run))


def until(child: Child, come: Callable[[], bool]) -> bool:
    """Wait until something has come to be; False where the child ended before."""
    while child.alive:
        if come():
            return True
        time.sleep(0.0003)
    return False


# How long after its sign a moment may lie, in seconds.
_SPREAD = {
    "time": 0.0,
    "save": 0.02,
    "save at once": 0.0,
    "step": 0.04,
    "evaluation": 0.12,
    "resume": 0.08,
}
_SAID = {"evaluation": ": measuring ", "resume": "goes on after"}


def moment(kind: str, child: Child, signs: Signs, seconds: float, draw: random.Random) -> bool:
    """Wait for a random moment in a child's life; False where it ended before.

    Args:
        kind: "time" since its start, in a "save", "save at once" when one has begun, after some
            "step", in the "evaluation", or while a "resume" loads or has just loaded its
            checkpoint.
        child: the process.
        signs: of its run.
        seconds: how long an undisturbed run takes.
        draw: where chance comes from.
    """
    began, done = time.monotonic(), signs.steps()
    rest = max(0, STEPS - done)
    wanted = draw.uniform(0, seconds * (0.2 + rest / STEPS))
    more = done + draw.randint(0, min(EPOCH, rest))
    skipped = draw.randint(0, rest // (2 * SAVE_EVERY))
    was_saving = False

    def come() -> bool:
        nonlocal skipped, was_saving
        if kind == "time":
            return time.monotonic() - began >= wanted
        if kind == "step":
            return signs.steps() >= more
        if kind == "save at once":
            return signs.saving()
        if kind == "save":
            before, was_saving = was_saving, signs.saving()
            skipped -= was_saving and not before
            return was_saving and skipped < 0
        return _SAID[kind] in child.said

    if not until(child, come):
        return False
    time.sleep(draw.uniform(0, _SPREAD[kind]))
    return child.alive
