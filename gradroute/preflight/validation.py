"""Validation before training: every check of a run that needs no writing.

Data, base, labels, tokens, routes and place are looked at one after another. What goes wrong in
one of them does not keep the others from being looked at, so that all of it is said at once. A
forward and backward pass on examples of every label shows that exactly the adapters which the
table names learn from them; real steps, in memory, show what training takes.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from peft import PeftModel
from torch import nn

from gradroute import __version__
from gradroute.config.run_config import (
    FREE_ON_RESUME,
    RunConfig,
    config_differences,
    load_config,
)
from gradroute.config.sections import TrainConfig
from gradroute.data.batches import TokenizedExample, collate
from gradroute.data.examples import Example, label_counts
from gradroute.data.label_assignment import label_quality
from gradroute.errors import ConfigError, GradrouteError, MachineError, NumericError
from gradroute.evaluate.evaluator import run_identity
from gradroute.evaluate.length_checks import check_lengths
from gradroute.evaluate.model_probe import probe
from gradroute.experiments.controls import control_configs
from gradroute.models.base import Base, load_base_of
from gradroute.models.checkpoint import latest_checkpoint
from gradroute.models.initial_adapters import put_starts
from gradroute.models.trained import attach
from gradroute.preflight.rank_estimates import estimate_of_ranks
from gradroute.preflight.simpler_methods import simpler_methods
from gradroute.prepare import Prepared, prepare, tokenize_examples
from gradroute.routing.adapters import adapter_parameters
from gradroute.routing.policy import RoutingPolicy
from gradroute.routing.targets import describe_targets
from gradroute.runs.folder import RunFolder
from gradroute.runs.resume import allowed_changes, identity_changes
from gradroute.system.files import free_bytes, nearest_existing
from gradroute.system.memory import is_out_of_memory
from gradroute.system.secrets import redact
from gradroute.train.estimates import estimate
from gradroute.train.step import accumulate_gradients

_EACH = 2
"""Examples of each label in the pass that looks at gradients."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Validation:
    """What was seen.

    Attributes:
        facts: section -> what is known of it, as plain data; a section that could not be looked at
            is not there.
        problems: what would stop training, in the order of the sections.
    """

    facts: dict[str, Any]
    problems: tuple[GradrouteError, ...]


def validate(config: RunConfig, root: Path, *, ranks: int | None = None) -> Validation:
    """Look at everything that `train_run` would need; nothing is written.

    (A base or data set of the hub is fetched into the hub's cache, as by training.)

    Args:
        config: the resolved configuration.
        root: the folder of the runs.
        ranks: also what each of so many processes would take, see `estimate_of_ranks`.
    """
    run = {"name": config.run_name, "seed": config.seed, "controls": config.controls or []}
    facts: dict[str, Any] = {"run": run}
    problems: list[GradrouteError] = []
    seen = partial(_seen, facts, problems)
    seen("controls", lambda: control_configs(config))
    seen("place", lambda: _place(config, root))
    prepared = seen("examples", lambda: prepare(config))
    if prepared is not None:
        facts["data"] = _data(prepared)
        facts["simpler"] = simpler_methods(prepared, config.controls or [])
    base = seen("base", lambda: load_base_of(config))
    attached = None
    if base is not None:
        facts["base"] = _base(base, config.model)
        attached = seen("targets", lambda: _attached(base, config))
        facts |= {"adapters": attached.facts} if attached else {}
    if prepared is None or base is None:
        return Validation(facts, tuple(problems))
    tokens = seen("tokens", partial(_tokens, prepared, base, config.data.max_length, config.train))
    if attached is None:
        return Validation(facts, tuple(problems))
    model = attached.model
    if facts.get("place", {}).get("steps_done"):
        stands_on = {**run_identity(prepared, base), **attached.starts, "gradroute": __version__}
        seen("identity", partial(_same_identity, RunFolder(root / config.run_name), stands_on))
    if tokens is None:
        return Validation(facts, tuple(problems))
    rows, facts["tokens"] = tokens
    seen("lengths", lambda: check_lengths(prepared, base, config.evaluate, config.data.max_length))
    works = seen("model", lambda: _model(model, base, config.targets))
    learn = partial(_gradients, model, rows, prepared.policy, config.train.loss_mean, base.pad_id)
    if works and seen("gradients", learn):
        one = seen("estimate", partial(estimate, model, rows, prepared, config, base.pad_id))
        runs = 1 + len(config.controls or ())
        if one is not None:
            seen("estimate", lambda: _of_all(one, runs, root))
        if one is not None and ranks is not None:
            seen("ranks", lambda: estimate_of_ranks(model, config, one, ranks))
    return Validation(facts, tuple(problems))


