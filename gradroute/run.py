"""The whole flow in data order: prepare, train, measure, compare. Read this first.

prepare (prepare.py)       config -> labelled examples, held-out examples, routing table
train_run                  examples -> runs/<name>/checkpoints
evaluate_run (measure.py)  checkpoint -> runs/<name>/eval
evaluate_runs              several runs' results -> comparison, figure, verdicts (report/)
sample_run                 checkpoint -> completions side by side, on the terminal
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gradroute.checkpoint import latest_checkpoint
from gradroute.config import RunConfig, config_differences, dump_config, load_config
from gradroute.data.examples import label_counts
from gradroute.environment import provenance
from gradroute.errors import ConfigError, MachineError
from gradroute.evaluate.generation import Prompt
from gradroute.files import write_json, write_text
from gradroute.folders import RunFolder
from gradroute.measure import (
    Asked,
    asked_modes,
    asked_prompts,
    attach,
    check_asked,
    complete,
    during_training,
    evaluate_run,
    finished_checkpoint,
    ground,
    prompts_of,
    restore,
    same_ground,
    say,
)
from gradroute.model import load_base
from gradroute.prepare import Prepared, data_order, prepare, tokenized
from gradroute.train.trainer import Training, train


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
    facts = ground(prepared, base)
    if if_exists == "new":
        _move_aside(folder)
    same_ground(folder, facts)
    rows, notes = tokenized(prepared.train, prepared.policy, base, config.data.max_length)
    watch = None
    if config.train.measure_every:
        watch = during_training(folder, config, prepared, base, model)
    _begin(folder, config, prepared, facts, notes)
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
            measure=watch,
        )
    )
    return folder


def evaluate_runs(folders: Sequence[RunFolder], asked: Asked, out: Path) -> None:
    """Measure every run, compare them, draw the figure and print the verdicts.

    What cannot be measured is said before anything is; what is measured stays.

    Args:
        folders: finished runs.
        asked: prompts, modes and scale curves.
        out: folder of the comparison.
    """
    for folder in folders:
        check_asked(folder, asked)
    for folder in folders:
        evaluate_run(folder, asked)
    # Drawing is heavy to import, and training does without.
    from gradroute.report.publish import publish

    publish(folders, out, page=False)


def sample_run(folder: RunFolder, asked: Asked, *, texts: Sequence[str], count: int) -> None:
    """Print completions of the same prompts, with the same noise, under several modes.

    Prompts of a kind have the noise that they have in the evaluation, so that these are the
    completions that its rates count.

    Args:
        folder: the run.
        asked: kinds and files of prompts; modes and scale curves, where there are none of either
            the modes of the run's config.
        texts: prompts, taken as they are; with these and no kind, only these are completed.
        count: how many prompts of each kind, at most.
    """
    config = load_config(folder.config)
    checkpoint = finished_checkpoint(folder, config)
    curves_alone = asked.scales and not asked.modes
    modes = asked_modes(config, () if curves_alone else asked.modes or None, asked.scales)
    prompts = [Prompt(id=text, text=text) for text in texts]
    if asked.prompts or not texts:
        prompts += _asked_prompts(folder, config, asked, count)
    completions = complete(*restore(config, checkpoint), prompts, modes, config)
    width = max(len(mode.name) for mode in modes)
    for at, prompt in enumerate(prompts):
        print(f"\n{printable(prompt.text)} …" if prompt.text else "\n(from nothing) …")
        for mode in modes:
            text = printable(completions[mode.name][at].text.strip())
            print(f"  {mode.name:<{width}}  {text}")


def printable(text: str) -> str:
    """Text of a model or a file, safe for a terminal: control characters shown, not obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _asked_prompts(folder: RunFolder, config: RunConfig, asked: Asked, count: int) -> list[Prompt]:
    prompts: list[Prompt] = []
    prepared = None
    for kind, file in asked_prompts(config, asked.prompts).items():
        if file:
            own = file.prompts
        else:
            prepared = prepared or prepare(config)
            own = prompts_of(prepared, config, kind)
        if file and len(own) > count:
            say(f"{folder.name}: {kind}: the first {count} of {len(own)} prompts; see --count.")
        prompts += own[:count]
    return prompts


def _begin(
    folder: RunFolder,
    config: RunConfig,
    prepared: Prepared,
    facts: dict[str, str],
    notes: tuple[str, ...],
) -> None:
    """Write what a run is before its first step, and say what was passed over."""
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
    # What is evaluated, and what is trained beside it, may change.
    trained = [line for line in differences if not line.startswith(("evaluate.", "controls:"))]
    if trained:
        raise ConfigError(
            f"run folder {folder.path} belongs to another config: {'; '.join(trained)}. Choose "
            "another run_name or --runs folder, or --if-exists new to move the old run aside."
        )
    if checkpoint.step >= config.train.max_steps:
        write_text(folder.config, dump_config(config))
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
