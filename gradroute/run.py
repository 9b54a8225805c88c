"""The whole flow in data order: prepare, train, evaluate, report. Read this first.

prepare (prepare.py)   config -> labelled examples, held-out examples, routing table
train_run              examples -> runs/<name>/checkpoints
evaluate_run           checkpoint -> runs/<name>/eval
report                 several runs' results -> comparison, figure, verdicts
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from gradroute.checkpoint import Checkpoint, latest_checkpoint, load_adapters
from gradroute.config import RunConfig, config_differences, dump_config, load_config
from gradroute.data.examples import label_counts
from gradroute.environment import provenance, redacted_tree
from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.evaluate.generation import Completion, Prompt, generate_modes
from gradroute.evaluate.lines import loss_lines, sample_lines
from gradroute.evaluate.losses import held_out_losses
from gradroute.evaluate.rows import (
    behavior_rows,
    geometry_rows,
    loss_rows,
)
from gradroute.files import read_json, read_lines, write_json, write_lines, write_text
from gradroute.folders import RunFolder
from gradroute.model import Base, load_base
from gradroute.prepare import Prepared, data_order, prefixes, prepare, tokenized
from gradroute.report.analysis import collect_runs
from gradroute.report.document import eval_multi
from gradroute.report.plots import eval_multi_plot
from gradroute.report.text import render
from gradroute.report.verdicts import judge
from gradroute.results import Result, read_results, write_results
from gradroute.routing.adapters import attach_adapters
from gradroute.routing.policy import AblationMode, standard_modes
from gradroute.train.trainer import Training, train


def say(line: str) -> None:
    """A line for the user: on standard error, so that results can be piped."""
    print(line, file=sys.stderr, flush=True)


def train_run(config: RunConfig, root: Path, *, if_exists: str, bar: bool) -> RunFolder:
    """Train one run in `root/<run_name>`, or go on with it, or see that it is finished.

    Args:
        config: the resolved configuration.
        root: the folder of the runs.
        if_exists: what a folder that is there means: "fail", "resume", or "new" (it is moved
            aside, never deleted).
        bar: show a progress bar rather than a line now and then.

    Raises:
        ConfigError: the folder belongs to a run with another config, or "fail" was asked for.
        GradrouteError: whatever stops preparing or training.
    """
    folder = RunFolder(root / config.run_name)
    if _finished(folder, config, if_exists):
        return folder
    prepared = prepare(config)
    base = load_base(config.model)
    model = attach(base.model, config)
    facts = _ground(prepared, base)
    if if_exists == "new":
        _move_aside(folder)
    _same_ground(folder, facts)
    rows, notes = tokenized(prepared.train, prepared.policy, base, config.data.max_length)
    for note in prepared.notes + notes:
        say(f"{config.run_name}: {note}")
    write_text(folder.config, dump_config(config))
    counts = label_counts(prepared.train)
    write_json(
        folder.manifest,
        {
            **facts,
            "notes": prepared.notes + notes,
            "examples": {f"{true} labelled {label}": n for (true, label), n in counts.items()},
            "labels": prepared.labels,
            "provenance": provenance(),
        },
    )
    labels = Counter(example.label for example in prepared.train)
    say(
        f"{config.run_name}: {len(rows)} examples ("
        + ", ".join(f"{n} {label}" for label, n in sorted(labels.items()))
        + f"), table {prepared.policy.name}, {config.train.max_steps} steps on "
        f"{base.model.device}"
    )
    train(
        Training(
            config=config,
            folder=folder,
            model=model,
            rows=rows,
            order=data_order(prepared, rows, config),
            policy=prepared.policy,
            pad_id=base.pad_id,
            say=say,
            bar=bar,
        )
    )
    return folder


def evaluate_run(folder: RunFolder) -> None:
    """Measure a run under its ablation modes; modes that are measured already are kept.

    Raises:
        MachineError: the run has no finished checkpoint.
    """
    config = load_config(folder.config)
    checkpoint = _finished_checkpoint(folder, config)
    rows, origin = _earlier(folder, config, checkpoint)
    measured = {row.mode for row in rows if row.metric == "behavior_rate"}
    missing = [mode for mode in _modes(config) if mode.name not in measured]
    if not missing:
        return
    say(f"{folder.name}: measuring {', '.join(mode.name for mode in missing)}")
    prepared = prepare(config)
    if not prepared.normal:
        raise DataError(
            f"run {folder.name}: no held-out example is without the behaviour, so there is nothing "
            "to prompt with. Give some in data.eval_path, or raise data.eval_fraction."
        )
    base, model = _restore(config, checkpoint)
    _same_ground(folder, _ground(prepared, base))
    of = {"run": folder.name, "step": checkpoint.step, "seed": config.seed}
    prompts = _prompts(prepared, config)
    completions = complete(base, model, prompts, missing, config)
    new = behavior_rows(completions, prompts, prepared.behavior, **of)
    losses: list[dict[str, Any]] = []
    for dataset, examples in (("normal", prepared.normal), ("behavior", prepared.behaving)):
        if examples:
            kept = examples[: config.evaluate.held_out]
            held_out, notes = tokenized(kept, None, base, config.data.max_length)
            for note in notes:
                say(f"{folder.name}, held-out {dataset} texts: {note}")
            found = held_out_losses(
                model,
                held_out,
                missing,
                pad_id=base.pad_id,
                rows_per_batch=config.evaluate.batch_rows,
            )
            new += loss_rows(found, dataset, **of)
            losses += loss_lines(found, dataset, [row.id for row in held_out])
    if not measured:
        new += geometry_rows(model, **of)
    samples = sample_lines(completions, prompts, prepared.behavior)
    for path, lines in ((folder.samples, samples), (folder.losses, losses)):
        write_lines(path, [row for row in read_lines(path) if row["mode"] in measured] + lines)
    # The rows come last: they say that samples and losses are complete.
    settings = config.evaluate.model_dump(mode="json", exclude=_NOT_MEASURING)
    write_results(folder.results, rows + new, origin or {**provenance(), "evaluate": settings})


# Settings of `evaluate` on which no measured number depends but for rounding.
_NOT_MEASURING = {"modes", "batch_rows"}


def complete(
    base: Base,
    model: PeftModel,
    prompts: Sequence[Prompt],
    modes: Sequence[AblationMode],
    config: RunConfig,
) -> dict[str, list[Completion]]:
    """Completions of prompts under modes, drawn as the config's `evaluate` section says."""
    settings = config.evaluate
    return generate_modes(
        model,
        base.tokenizer,
        prompts,
        modes,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        rows_per_batch=settings.batch_rows,
    )


