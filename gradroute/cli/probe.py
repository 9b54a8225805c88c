"""`recover` and `relearn`."""

import argparse

from gradroute.cli.arguments import Verbs, add_verb, libraries, positive, rate, run_folders


def add(verbs: Verbs) -> None:
    """Add the verbs that tune a finished run."""
    recover = add_verb(
        verbs,
        "recover",
        "tune the adapters kept after ablation on known-good examples; report the cost and any "
        "revived behavior",
        _recover,
        ["gradroute recover 0.1_0.5", "gradroute recover 0.1_0.5 --steps 100"],
        runs=1,
    )
    recover.add_argument("--steps", type=positive, default=150, help="optimizer steps (150)")
    recover.add_argument(
        "--learning-rate", type=rate, help="learning rate (a tenth of the run's own)"
    )
    recover.add_argument(
        "--examples",
        type=positive,
        default=1024,
        help="maximum number of known-good examples (1024)",
    )
    relearn = add_verb(
        verbs,
        "relearn",
        "count the steps of plain fine-tuning that bring the behavior back",
        _relearn,
        [
            "gradroute relearn baseline filter_0.5 0.1_0.5",
            "gradroute relearn baseline filter_0.5 0.1_0.5 --attacker both",
        ],
        runs="+",
    )
    relearn.add_argument(
        "--examples", type=positive, default=64, help="examples of the behavior (64)"
    )
    relearn.add_argument("--max-steps", type=positive, default=100, help="steps at most (100)")
    relearn.add_argument("--every", type=positive, default=1, help="steps between rates (1)")
    relearn.add_argument("--prompts", type=positive, default=64, help="prompts of a rate (64)")
    relearn.add_argument(
        "--attacker",
        choices=("lora", "full", "both"),
        default="lora",
        help="train a fresh LoRA adapter, every weight, or one after the other (lora)",
    )
    relearn.add_argument(
        "--behavior", metavar="LABEL", help="with several behaviors, only this one (each in turn)"
    )


def _recover(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.probes.recovery import recover_run

    recover_run(
        folder,
        steps=options.steps,
        learning_rate=options.learning_rate,
        examples=options.examples,
    )


def _relearn(options: argparse.Namespace) -> None:
    folders = run_folders(options)
    with libraries(folders):
        from gradroute.probes.relearning import relearn_runs

    relearn_runs(
        folders,
        examples=options.examples,
        max_steps=options.max_steps,
        every=options.every,
        prompts=options.prompts,
        behavior=options.behavior,
        attacker=options.attacker,
    )