def _seen(
    facts: dict[str, Any],
    problems: list[GradrouteError],
    name: str,
    look: Callable[[], Result],
) -> Result | None:
    """What a look finds; a dictionary goes to the facts, an error to the problems."""
    try:
        found = look()
    except GradrouteError as error:
        problems.append(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problems.append(MachineError(f"{name}: memory runs out ({str(error)[:100]})."))
    else:
        if isinstance(found, dict):
            facts[name] = found
        return found
    return None


def _same_identity(folder: RunFolder, stands_on: dict[str, str]) -> list[str]:
    """See that a run that is there was trained on this base and data."""
    return list(allowed_changes(folder, identity_changes(folder, stands_on), (), free=()))


def _place(config: RunConfig, root: Path) -> dict[str, Any]:
    """Where the run would be written, and what is there.

    Raises:
        MachineError: no folder can be made or written there.
        ConfigError: a run of that name was begun with other settings.
    """
    folder = RunFolder(root / config.run_name)
    there = nearest_existing(folder.path)
    if not there.is_dir():
        raise MachineError(f"run folder {folder.path}: {there} exists and is not a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise MachineError(
            f"run folder {folder.path}: {there} is not writable. Choose another with --runs."
        )
    found = {"folder": redact(str(folder.path)), "steps_done": 0, "free": free_bytes(there)}
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is not None:
        begun = folder.config if folder.config.is_file() else checkpoint.config
        changes = config_differences(load_config(begun), config)
        allowed_changes(folder, changes, (), free=FREE_ON_RESUME)
        found["steps_done"] = checkpoint.step
    return found


def _data(prepared: Prepared) -> dict[str, Any]:
    counts = label_counts(prepared.train)
    behaving = sum(map(len, prepared.behaving.values()))
    known = any(e.true_label != _assumed(e) for e in prepared.train)
    quality = label_quality(prepared.train, tuple(prepared.behaviors)) if known else {}
    return {
        "identity": prepared.identity,
        "train": len(prepared.train),
        "held_out": {"normal": len(prepared.normal), "behavior": behaving},
        "groups": prepared.shared and prepared.shared._asdict(),
        "labels": dict(sorted(Counter(e.label for e in prepared.train).items())),
        "true_labels_known": known,
        "true_by_label": [[true, label, n] for (true, label), n in counts.items()] if known else [],
        "precision": quality.get("precision"),
        "recall": quality.get("recall"),
        "notes": list(prepared.notes),
    }


def _assumed(example: Example) -> str:
    """The true label of an example of a file that has none."""
    return "good" if example.label == "unlabeled" else example.label


def _base(base: Base, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "identity": base.identity,
        "kind": type(base.model).__name__,
        "parameters": base.model.num_parameters(),
        "held": str(base),
        "vocabulary": base.vocabulary,
        "tokenizer": {
            "kind": type(base.tokenizer).__name__,
            "tokens": len(base.tokenizer),
            "begins": base.tokenizer.bos_token,
            "ends": base.tokenizer.eos_token,
        },
    }


class _Attached(NamedTuple):
    """The base with its adapters, where they start from."""

    model: PeftModel
    facts: dict[str, Any]
    starts: dict[str, str]


def _attached(base: Base, config: RunConfig) -> _Attached:
    covered = describe_targets(base.model, config.targets, config.layers)
    model = attach(base.model, config)
    starts = put_starts(model, config.adapters)
    own = adapter_parameters(model)
    weights = {name: sum(p.numel() for p in part) for name, part in own.items()}
    return _Attached(model, {"covered": covered, "weights": weights}, starts)


def _tokens(
    prepared: Prepared, base: Base, max_length: int, settings: TrainConfig
) -> tuple[list[TokenizedExample], dict[str, Any]]:
    """The tokenized examples, and what of them is trained on."""
    rows, notes = tokenize_examples(prepared.train, prepared.policy, base, max_length)
    targets: Counter[str] = Counter()
    for row in rows:
        for label_id, count in row.targets_by_label.items():
            targets[prepared.policy.labels[label_id]] += count
    lengths = sorted(len(row.input_ids) for row in rows)
    return rows, {
        "examples": len(rows),
        "dropped": len(prepared.train) - len(rows),
        "targets": dict(sorted(targets.items())),
        "median_length": lengths[len(lengths) // 2],
        "longest": lengths[-1],
        "epochs": settings.max_steps * settings.step_examples / len(rows),
        "notes": list(notes),
    }


def _model(model: PeftModel, base: Base, targets: str | Sequence[str]) -> dict[str, Any]:
    """What the model with its adapters can do, see `probe`."""
    found = probe(model, base.tokenizer, targets)
    return {"idle": list(found.idle), "alone": found.alone, "notes": list(found.notes)}


def _gradients(
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    policy: RoutingPolicy,
    loss_mean: str,
    pad_id: int,
) -> dict[str, Any]:
    """One forward and backward pass on examples of every label, under the table.

    Returns:
        label -> `loss` in nats, averaged as `train.loss_mean` says, and `norms` of the gradient by
        adapter.
    """
    model.train()
    found: dict[str, Any] = {}
    for label_id, label in enumerate(policy.labels):
        some = [row for row in rows if row.targets_by_label[label_id]][:_EACH]
        if not some:
            continue
        # An example whose tokens have several labels is taken whole under each of them.
        some = [replace(row, label_id=label_id, label_ids=()) for row in some]
        batch = collate(some, pad_id).to(model.device)
        model.zero_grad(set_to_none=True)
        report = accumulate_gradients(model, [batch], policy, loss_mean)
        norms = {
            name: float(nn.utils.get_total_norm([p.grad for p in own if p.grad is not None]))
            for name, own in adapter_parameters(model).items()
        }
        found[label] = {"loss": report.loss, "norms": norms}
    model.zero_grad(set_to_none=True)
    check_routes(found, policy)
    return found


def check_routes(found: dict[str, Any], policy: RoutingPolicy) -> None:
    """See that exactly the adapters that the table updates have a finite gradient.

    Args:
        found: label -> `loss`, and `norms` of the gradient by adapter.
        policy: the table.

    Raises:
        NumericError: a loss or gradient is not finite.
        ConfigError: an adapter learns that should not, or does not that should.
    """
    wrong: list[str] = []
    for label, seen in found.items():
        if not math.isfinite(seen["loss"]):
            raise NumericError(f"the loss of examples labeled {label} is {seen['loss']}.")
        for adapter, norm in seen["norms"].items():
            route = policy.table[label][adapter]
            if not math.isfinite(norm):
                raise NumericError(
                    f"the gradient of adapter '{adapter}' from examples labeled {label} is {norm}."
                )
            if (norm > 0) != (route.update > 0):
                learns = "learns" if norm > 0 else "does not learn"
                wrong.append(f"'{adapter}' {learns} from examples labeled {label}")
    if wrong:
        raise ConfigError(
            f"the gradients do not fit the routing table '{policy.name}': {'; '.join(wrong)}. Look "
            "at adapters, targets and layers."
        )


def _of_all(one: dict[str, Any], runs: int, root: Path) -> dict[str, Any]:
    """The estimate of a run and its controls, each taken for as much again.

    Raises:
        MachineError: the disk has too little room.
    """
    disk = runs * one["disk"] + one["states"]  # the controls read the same states
    free = free_bytes(nearest_existing(root))
    if free is not None and free < disk:
        raise MachineError(
            f"the disk of {root} has {free / 1e9:.2f} GB free, and about {disk / 1e9:.2f} GB are "
            f"needed for {runs} run{'s' if runs > 1 else ''}. Make room, or choose another folder "
            "with --runs."
        )
    return {**one, "hours": runs * one["hours"], "disk": disk, "runs": runs}
