"""`demo` and `train`."""

import argparse
import sys

from gradroute.cli.arguments import Verbs, add_verb, positive


def add(verbs: Verbs) -> None:
    """Add the verbs that train."""
    _add_demo(verbs)
    _add_train(verbs)


def _add_demo(verbs: Verbs) -> None:
    demo = add_verb(
        verbs,
        "demo",
        "the reference experiment from stories to verdicts, on the shipped model",
        _demo,
        ["gradroute demo", "gradroute demo --quick --seed 7"],
    )
    demo.add_argument("--quick", action="store_true", help="one short routed run, no controls")
    demo.add_argument("--seed", type=int, default=0, help="another seed, in runs/seed-N (0)")
    demo.add_argument("--jobs", type=positive, help="runs at the same time (the number of cores)")


def _add_train(verbs: Verbs) -> None:
    train = add_verb(
        verbs,
        "train",
        "train a run and its controls, from a config file or a shipped recipe",
        _train,
        [
            "gradroute train caps run_name=0.1_1.0 data.labeled_fraction=1.0",
            "gradroute train caps 'controls=[none, filter, oracle]' --jobs 2",
            "gradroute train my.yaml",
        ],
    )
    train.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="last wins")
    train.add_argument(
        "--if-exists",
        choices=("fail", "resume", "new"),
        default="resume",
        help="if the run folder exists: stop, continue (default), or move it aside and start anew",
    )
    train.add_argument(
        "--override",
        dest="may_differ",
        action="append",
        default=[],
        metavar="KEY",
        help="continue although this key or section (train.max_steps, data, identity.data) "
        "has changed since the run was started; it is recorded; repeatable",
    )
    train.add_argument(
        "--audit",
        action="store_true",
        help="check the routes of every example, and write them to audit.jsonl",
    )
    train.add_argument(
        "--jobs", type=positive, default=1, help="runs at the same time, with controls (1)"
    )


def _demo(options: argparse.Namespace) -> None:
    from gradroute.config.libraries import Libraries
    from gradroute.config.run_config import RunConfig

    with Libraries.of(RunConfig()):
        from gradroute.experiments.demo import demo

    demo(options.runs, seed=options.seed, quick=options.quick, jobs=options.jobs)


def _train(options: argparse.Namespace) -> None:
    from gradroute.config.libraries import Libraries
    from gradroute.config.run_config import find_config, load_config

    config = load_config(find_config(options.config), options.overrides)
    with Libraries.of(config):
        from gradroute.experiments.controls import train_with_controls
    from gradroute.runs.former_names import current_overrides
    from gradroute.system.terminal import say

    if current_overrides(options.may_differ) != options.may_differ:
        say("--override: `ground` is now called `identity`.")

    train_with_controls(
        config,
        options.runs,
        if_exists=options.if_exists,
        bar=sys.stderr.isatty(),
        jobs=options.jobs,
        overrides=options.may_differ,
        audit=options.audit,
    )
