"""The parser of the command line: the verbs, and options of every one; nothing heavy."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence

from gradroute.cli import (
    cache,
    data,
    evaluate,
    export,
    find,
    playground,
    preflight,
    probe,
    report,
    sweep,
    train,
)
from gradroute.cli.arguments import Parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, with `key=value` also after options; `verb` is the verb's name.

    What is to be done with them is `action`.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["sweep"] and words[1:2] and words[1].endswith((".yaml", ".yml")):
        words.insert(1, "run")  # a file is no verb
    options, rest = parser.parse_known_args(words)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and "overrides" not in options):
        options.verb_parser.error(
            f"unrecognized arguments: {' '.join(rest)}{_meant(options, rest)}"
        )
    if late:
        options.overrides += late
    return options


def _meant(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """The option that was probably meant, as the end of a sentence, or where they are listed."""
    there = re.findall(r"--[a-z-]+", options.verb_parser.format_usage())
    for word in rest:
        close = difflib.get_close_matches(word.partition("=")[0], there, n=1, cutoff=0.75)
        if close:
            return f"; did you mean {close[0]}?"
    return f"; gradroute {options.verb} --help lists what there is."


def build_parser() -> argparse.ArgumentParser:
    """The parser with every verb."""
    parser = Parser(
        prog="gradroute",
        description="Fine-tune a language model so that an unwanted behavior is learned by an "
        "adapter you can throw away.",
        epilog="Exit codes: 2 configuration or usage, 3 data, 4 machine (disk, memory, model), "
        "5 numbers that are not finite, 75 interrupted: the same command goes on.",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    groups = (train, sweep, evaluate, playground, report, find, probe, export, data, preflight)
    for group in (*groups, cache):
        group.add(verbs)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gradroute import __version__

        print(f"gradroute {__version__}")
        parser.exit()
