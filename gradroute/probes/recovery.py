"""Recovery: the cost of ablation, measured by a short tune of the adapters that ship.

recover_run     checkpoint, known-good examples -> recover/: the tune, measured before and after

It may be interrupted: what is finished is kept, and the same command goes on.
"""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor

from gradroute.config.run_config import RunConfig, dump_config, load_config
from gradroute.data.batches import DataOrder
from gradroute.data.behaviors import get_behaviors
from gradroute.data.examples import Example
from gradroute.errors import ConfigError, DataError, MachineError, NumericError
from gradroute.evaluate.evaluator import evaluate_run, run_identity
from gradroute.evaluate.request import (
    EvaluationRequest,
    judged_kinds,
    row_label,
    saved_drawn_by_rows,
)
from gradroute.models.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from gradroute.models.shared_states import share_states
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import Prepared, prepare, tokenize_examples
from gradroute.report.render.probe_text import recover_text
from gradroute.routing.policy import RoutingPolicy, shipped_mode
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.runs.provenance import provenance
from gradroute.runs.results import PREFIX, read_results
from gradroute.runs.resume import check_identity, read_manifest
from gradroute.system.files import (
    UNFINISHED,
    clear_unfinished,
    read_json,
    replace_folder,
    write_failure,
    write_json,
    write_text,
)
from gradroute.system.terminal import say
from gradroute.train.optimizer import build_optimizer, optimizer_tensors, schedule
from gradroute.train.short_tune import tune_steps

SCHEMA_VERSION = 1
"""Of `geometry.json` and `recover.json`."""


def recover_run(
    folder: RunFolder, *, steps: int, learning_rate: float | None, examples: int
) -> None:
    """Tune what a run keeps without `bad` on known-good examples, and measure it before and after.

    `bad` (of several behaviors, the adapter of each) takes no part in the forward pass, as it will
    not when the model is used; every other adapter learns. The result is a run folder of its own,
    `recover/` in the run's, so that it can be evaluated further. One that is there with the same
    settings and checkpoint is kept.

    Args:
        folder: a finished run with an adapter `bad` and another one.
        steps: optimizer steps; the rate warms up over the first tenth and falls to 0 as a cosine.
        learning_rate: peak rate of every adapter; None for a tenth of the run's own.
        examples: training examples labeled good, at most. Where none is, examples that are good
            without being labeled so, which is said.

    Raises:
        ConfigError: there is no adapter `bad`, or no other; the data have changed.
        DataError: no training example is known to be good.
        MachineError: the run has no finished checkpoint, or another process writes to it.
        NumericError: a loss or gradient is not finite.
    """
    target = RunFolder(folder.recovery)
    with write_lock(folder.path, "recovering"), write_lock(target.path, "recovering"):
        document = _recover(
            folder, target, steps=steps, learning_rate=learning_rate, examples=examples
        )
    config = load_config(folder.config)
    if isinstance(config.behavior, str):
        print(recover_text(folder.name, config.behavior, document))
    else:
        texts = [
            recover_text(folder.name, config.behaviors[label], own)
            for label, own in document["behaviors"].items()
        ]
        print("\n\n".join(texts))


def _recover(
    folder: RunFolder,
    target: RunFolder,
    *,
    steps: int,
    learning_rate: float | None,
    examples: int,
) -> dict[str, Any]:
    config = load_config(folder.config)
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    shipped = shipped_mode(tuple(config.adapters), tuple(config.behaviors))
    if shipped is None:
        raise ConfigError(
            f"run {folder.name} has the adapters {', '.join(config.adapters)}; to recover after "
            f"ablation, it needs an adapter {' or '.join(config.behaviors)} to leave out and "
            "another one to keep."
        )
    rate = config.train.learning_rate / 10 if learning_rate is None else learning_rate
    settings = {
        "checkpoint": checkpoint.identity,
        "steps": steps,
        "learning_rate": rate,
        "examples": examples,
    }
    clear_unfinished(folder.path)
    if not _is_done(target, settings):
        _tune(folder, target, config, checkpoint, settings)
    modes = (shipped.name, "full") + (("good_x2",) if "good" in config.adapters else ())
    asked = EvaluationRequest(modes=modes, judged=True)
    evaluate_run(folder, asked)
    evaluate_run(target, asked)
    used = read_json(target.manifest)["recovery"]
    kinds = judged_kinds(get_behaviors(config.behaviors), saved_drawn_by_rows(folder))
    documents = {
        label: {
            "schema_version": SCHEMA_VERSION,
            "steps": steps,
            "learning_rate": rate,
            "examples": used["used"],
            "mode": shipped.name,
            **({} if kind == PREFIX else {"kind": kind}),
            "before": {
                m: _numbers(folder, m, row_label(config.behavior, label), kind) for m in modes
            },
            "after": {
                m: _numbers(target, m, row_label(config.behavior, label), kind) for m in modes
            },
            "notes": used["notes"],
            "provenance": provenance(),
        }
        for label, kind in kinds.items()
    }
    document = {"schema_version": SCHEMA_VERSION, "behaviors": documents}
    if isinstance(config.behavior, str):
        (document,) = documents.values()
    target.check_there()
    write_json(target.path / "recover.json", document)
    return document


