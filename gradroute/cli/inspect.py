"""`data inspect`."""

import argparse
import sys

from gradroute.cli.arguments import Verbs, add_verb, positive


def add(verbs: Verbs) -> None:
    """Add the verb that shows rows as training sees them."""
    parser = add_verb(
        verbs,
        "inspect",
        "show rows as training sees them: tokens, targets, labels and routes",
        _inspect,
        [
            "gradroute data inspect caps",
            "gradroute data inspect my.yaml data.max_length=512 --label bad --rows 2",
            "gradroute data inspect my.yaml --ids row-17,row-20",
        ],
        runs_folder=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="last wins")
    parser.add_argument(
        "--rows", type=positive, default=3, metavar="N", help="rows of each label (3)"
    )
    parser.add_argument("--ids", default="", metavar="a,b", help="only these rows, any number")
    parser.add_argument("--label", help="only rows with this label, or with tokens that have it")


def _inspect(options: argparse.Namespace) -> None:
    from gradroute.config.libraries import Libraries
    from gradroute.config.run_config import find_config, load_config

    config = load_config(find_config(options.config), options.overrides)
    with Libraries.of(config):
        from gradroute.preflight.inspection import inspect_rows, wants_color

    lines = inspect_rows(
        config,
        count=options.rows,
        ids=[name for name in options.ids.split(",") if name],
        label=options.label,
        color=wants_color(sys.stdout.isatty()),
    )
    for line in lines:
        print(line)