def evaluate_runs(folders: Sequence[RunFolder], out: Path) -> None:
    """Measure every run, compare them, draw the figure and print the verdicts."""
    for folder in folders:
        evaluate_run(folder)
    report(folders, out)


def report(folders: Sequence[RunFolder], out: Path) -> None:
    """Compare measured runs: `eval_multi_results.json`, `eval_multi_plot.png`, verdicts in text.

    Args:
        folders: runs that are measured.
        out: folder of the two files.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two of the runs have the same name ({', '.join(names)}), so that one would hide the "
            "other. Compare runs of different names."
        )
    measured = {folder.name: read_results(folder.results) for folder in folders}
    configs = {f.name: load_config(f.config).model_dump(mode="json") for f in folders}
    runs = collect_runs(
        # The folder's name counts: a run that was moved keeps its results.
        [replace(row, run=name) for name, (rows, _) in measured.items() for row in rows],
        {name: redacted_tree(config) for name, config in configs.items()},
        provenance={name: origin for name, (_, origin) in measured.items()},
        samples={f.name: list(read_lines(f.samples)) for f in folders},
        losses={f.name: list(read_lines(f.losses)) for f in folders},
    )
    verdicts = judge(runs)
    write_json(out / "eval_multi_results.json", eval_multi(runs, verdicts))
    eval_multi_plot(out / "eval_multi_plot.png", runs)
    print(render(runs, verdicts))
    say(f"written: {out / 'eval_multi_results.json'}, {out / 'eval_multi_plot.png'}")


def sample_run(
    folder: RunFolder, *, modes: Sequence[str] | None, prompts: Sequence[str] | None, count: int
) -> None:
    """Print completions of the same prompts, with the same noise, under several modes.

    Args:
        folder: the run.
        modes: mode names; None for those of its config.
        prompts: texts to complete; None for the run's own held-out prompts.
        count: how many of those.
    """
    config = load_config(folder.config)
    checkpoint = _finished_checkpoint(folder, config)
    chosen = (
        [AblationMode.parse(mode, tuple(config.adapters)) for mode in modes]
        if modes
        else _modes(config)
    )
    chosen = list({mode.name: mode for mode in chosen}.values())
    if prompts:
        asked = [Prompt(id=text, text=text) for text in prompts]
    else:
        asked = _prompts(prepare(config), config)[:count]
    completions = complete(*_restore(config, checkpoint), asked, chosen, config)
    width = max(len(mode.name) for mode in chosen)
    for at, prompt in enumerate(asked):
        print(f"\n{printable(prompt.text)!s} …")
        for mode in chosen:
            text = printable(completions[mode.name][at].text.strip())
            print(f"  {mode.name:<{width}}  {text}")


def attach(model: PreTrainedModel, config: RunConfig) -> PeftModel:
    """The base with the adapters of a config, at their initial weights."""
    return attach_adapters(
        model,
        config.adapters,
        targets=config.targets,
        layers=config.layers,
        seed=config.seed,
    )


def printable(text: str) -> str:
    """Text of a model or a file, safe for a terminal: control characters shown, not obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _modes(config: RunConfig) -> list[AblationMode]:
    adapters = tuple(config.adapters)
    if config.evaluate.modes is None:
        return list(standard_modes(adapters))
    return [AblationMode.parse(mode, adapters) for mode in config.evaluate.modes]