def run_names(seeds: Mapping[RunFolder, int]) -> dict[RunFolder, str]:
    """What each run is called: its name, with its seed or else its path where names are equal."""
    ways = ([f.name for f in seeds], [f"{f.name}@{seed}" for f, seed in seeds.items()])
    for names in ways:
        if len(set(names)) == len(names):
            return dict(zip(seeds, names, strict=True))
    return {folder: str(folder.path) for folder in seeds}


def _is_done(target: RunFolder, settings: Mapping[str, Any]) -> bool:
    """Whether the tune has been done with these settings; a damaged one has not."""
    if not target.manifest.is_file():
        return False
    try:
        known = read_json(target.manifest).get("recovery", {})
        same = all(known.get(key) == value for key, value in settings.items())
        return same and latest_checkpoint(target.checkpoints) is not None
    except (DataError, MachineError) as error:
        say(f"{target.path}: {error} The tune is done again.")
        return False


def _tune(
    folder: RunFolder,
    target: RunFolder,
    config: RunConfig,
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
) -> None:
    """Train what is kept and write it as a run folder, without its measurements."""
    prepared = prepare(config)
    base, model = restore(config, checkpoint)
    check_identity(folder, run_identity(prepared, base))
    chosen, notes = _known_good(folder, prepared, settings["examples"], config.seed)
    rows, more = tokenize_examples(chosen, None, base, config.data.max_length)
    for note in (*notes, *more):
        say(f"{folder.name}: {note}")
    kept = [name for name in config.adapters if name not in config.behaviors]
    routes = {name: "update" if name in kept else "ablate" for name in config.adapters}
    policy = RoutingPolicy.parse({"good": routes}, tuple(config.adapters))
    steps, rate = settings["steps"], settings["learning_rate"]
    own = {n: config.adapters[n].model_copy(update={"learning_rate": rate}) for n in kept}
    optimizer = build_optimizer(model, own, rate)
    share_states(folder, config, base, model, rows, examples=steps * config.train.step_examples)
    say(f"{folder.name}: tuning {', '.join(kept)} for {steps} steps on {len(rows)} examples")
    try:
        for _ in tune_steps(
            model,
            optimizer,
            rows,
            policy,
            steps=steps,
            batch_size=config.train.batch_size,
            accumulation=config.train.gradient_accumulation,
            loss_mean=config.train.loss_mean,
            rate=lambda step: schedule(step, steps, steps // 10),
            seed=config.seed,
            pad_id=base.pad_id,
        ):
            pass
    except NumericError as error:
        raise NumericError(f"recovering {folder.name}, {error}") from error
    recovery = {**settings, "used": len(rows), "notes": [*notes, *more]}
    state = optimizer_tensors(model, optimizer)
    text = dump_config(config)
    _write(folder, target, text, checkpoint.step + steps, model, state, policy, recovery)


def _write(
    folder: RunFolder,
    target: RunFolder,
    config_text: str,
    step: int,
    model: PeftModel,
    state: Mapping[str, Tensor],
    policy: RoutingPolicy,
    recovery: Mapping[str, Any],
) -> None:
    """Write a recovery as a run folder: the whole of it or nothing."""
    built = RunFolder(folder.path / f"{UNFINISHED}recover")
    folder.check_there()
    write_text(built.config, config_text)
    manifest = {**read_manifest(folder), "recovery": recovery, "provenance": provenance()}
    write_json(built.manifest, manifest)
    save_checkpoint(
        built.checkpoints,
        step,
        model,
        state,
        config_text=config_text,
        policy=policy.to_plain(),
    )
    if target.path.exists():
        say(f"{folder.name}: an earlier recovery, of other settings or weights, is replaced.")
    try:
        replace_folder(built.path, target.path)
    except OSError as error:
        raise MachineError(f"{write_failure(target.path, error, 0)}.") from error


def _known_good(
    folder: RunFolder, prepared: Prepared, count: int, seed: int
) -> tuple[list[Example], list[str]]:
    """Training examples labeled good, `count` at most, and what there is to say about them."""
    notes = []
    pool = [example for example in prepared.train if example.label == "good"]
    if not pool:
        pool = [example for example in prepared.train if example.true_label == "good"]
        notes.append(
            "no training example is labeled good; examples that are good by their true label are "
            "used instead, which real data does not have."
        )
    if not pool:
        raise DataError(
            f"run {folder.name}: no training example is known to be good, so there is nothing to "
            "recover with; label some good."
        )
    if len(pool) < count:
        notes.append(f"only {len(pool)} of the {count} requested examples are known to be good.")
    order = DataOrder(seed, len(pool), tuple(range(len(pool))))
    return [pool[at] for at in order.batch(0, min(count, len(pool)))], notes


def _numbers(folder: RunFolder, mode: str, label: str, kind: str) -> dict[str, Any]:
    """Behavior rate on a kind of prompts and held-out losses of a measured run under a mode."""
    rows, _ = read_results(folder.results)
    rows = [row for row in rows if row.mode == mode and row.label in ("all", label)]
    found = {(row.metric, row.dataset): row for row in rows}
    rate = found.get(("behavior_rate", kind))
    losses = {key: found.get(("held_out_loss", key)) for key in ("normal", "behavior")}
    return {
        "rate": rate
        and {"mean": rate.value, "lower": rate.lower, "upper": rate.upper, "n": rate.n},
        **{f"{key}_loss": row.value if row else None for key, row in losses.items()},
    }
