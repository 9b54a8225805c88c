"""Tasks of lm-eval by name: found, checked, set up, and told apart by what decides their numbers.

A task is a file of settings with templates and, where it says `!function`, code beside it. Those of
lm-eval are part of the installed package. A folder of the user's own is read only where it is
named, and then trusted as a program is.
"""

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gradroute.errors import ConfigError, MachineError
from gradroute.system.secrets import redact

# Where a task comes from says nothing about its numbers, and is a path of this machine.
_NOT_DECIDING = {"config_source"}


@dataclass(frozen=True)
class TaskRequest:
    """What is asked of lm-eval.

    Attributes:
        names: Tasks, groups or tags.
        folder: A folder of tasks of the user's own; None for lm-eval's alone.
        limit: Documents of each task, at most; None for all.
        num_fewshot: Worked examples before each document; None for what the task says.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A task, or a group or tag with all its tasks, ready to be evaluated.

    Attributes:
        name: As it was asked for.
        tasks: lm-eval's tasks by name.
        groups: lm-eval's groups by name, those that give numbers of their own and others.
        facts: Task or group -> what decides its numbers besides the model, as plain values.
        notes: Sentences about what was passed over.
    """

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]
    facts: dict[str, dict[str, Any]]
    notes: tuple[str, ...]

    def aggregation(self, task: str, metric: str) -> Callable[[Sequence[Any]], float] | None:
        """What makes one number of the documents' values; None for the mean and for groups."""
        if task not in self.tasks:
            return None
        from lm_eval.api.metrics import mean

        found = self.tasks[task].aggregation().get(metric)
        return None if found is mean else found

    def seed(self) -> None:
        """Let the worked examples be drawn from the start, so that all modes see the same ones."""
        from lm_eval.defaults import DEFAULT_OTHER_SEED

        for task in self.tasks.values():
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def load_tasks(request: TaskRequest) -> list[Loaded]:
    """Set up what is asked for, each name once; their data sets are read, and fetched if need be.

    Raises:
        ConfigError: There is no such task or folder, or a task cannot be set up, would run code
            that a model writes, or needs more than texts.
        MachineError: A data set is not to be had.
    """
    manager = _manager(request)
    index: Mapping[str, Any] = manager.task_index
    for name in request.names:
        for task, config in _configs(name, index):
            _refuse_unsafe(task, unsafe=config.get("unsafe_code") not in (None, False))
            _refuse_fetched_code(task, config)
    found = [_load(manager, name, request) for name in dict.fromkeys(request.names)]
    _refuse_two_forms(found)
    return found


def _manager(request: TaskRequest) -> Any:
    from lm_eval.tasks import TaskManager

    folder = request.folder
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"--include-path {folder} is no folder; give one with tasks in it.")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        # lm-eval's own fifteen thousand take seconds to look through.
        if set(request.names) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=str(folder) if folder else None)
    for name in request.names:
        if name not in manager.task_index:
            _refuse_unknown(name, manager.all_tasks, folder)
    return manager


def _refuse_unknown(name: str, known: Sequence[str], folder: Path | None) -> None:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    where = f" nor in {folder} (a file that cannot be read defines none)" if folder else ""
    raise ConfigError(
        f"there is no task {name!r} in lm-eval {metadata.version('lm-eval')}{where}.{hint} "
        "`lm-eval ls tasks` lists them; a folder of your own is named by --include-path."
    )