def _prompts(prepared: Prepared, config: RunConfig) -> list[Prompt]:
    settings = config.evaluate
    texts = prefixes(prepared, settings.prompts, settings.prefix_words)
    return [Prompt(id=f"prefix-{i}", text=text) for i, text in enumerate(texts)]


def _restore(config: RunConfig, checkpoint: Checkpoint) -> tuple[Base, PeftModel]:
    base = load_base(config.model)
    model = attach(base.model, config)
    load_adapters(checkpoint, model)
    return base, model.eval()


def _finished(folder: RunFolder, config: RunConfig, if_exists: str) -> bool:
    """Whether the run is done; clears or checks a folder that is there as `if_exists` says."""
    if not folder.config.is_file():
        return False
    if if_exists == "fail":
        raise ConfigError(f"run folder {folder.path} is there already, and --if-exists is fail.")
    checkpoint = latest_checkpoint(folder.checkpoints)
    if if_exists == "new" or checkpoint is None:
        return False
    differences = config_differences(load_config(folder.config), config)
    trained = [difference for difference in differences if not difference.startswith("evaluate.")]
    if trained:
        raise ConfigError(
            f"run folder {folder.path} belongs to another config: {'; '.join(trained)}. Choose "
            "another run_name or --runs folder, or --if-exists new to move the old run aside."
        )
    if checkpoint.step >= config.train.max_steps:
        write_text(folder.config, dump_config(config))  # what is evaluated may have changed
        say(f"{config.run_name}: finished, {checkpoint.step} steps; nothing to train.")
        return True
    return False


def _move_aside(folder: RunFolder) -> None:
    if not folder.path.exists():
        return
    number = 1
    while (aside := folder.path.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    try:
        folder.path.rename(aside)
    except OSError as error:
        raise MachineError(f"cannot move {folder.path} to {aside}: {error.strerror}.") from error
    say(f"{folder.name}: the run that was there is now {aside}.")


def _ground(prepared: Prepared, base: Base) -> dict[str, str]:
    """What a run stands on besides its config."""
    return {"data": prepared.identity, "base": base.identity}


def _same_ground(folder: RunFolder, facts: dict[str, str]) -> None:
    """Refuse to go on with a run whose data or base model has changed since it began."""
    if not (folder.manifest.is_file() and latest_checkpoint(folder.checkpoints)):
        return
    before = read_json(folder.manifest)
    changed = [f"{k}: {before.get(k)} -> {v}" for k, v in facts.items() if before.get(k) != v]
    if changed:
        raise ConfigError(
            f"run folder {folder.path} was begun on something else: {'; '.join(changed)}. Put it "
            "back, or start anew with --if-exists new."
        )


def _finished_checkpoint(folder: RunFolder, config: RunConfig) -> Checkpoint:
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None or checkpoint.step < config.train.max_steps:
        done = 0 if checkpoint is None else checkpoint.step
        raise MachineError(
            f"run {folder.name} has {done} of {config.train.max_steps} steps in a checkpoint. "
            "Finish it with the same `gradroute train` command first."
        )
    return checkpoint


def _earlier(
    folder: RunFolder, config: RunConfig, checkpoint: Checkpoint
) -> tuple[list[Result], dict[str, Any] | None]:
    """The rows measured before on this checkpoint in the same way, and where they came from."""
    if not folder.results.is_file():
        return [], None
    rows, origin = read_results(folder.results)
    settings = config.evaluate.model_dump(mode="json", exclude=_NOT_MEASURING)
    if origin.get("evaluate") != settings or any(row.step != checkpoint.step for row in rows):
        return [], None
    return rows, origin
