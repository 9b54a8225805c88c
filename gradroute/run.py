"""The whole flow in data order: prepare, train, measure, compare. Read this first.

prepare (prepare.py)       config -> labeled examples, held-out examples, routing table
train_run                  examples -> runs/<name>/checkpoints
evaluate_run (evaluate/)   checkpoint -> runs/<name>/eval
evaluate_runs              several runs' results -> comparison, figure, verdicts (report/)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel

from gradroute import __version__
from gradroute.config.run_config import (
    FREE_ON_RESUME,
    RunConfig,
    config_differences,
    dump_config,
    load_config,
    with_free_values,
)
from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError
from gradroute.evaluate.during_training import during_training
from gradroute.evaluate.evaluator import check_request, evaluate_run, run_identity
from gradroute.evaluate.length_checks import check_lengths
from gradroute.evaluate.manifest import data_report, manifest_of
from gradroute.evaluate.model_probe import probe
from gradroute.evaluate.request import (
    EvaluationRequest,
)
from gradroute.models.base import Base, choose_device_and_dtype, load_base_of
from gradroute.models.checkpoint import Checkpoint, latest_checkpoint, load_adapters
from gradroute.models.hidden_state_cache import open_state_cache
from gradroute.models.initial_adapters import put_starts
from gradroute.models.sharding import shard
from gradroute.models.shared_states import share_states
from gradroute.models.trained import attach
from gradroute.prepare import (
    Prepared,
    data_order,
    prepare,
    tokenize_examples,
)
from gradroute.routing.targets import describe_targets
from gradroute.runs.folder import RunFolder, move_aside
from gradroute.runs.lock import write_lock
from gradroute.runs.provenance import provenance
from gradroute.runs.resume import (
    Changes,
    allowed_changes,
    check_logs,
    check_overrides,
    condition_changes,
    identity_changes,
    read_manifest,
    record_session,
    say_changes,
)
from gradroute.system.files import clear_unfinished, write_json, write_text
from gradroute.system.launcher import own_rank
from gradroute.system.ranks import Ranks, join_ranks, lost_rank_told
from gradroute.system.terminal import say
from gradroute.train.audit import Audit
from gradroute.train.optimizer import build_optimizer
from gradroute.train.parallel import cached_settings, check_equal_start, strategy_of
from gradroute.train.reference import open_reference
from gradroute.train.tracking import tracked_config
from gradroute.train.trainer import train
from gradroute.train.training import Training


def train_run(
    config: RunConfig,
    root: Path,
    *,
    if_exists: str,
    bar: bool,
    overrides: Sequence[str] = (),
    audit: bool = False,
) -> RunFolder:
    """Train one run in `root/<run_name>`, or go on with it, or see that it is finished.

    Args:
        config: the resolved configuration.
        root: the folder of the runs.
        if_exists: what a folder that is there means: "fail", "resume", or "new" (it is moved
            aside, never deleted).
        bar: show a progress bar rather than a line now and then.
        overrides: keys, or sections of keys, that may differ from those that the run was begun
            with; also `identity.data`, `identity.base`, `identity.gradroute`, see
            `gradroute.runs.resume`.
        audit: write and check which routes every example took, see `gradroute.train.audit`.

    Raises:
        ConfigError: the run was begun with other settings, or "fail" was asked for.
        MachineError: another process writes to the folder, or all its checkpoints are damaged.
        GradrouteError: whatever else stops preparing or training.
    """
    ranks = join_ranks()
    parallel = strategy_of(config, ranks, audit=audit)
    folder = RunFolder(root / config.run_name)
    with lost_rank_told(), ExitStack() as inside:

        def open_folder() -> _Start:
            if ranks.is_main:
                inside.enter_context(write_lock(folder.path, "training"))
            return _start(folder, config, if_exists, overrides)

        start = ranks.main_first(open_folder)
        ranks.wait()  # until all have looked, nothing is written
        if start.step >= config.train.max_steps:
            ranks.on_main(lambda: _finished(folder, start))
        else:
            _train(
                _Place(folder, ranks, parallel),
                config,
                start,
                from_scratch=if_exists == "new",
                bar=bar,
                audit=audit,
            )
        ranks.wait()  # what comes next finds everything written
    return folder


@dataclass(frozen=True)
class _Place:
    """Where a run is trained.

    Attributes:
        folder: What it writes.
        ranks: The processes; one of them writes.
        parallel: How they share the work, see `strategy_of`.
    """

    folder: RunFolder
    ranks: Ranks
    parallel: str


@dataclass(frozen=True)
class _Start:
    """Where a run goes on.

    Attributes:
        kept: the config it was begun with, with what may change freely as it is now.
        checkpoint: the newest; None for a run that has none yet.
        changed: key -> (then, now) of what differs from when it was begun.
        overridden: the keys among these that `--override` allowed.
        overrides: what may differ.
    """

    kept: RunConfig
    checkpoint: Checkpoint | None
    changed: Changes
    overridden: Sequence[str]
    overrides: Sequence[str]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.checkpoint.step if self.checkpoint else 0

    def also(self, folder: RunFolder, changed: Changes) -> _Start:
        """With more changes, if they may be."""
        asked = allowed_changes(folder, changed, self.overrides, free=FREE_ON_RESUME)
        overridden = [*self.overridden, *asked]
        return replace(self, changed={**self.changed, **changed}, overridden=overridden)


def _start(
    folder: RunFolder, config: RunConfig, if_exists: str, overrides: Sequence[str]
) -> _Start:
    """Look at what is there, clear what a killed process left, refuse what does not fit."""
    # The adapters of the run itself may be none of its control's.
    asked = [key for key in overrides if not (config.control and key.startswith("adapters."))]
    there = folder.config.is_file() or folder.checkpoints.is_dir()
    if there and if_exists == "fail":
        raise ConfigError(f"run folder {folder.path} already exists, and --if-exists is fail.")
    if not there or if_exists == "new":
        check_overrides(asked, config.values_by_key)
        return _Start(config, None, {}, (), overrides)
    for place in (folder.path, folder.checkpoints, folder.results.parent):
        clear_unfinished(place)
    checkpoint = latest_checkpoint(folder.checkpoints)
    before = _begun_with(folder, checkpoint) or config
    check_overrides(asked, [*before.values_by_key, *config.values_by_key])
    changed = config_differences(before, config)
    check_logs(folder, checkpoint.step if checkpoint else 0)
    kept = with_free_values(before, config)
    if checkpoint is None:
        return _Start(kept, None, changed, (), overrides)
    return _Start(kept, checkpoint, {}, (), overrides).also(folder, changed)


def _begun_with(folder: RunFolder, checkpoint: Checkpoint | None) -> RunConfig | None:
    """The config that a run was begun with; None where that is lost and nothing depends on it."""
    try:
        return load_config(folder.config)
    except ConfigError as error:
        if checkpoint is None:
            return None
        say(f"{folder.name}: {error} The one from {checkpoint.path.name} is used instead.")
        return load_config(checkpoint.config)


def _finished(folder: RunFolder, start: _Start) -> None:
    """Nothing is left to train; what changes no trained weight may still change."""
    if changed := {key: two for key, two in start.changed.items() if key in FREE_ON_RESUME}:
        record_session(folder, start.step, changed=changed, overridden=(), provenance=provenance())
    write_text(folder.config, dump_config(start.kept))
    say(f"{folder.name}: finished, {start.step} steps; nothing to train.")
    if start.overridden:
        say(
            f"{folder.name}: already trained; these overrides have no effect: "
            f"{', '.join(start.overridden)}."
        )


def _train(
    place: _Place,
    config: RunConfig,
    start: _Start,
    *,
    from_scratch: bool,
    bar: bool,
    audit: bool,
) -> None:
    """Look at everything that can stop a run, write what the run is, and train it."""
    folder, ranks = place.folder, place.ranks
    prepared = prepare(config)
    sharded = place.parallel == "fsdp2"
    base = load_base_of(config, on_cpu=sharded)
    told = f"{base}; {describe_targets(base.model, config.targets, config.layers)}"
    model = attach(base.model, config)
    starts = put_starts(model, config.adapters)
    reference, taught = open_reference(config, model, prepared.policy, base.identity)
    facts = {**run_identity(prepared, base), **starts, **taught, "gradroute": __version__}
    if from_scratch:
        ranks.on_main(lambda: move_aside(folder))
    if checkpoint := start.checkpoint:
        start = start.also(folder, identity_changes(folder, facts))
        # What was overridden may not fit; that is seen before anything is written.
        load_adapters(checkpoint, model)
    found = probe(model, base.tokenizer, config.targets)
    if sharded:
        shard(model, ranks, choose_device_and_dtype()[0])
    rows, notes = tokenize_examples(prepared.train, prepared.policy, base, config.data.max_length)
    check_lengths(prepared, base, config.evaluate, config.data.max_length)
    check_equal_start(ranks, config, base, rows, start.checkpoint)
    training = _training(place, config, prepared, base, model, rows, bar=bar, audit=audit)
    say(f"{folder.name}: base {config.model}: {told}.")
    for note in (*found.notes, *prepared.notes, *notes):
        say(f"{folder.name}: {note}")

    def record() -> None:
        if config.data.on_bad_row == "skip":
            write_json(folder.data_report, data_report(prepared))
        _record_start(folder, training.config_text, prepared, facts, notes, start)

    ranks.on_main(record)
    labels = Counter(example.label for example in prepared.train)
    counts = ", ".join(f"{n} {label}" for label, n in sorted(labels.items()))
    say(
        f"{folder.name}: {len(rows)} examples ({counts}), table {prepared.policy.name}, "
        f"{config.train.max_steps} steps on {base.model.device}"
    )
    cached = cached_settings(config.train, place.parallel, folder.name)
    states = ranks.main_first(
        lambda: open_state_cache(
            folder, cached, base, model, training.visited, quantize=config.quantize
        )
    )
    if not ranks.several:
        examples = config.train.max_steps * training.each
        share_states(folder, config, base, model, rows, examples=examples)
    train(replace(training, states=states, reference=reference))


def _training(
    place: _Place,
    config: RunConfig,
    prepared: Prepared,
    base: Base,
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    *,
    bar: bool,
    audit: bool,
) -> Training:
    """What the training loop needs, but for the hidden states; nothing is written."""
    folder, ranks = place.folder, place.ranks
    labels = {example.id: example.label for example in prepared.train}
    watched = config.train.measure_every > 0
    cached = cached_settings(config.train, place.parallel)
    measured = config.model_copy(update={"train": cached})
    return Training(
        settings=config.train,
        seed=config.seed,
        config_text=dump_config(config),
        told=tracked_config(config.values_by_key),
        folder=folder,
        model=model,
        optimizer=build_optimizer(model, config.adapters, config.train.learning_rate),
        rows=rows,
        order=data_order(
            prepared,
            rows,
            seed=config.seed,
            front_load=config.data.front_load,
            length_window=config.train.length_window,
        ),
        policy=prepared.policy,
        pad_id=base.pad_id,
        packed_into=config.data.max_length if config.train.packing else None,
        say=say,
        bar=bar and ranks.is_main,
        measure=during_training(folder, measured, prepared, base, model, writes=ranks.is_main)
        if watched
        else None,
        audit=Audit(folder.audit, rows, labels, prepared.policy) if audit else None,
        ranks=ranks,
        sharded=place.parallel == "fsdp2",
    )


def evaluate_runs(folders: Sequence[RunFolder], request: EvaluationRequest, out: Path) -> None:
    """Measure every run, compare them, draw the figure and print the verdicts.

    What cannot be measured is said before anything is; what is measured stays.

    Args:
        folders: finished runs.
        request: prompts, modes and scale curves.
        out: folder of the comparison.
    """
    for folder in folders:
        check_request(folder, request)
    for folder in folders:
        evaluate_run(folder, request)
    if own_rank():  # rank 0 compares
        return
    # Drawing is heavy to import, and training does without.
    from gradroute.report.publish import publish

    publish(folders, out, page=False)


def _record_start(
    folder: RunFolder,
    config_text: str,
    prepared: Prepared,
    facts: dict[str, str],
    notes: tuple[str, ...],
    start: _Start,
) -> None:
    """Write what a run is before its first step, or that it goes on."""
    stated = manifest_of(prepared, facts, [*prepared.notes, *notes])
    now = provenance()
    conditions = condition_changes(folder, now) if start.step else {}
    before = read_manifest(folder) if start.step else {}
    if not before or (start.overridden and any(before.get(k) != stated[k] for k in stated)):
        write_json(folder.manifest, {**stated, "provenance": now})
    record_session(
        folder,
        start.step,
        changed={**start.changed, **conditions},
        overridden=start.overridden,
        provenance=now,
    )
    say_changes(folder, conditions, start.overridden)
    # Last: whoever is killed before it is asked for the same overrides again.
    write_text(folder.config, config_text)
