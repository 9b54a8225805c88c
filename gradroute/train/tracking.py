"""Metrics in TensorBoard or Weights & Biases, besides `metrics.jsonl`.

A tracker is told what `metrics.jsonl` and `eval/during.jsonl` hold, and never more than numbers and
choices of the configuration: no text, no path. It is for looking at. Nothing depends on it, so one
that fails is switched off, and training goes on.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_origin, runtime_checkable

from gradroute.config.roles import Role
from gradroute.config.run_config import FIELDS, field_of, keys_with
from gradroute.errors import MachineError
from gradroute.routing.policy import NAMED_POLICIES
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines, write_text
from gradroute.system.terminal import first_line

Track = Callable[[int, Mapping[str, Any]], None]
"""Called with a step and its line of `metrics.jsonl`."""

_SHOWN = keys_with(Role.TASK, Role.TREATMENT, Role.TRAINING)
_WANDB_PLACES = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")


@runtime_checkable
class _Tracker(Protocol):
    """What is asked of a tracker of accelerate."""

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


def check_tracker(report_to: str) -> None:
    """See that what `train.report_to` names is installed.

    Raises:
        MachineError: It is not; the message says what to install.
    """
    if report_to != "none" and find_spec(report_to) is None:
        raise MachineError(
            f"train.report_to is {report_to}, and the package {report_to} is not installed: "
            f"pip install 'gradroute[{report_to}]', or set train.report_to=none."
        )


@contextmanager
def tracking(
    report_to: str,
    folder: RunFolder,
    after: int,
    told: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[Track]:
    """Show the steps of a run in what `train.report_to` names, under `<run>/tracking/`.

    Args:
        report_to: The name.
        folder: Of the run.
        after: Steps that are done already; those after it that a tracker was told of, and that no
            checkpoint holds, are replaced.
        told: What the tracker is told of the configuration, see `tracked_config`.
        say: Told once, where the tracker fails.

    Yields:
        What is called after each step; its measurements, if any, are looked up.
    """
    tracker: _Tracker | None = None

    def guarded(act: Callable[[], _Tracker | None]) -> None:
        nonlocal tracker
        try:
            tracker = act()
        except Exception as error:  # of a library, a disk or a server: all the same to training
            tracker = None
            say(
                f"{folder.name}: {report_to} failed and is switched off "
                f"({first_line(error)}). Training goes on; metrics.jsonl has everything."
            )

    def track(step: int, row: Mapping[str, Any]) -> None:
        def log() -> _Tracker | None:
            if tracker is not None:
                tracker.log(_numbers({**row, "during": _measurements(folder, step)}), step=step)
            return tracker

        if tracker is not None:
            guarded(log)

    def finish() -> None:
        if tracker is not None:
            tracker.finish()

    if report_to != "none":
        guarded(lambda: _start_tracker(report_to, folder, after, told))
    try:
        yield track
    finally:
        guarded(finish)


def tracked_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is told of a configuration: numbers and choices, by their keys.

    Texts that somebody wrote, such as paths, patterns and names of models, are not among them.

    Args:
        values: `RunConfig.values_by_key`.
    """
    routing = values.get("routing")  # a table of one's own has keys for its parts only
    named = {"routing": routing} if routing in NAMED_POLICIES else {}
    # A key below a field, as of a table's row, holds names that somebody gave.
    fields = {key: field_of(key) for key in values}
    choices = {
        key: value
        for key, value in values.items()
        if fields[key] in _SHOWN
        and key.count(".") == fields[key].count(".")
        and (
            isinstance(value, int | float) or get_origin(FIELDS[fields[key]].annotation) is Literal
        )
    }
    return {**named, **choices}


def _start_tracker(
    report_to: str, folder: RunFolder, after: int, told: Mapping[str, Any]
) -> _Tracker:
    place = folder.tracking
    place.mkdir(parents=True, exist_ok=True)
    if report_to == "tensorboard":
        tracker = _tensorboard(place, after)
    else:
        tracker = _wandb(place, folder.name, after)
    if after == 0:
        tracker.store_init_configuration(dict(told))
    return tracker


def _tensorboard(place: Path, after: int) -> _Tracker:
    from accelerate.tracking import TensorBoardTracker

    # What was written of later steps is skipped by readers.
    tracker = TensorBoardTracker("tensorboard", place, purge_step=after + 1)
    tracker.start()
    return tracker


def _wandb(place: Path, name: str, after: int) -> _Tracker:
    """Without a server unless the user's WANDB_MODE says otherwise, and without a question."""
    kept = place / "wandb-id.txt"
    if after == 0 or not kept.is_file():
        write_text(kept, secrets.token_hex(8))
    # The library and its helper process read these when they start.
    before = {key: os.environ.get(key) for key in _WANDB_PLACES}
    os.environ.update({key: value or str(place / "wandb") for key, value in before.items()})
    try:
        import wandb
        from accelerate.tracking import WandBTracker

        tracker = WandBTracker(
            "gradroute",
            dir=str(place),
            name=name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or "offline",
            settings=wandb.Settings(
                silent=True,  # nor does a silent one ask for a key
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        tracker.start()
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
    return tracker


def _measurements(folder: RunFolder, step: int) -> dict[str, Any]:
    """What was measured after a step: mode -> numbers."""
    if not folder.measures.is_file():
        return {}
    lines = (dict(line) for line in read_lines(folder.measures) if line["step"] == step)
    return {line.pop("mode"): {k: v for k, v in line.items() if k != "step"} for line in lines}


def _numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, int | float]:
    """The numbers of a line, nested ones as `loss_per_label/bad`; the step is their place."""
    found: dict[str, int | float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            found[f"{prefix}{key}"] = value
    return found
