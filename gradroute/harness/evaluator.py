"""Tasks under ablation modes, each once: eval/tasks.jsonl holds documents, eval/tasks.json numbers.

A number is kept as long as checkpoint, task, documents, worked examples and lm-eval's version are
those that it was measured with; then it is not measured again. It is written after its documents'
lines, so an evaluation may be interrupted anywhere.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradroute.config.run_config import RunConfig, load_config
from gradroute.errors import ConfigError, GradrouteError
from gradroute.evaluate.request import requested_modes
from gradroute.harness.model import as_lm, check_installed
from gradroute.harness.numbers import summary
from gradroute.harness.store import Key, StoredTasks, add_to_store, read_store
from gradroute.harness.tasks import Loaded, TaskRequest, load_tasks
from gradroute.harness.text import tasks_text
from gradroute.models.checkpoint import Checkpoint
from gradroute.models.trained import finished_checkpoint
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.system.files import clear_unfinished
from gradroute.system.memory import is_out_of_memory
from gradroute.system.secrets import redact
from gradroute.system.terminal import say


@dataclass(frozen=True)
class _Plan:
    """A run with the modes that its tasks are measured under."""

    folder: RunFolder
    config: RunConfig
    checkpoint: Checkpoint
    modes: list[AblationMode]

    def key(self, loaded: Loaded, task: str, mode: AblationMode) -> Key:
        """What a number of this task under this mode depends on."""
        return Key(
            task=task, mode=mode.name, checkpoint=self.checkpoint.identity, **loaded.facts[task]
        )


def measure_tasks(
    folders: Sequence[RunFolder],
    request: TaskRequest,
    *,
    modes: Sequence[str],
    scales: Sequence[str],
) -> None:
    """Measure runs on standard tasks under their ablation modes, and print a table of each.

    Args:
        folders: Finished runs.
        request: Tasks and how much of them.
        modes: Ablation modes; none for those of each run's config.
        scales: Scale curves, measured beside the modes.

    Raises:
        ConfigError: A mode or a task does not exist, cannot be set up or fails.
        MachineError: lm-eval is not installed, a data set is not to be had, a run has no finished
            checkpoint, or another process writes to it.
        NumericError: A log-likelihood is not finite.
    """
    check_installed()
    plans = [_plan(folder, modes, scales) for folder in folders]
    with _quiet("lm-eval"):
        tasks = load_tasks(request)
    for note in [note for one in tasks for note in one.notes]:
        say(note)
    for plan in plans:
        kept = _measured(plan, tasks)
        print(tasks_text(plan.folder.name, kept, tasks, [mode.name for mode in plan.modes]))


def _plan(folder: RunFolder, modes: Sequence[str], scales: Sequence[str]) -> _Plan:
    config = load_config(folder.config)
    wanted = requested_modes(
        folder.name, config.adapters, modes or config.evaluate.modes or None, scales
    )
    return _Plan(folder, config, finished_checkpoint(folder, config.train.max_steps), wanted)


def _measured(plan: _Plan, tasks: Sequence[Loaded]) -> StoredTasks:
    """What is known of the tasks of a run once all that is missing is measured."""
    keys = {
        (one.name, mode.name): [plan.key(one, task, mode) for task in one.facts]
        for one in tasks
        for mode in plan.modes
    }
    asked = [key for some in keys.values() for key in some]
    kept = read_store(plan.folder, asked)
    if kept.has(asked):
        return kept
    with write_lock(plan.folder.path, "measuring"):
        clear_unfinished(plan.folder.tasks.parent)
        kept = read_store(plan.folder, asked)
        if kept.stale:
            say(
                f"{plan.folder.name}: {kept.stale} earlier numbers were measured on another "
                "checkpoint, task, set of documents or lm-eval; they are ignored."
            )
        lm = None
        for one in tasks:
            for mode in plan.modes:
                wanted = keys[one.name, mode.name]
                if kept.has(wanted):
                    continue
                say(f"{plan.folder.name}: measuring {one.name} under {mode.name}")
                lm = lm.under(mode) if lm else as_lm(plan.folder, mode)
                with _quiet(plan.folder.name):
                    rows, lines = _evaluated(lm, one, mode, wanted)
                add_to_store(kept, rows, lines, wanted)
    return kept


def _evaluated(
    lm: Any, one: Loaded, mode: AblationMode, keys: Sequence[Key]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and documents' lines of a task or group under the model's mode."""
    from lm_eval.evaluator import evaluate

    one.seed()
    limit = keys[0].limit
    try:
        with _seeded():
            found: Any = evaluate(
                lm=lm,
                task_dict={"tasks": one.tasks, "groups": one.groups},
                limit=limit,
                bootstrap_iters=0,  # intervals are made here, see `numbers`
                confirm_run_unsafe_code=False,
            )
    except GradrouteError:
        raise
    except Exception as error:  # of lm-eval, or of the code of a task
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            raise
        told = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        raise ConfigError(f"task {one.name} fails under {mode.name} ({told}).") from error
    lines = [
        line for key in keys for line in _lines(key, found.get("samples", {}).get(key.task, []))
    ]
    rows = [row for key in keys for row in _rows(key, found, one, lines)]
    return rows, lines


def _lines(key: Key, samples: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """A line per document and filter: its values, and what the model answered."""
    for sample in samples:
        yield {
            **key.named,
            "filter": sample["filter"],
            "document": sample["doc_id"],
            "prompt_hash": sample["prompt_hash"],
            "values": {name: _plain(sample[name]) for name in sample["metrics"]},
            "answers": _plain(sample["filtered_resps"]),
        }


def _rows(
    key: Key, found: Any, one: Loaded, lines: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row per metric and filter, with its interval over the documents."""
    better = found["higher_is_better"].get(key.task) or {}
    results = found["results"].get(key.task, {})
    for name, value in results.items():
        metric, comma, chosen = name.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = [
            line["values"][metric]
            for line in lines
            if (line["task"], line["filter"]) == (key.task, chosen) and metric in line["values"]
        ]
        number = summary(values, one.aggregation(key.task, metric))
        yield {
            **key._asdict(),
            "group": key.task in one.groups,
            "metric": metric,
            "filter": chosen,
            "value": float(value),
            "stderr": number.stderr,
            "lower": number.lower,
            "upper": number.upper,
            "n": len(values) or int(results.get("sample_len", 0)),
            "higher_is_better": better.get(metric),
        }


def _plain(value: Any) -> Any:
    """Numbers of numpy as numbers, tuples as lists, anything else as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    try:
        return _plain(value.item())
    except (AttributeError, TypeError, ValueError):
        return str(value)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The random state that lm-eval's own command starts from, and the old one afterwards."""
    import random

    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    state, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(arrays)


class _WarningLog(logging.Handler):
    """Keeps what lm-eval says, each thing once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.lines.setdefault(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Say lm-eval's warnings once, and nothing else of what it and its readers write.

    On a terminal their progress bars stay.
    """
    logger, heard = logging.getLogger("lm_eval"), _WarningLog()
    propagate = logger.propagate
    logger.addHandler(heard)
    logger.propagate = False
    unheard = io.StringIO()
    try:
        with contextlib.redirect_stdout(unheard), contextlib.ExitStack() as stack:
            if not sys.stderr.isatty():
                stack.enter_context(contextlib.redirect_stderr(unheard))
            yield
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagate
        for line in heard.lines:
            say(f"{name}: {line[:300]}")