def _configs(name: str, index: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings, as they stand in the files, of every task that a name leads to."""
    pending: list[Any] = [name]
    seen: set[str] = set()
    while pending:
        one = pending.pop()
        if isinstance(one, Mapping):
            yield str(one.get("task", name)), one
            inner = one.get("task")
            pending += inner if isinstance(inner, list) else [inner, one.get("group")]
        elif isinstance(one, str) and one in index and one not in seen:
            seen.add(one)
            entry = index[one]
            if isinstance(entry.cfg, Mapping):
                yield one, entry.cfg
                inner = entry.cfg.get("task")
                pending += inner if isinstance(inner, list) else []
            else:
                pending += sorted(entry.tags)


def _refuse_fetched_code(task: str, config: Mapping[str, Any]) -> None:
    """Refuse a metric that is a program on the hub, which lm-eval would fetch and run."""
    from lm_eval.api import metrics, registry

    assert metrics  # fills the registry
    if config.get("process_results") is not None:
        return
    for metric in config.get("metric_list") or ():
        name = metric.get("metric") if isinstance(metric, Mapping) else None
        own = not isinstance(name, str) or "/" in name or name in registry.metric_registry
        if isinstance(metric, Mapping) and (metric.get("hf_evaluate") is True or not own):
            raise ConfigError(
                f"task {task}: the metric {name!r} is not one of lm-eval's own; it would be a "
                f"program from the hub, which is not run. Take one of lm-eval's, or write it as a "
                "!function in a folder of your own."
            )


def _load(manager: Any, name: str, request: TaskRequest) -> Loaded:
    try:
        found = manager.load([name])
    except Exception as error:
        raise _not_set_up(name, error) from error
    tasks, groups = dict(found["tasks"]), dict(found.get("groups", {}))
    notes: list[str] = []
    facts: dict[str, dict[str, Any]] = {}
    for task_name, task in tasks.items():
        _refuse_unfit(task_name, task)
        notes += _set_fewshot(task_name, task, request.num_fewshot)
        facts[task_name] = _facts(task, request.limit)
    for group_name, group in groups.items():
        if group.has_aggregation:
            own = [facts[task.task_name] for task in group.get_all_tasks()]
            facts[group_name] = _group_facts(group, own, request.limit)
    return Loaded(name, tasks, groups, facts, tuple(notes))


def _refuse_unsafe(name: str, *, unsafe: bool) -> None:
    if unsafe:
        raise ConfigError(
            f"task {name} runs code that the model writes. gradroute has no option for that; run "
            "it in a sandbox, with lm-eval and `gradroute.harness.as_lm`."
        )


def _refuse_two_forms(found: Sequence[Loaded]) -> None:
    """A group may set its tasks up in its own way; then the two cannot be told apart by name."""
    first: dict[str, Loaded] = {}
    for one in found:
        for task, facts in one.facts.items():
            other = first.setdefault(task, one)
            if other.facts[task] != facts:
                raise ConfigError(
                    f"task {task} is not the same in {one.name} and in {other.name}; ask for them "
                    f"in two commands."
                )


def _refuse_unfit(name: str, task: Any) -> None:
    _refuse_unsafe(name, unsafe=getattr(task, "UNSAFE_CODE", False))
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task {name} needs images or sound; only texts are evaluated here.")


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> Iterator[str]:
    """Worked examples as lm-eval's own command sets them."""
    own = task.get_config("num_fewshot")
    if num_fewshot is None:
        if own is None:
            task.set_config(key="num_fewshot", value=0)
    elif own == 0 and num_fewshot:
        yield (
            f"task {name} takes no worked examples; --num-fewshot {num_fewshot} has no effect on "
            "it."
        )
    else:
        task.set_config(key="num_fewshot", value=num_fewshot)


def _facts(task: Any, limit: int | None) -> dict[str, Any]:
    documents = hashlib.sha256()
    for _, document in task.doc_iterator(rank=0, limit=limit, world_size=1):
        documents.update(_canonical(document))
    return {
        "config": hashlib.sha256(_canonical(task.dump_config())).hexdigest(),
        "documents": documents.hexdigest(),
        "num_fewshot": task.get_config("num_fewshot"),
        "limit": limit,
        "lm_eval": metadata.version("lm-eval"),
    }


def _group_facts(group: Any, own: Sequence[Mapping[str, Any]], limit: int | None) -> dict[str, Any]:
    shots = {one["num_fewshot"] for one in own}
    return {
        "config": hashlib.sha256(_canonical([group.name, *own])).hexdigest(),
        "documents": hashlib.sha256(_canonical([one["documents"] for one in own])).hexdigest(),
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "limit": limit,
        "lm_eval": metadata.version("lm-eval"),
    }


def _canonical(value: Any) -> bytes:
    """The same bytes for the same settings, in every process and from every folder."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=True).encode()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if k not in _NOT_DECIDING}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__name__)
    return type(value).__name__


def _not_set_up(name: str, error: Exception) -> ConfigError | MachineError:
    """What lm-eval or its readers say, as a sentence; what is not to be had apart from the rest."""
    told = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    out_of_reach = ("ConnectionError", "OfflineModeIsEnabled", "DatasetNotFoundError", "HTTPError")
    names = {kind.__name__ for kind in type(error).__mro__} | {type(error.__cause__).__name__}
    if not names.isdisjoint(out_of_reach):
        return MachineError(
            f"task {name}: its data set is not available ({told}). It is fetched from the hub once "
            "and then read from the cache, also with HF_HUB_OFFLINE=1; a task on a local file "
            "needs no network."
        )
    return ConfigError(f"task {name} cannot be set up ({told}).")
