"""`eval` and `sample`."""

import argparse
from dataclasses import replace
from pathlib import Path

from gradroute.cli.arguments import (
    Verbs,
    add_verb,
    evaluation_request,
    libraries,
    positive,
    run_folders,
    takes_modes,
    takes_prompts,
    whole,
)
from gradroute.errors import ConfigError


def add(verbs: Verbs) -> None:
    """Add the verbs that measure a run."""
    _add_eval(verbs)
    _add_sample(verbs)


def _add_eval(verbs: Verbs) -> None:
    evaluate = add_verb(
        verbs,
        "eval",
        "measure runs under their ablation modes, compare them, draw the figure",
        _eval,
        [
            "gradroute eval baseline 0.1_0.0 0.1_0.5 --out comparison",
            "gradroute eval 0.1_0.5 --prompts plain --prompts bos",
            "gradroute eval 0.1_0.5 --prompts mine.txt --mode full --mode bad_ablated",
            "gradroute eval 0.1_0.5 --scale bad=0,0.1,...,1",
            "gradroute eval 0.1_0.5 0.1_0.5-filter --elicitation",
            "gradroute eval 0.1_0.5 --log inspect",
            "gradroute eval 0.1_0.5 --tasks lambada_openai,arc_easy --limit 200",
        ],
        runs="+",
        out=True,
    )
    takes_prompts(evaluate, "the prompts of the behavior")
    takes_modes(evaluate, "measured in addition to the modes")
    evaluate.add_argument(
        "--elicitation",
        action="store_true",
        help="also ask with further kinds of prompts: training-like, negated, in JSON, the cue "
        "alone, behind an unrelated instruction",
    )
    evaluate.add_argument(
        "--log",
        choices=("inspect",),
        help="also write all stored completions and scores as logs for `inspect view`, into the "
        "run's folder logs/ (the extra inspect)",
    )
    _add_tasks(evaluate)


def _add_tasks(evaluate: argparse.ArgumentParser) -> None:
    of = evaluate.add_argument_group("standard tasks, instead of the behavior and losses")
    of.add_argument("--tasks", metavar="A,B", help="tasks or groups of lm-eval (the extra eval)")
    of.add_argument(
        "--include-path",
        type=Path,
        metavar="FOLDER",
        help="a folder with tasks of your own; it is trusted, for tasks may run code",
    )
    of.add_argument("--limit", type=positive, help="maximum number of documents of each task (all)")
    of.add_argument(
        "--num-fewshot",
        type=whole,
        metavar="N",
        help="worked examples before each document (default of the task)",
    )


def _add_sample(verbs: Verbs) -> None:
    sample = add_verb(
        verbs,
        "sample",
        "print completions of the same prompts, with the same noise, under several modes",
        _sample,
        [
            "gradroute sample 0.1_0.5",
            "gradroute sample 0.1_0.5 --mode bad_ablated --prompt 'THE LITTLE FOX'",
            "gradroute sample 0.1_0.5 --prompts plain --scale bad=0,0.5,1",
        ],
        runs=1,
    )
    takes_prompts(sample, "the prompts of the behavior, unless --prompt is given")
    sample.add_argument(
        "--prompt", action="append", default=[], help="a prompt, used verbatim; repeatable"
    )
    takes_modes(sample, "without --mode, only its points")
    sample.add_argument(
        "--count", type=positive, default=4, help="maximum number of prompts of each kind (4)"
    )


def _eval(options: argparse.Namespace) -> None:
    _check_tasks(options)
    folders = run_folders(options)
    if options.tasks is not None:
        with libraries(folders):
            from gradroute.harness.evaluator import measure_tasks
            from gradroute.harness.tasks import TaskRequest

        names = tuple(name.strip() for name in options.tasks.split(","))
        asked_tasks = TaskRequest(names, options.include_path, options.limit, options.num_fewshot)
        measure_tasks(folders, asked_tasks, modes=options.mode, scales=options.scale)
        return
    with libraries(folders):
        from gradroute.harness.inspect_log import check_loggable, write_logs
        from gradroute.run import evaluate_runs

    request = replace(evaluation_request(options), elicitation=options.elicitation)
    if options.log:
        check_loggable(folders)
    evaluate_runs(folders, request, options.out or options.runs)
    if options.log:
        write_logs(folders)


def _check_tasks(options: argparse.Namespace) -> None:
    """Refuse options that say nothing beside, or without, `--tasks`."""
    if options.tasks is None:
        for name in ("include_path", "limit", "num_fewshot"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} needs --tasks A,B.")
    elif not all(name.strip() for name in options.tasks.split(",")):
        raise ConfigError(f"--tasks {options.tasks!r} needs names with commas between them.")
    elif given := [n for n in ("prompts", "log", "elicitation", "out") if getattr(options, n)]:
        raise ConfigError(
            f"--{given[0]} is not used with --tasks: evaluate prompts in a separate command."
        )


def _sample(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.evaluate.side_by_side import sample_run

    sample_run(folder, evaluation_request(options), texts=options.prompt, count=options.count)
