"""`eval` and `sample`."""

import argparse
from typing import TYPE_CHECKING

from gradroute.verbs.arguments import (
    add_verb,
    asked,
    positive,
    run_folders,
    takes_modes,
    takes_prompts,
)

if TYPE_CHECKING:
    from gradroute.verbs.arguments import Verbs


def add(verbs: "Verbs") -> None:
    """Add the verbs that measure a run."""
    _add_eval(verbs)
    _add_sample(verbs)


def _add_eval(verbs: "Verbs") -> None:
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
        ],
        runs="+",
        out=True,
    )
    takes_prompts(evaluate, "those of the behaviour")
    takes_modes(evaluate, "measured beside the modes")


def _add_sample(verbs: "Verbs") -> None:
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
    takes_prompts(sample, "those of the behaviour, unless there is a --prompt")
    sample.add_argument(
        "--prompt", action="append", default=[], help="a prompt, taken as it is; repeatable"
    )
    takes_modes(sample, "without --mode, its points alone")
    sample.add_argument(
        "--count", type=positive, default=4, help="prompts of each kind, at most (4)"
    )


def _eval(options: argparse.Namespace) -> None:
    folders = run_folders(options)
    from gradroute.run import evaluate_runs

    evaluate_runs(folders, asked(options), options.out or options.runs)


def _sample(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    from gradroute.run import sample_run

    sample_run(folder, asked(options), texts=options.prompt, count=options.count)
