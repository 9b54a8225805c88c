"""`find` and `refine`."""

import argparse
import sys
from typing import TYPE_CHECKING

from gradroute.cli.arguments import add_verb, libraries, positive, rate, run_folders

if TYPE_CHECKING:
    from gradroute.cli.arguments import Verbs


def add(verbs: "Verbs") -> None:
    """Add the verbs that find what the labels missed."""
    find = add_verb(
        verbs,
        "find",
        "find the unlabeled examples that `bad` explains, with a bound on false ones",
        _find,
        [
            "gradroute find 0.1_0.5",
            "gradroute find 0.1_0.5 --by words --fdr 0.1",
            "gradroute find 0.1_0.5 new_rows.jsonl",
        ],
        runs=1,
    )
    find.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="rows in the form of the run's data.path; they are scored in place of the run's own",
    )
    find.add_argument(
        "--by",
        choices=("adapter", "words", "hidden", "head"),
        default="adapter",
        help="what scores rows: the adapter (default), or a classifier trained on the labels: of "
        "words, of the base's hidden states, or the base itself, fine-tuned with a head",
    )
    _takes_fdr(find)
    _takes_behavior(find)
    refine = add_verb(
        verbs,
        "refine",
        "train again with what was found as labels, until nothing new is found",
        _refine,
        ["gradroute refine 0.1_0.5", "gradroute refine 0.1_0.5 --rounds 3 --finish routed"],
        runs=1,
    )
    refine.add_argument("--rounds", type=positive, default=3, help="routed runs at most (3)")
    refine.add_argument(
        "--finish",
        choices=("plain", "routed"),
        default="plain",
        help="what is trained last: one adapter without the rows found (default), or the last "
        "routed run",
    )
    refine.add_argument(
        "--classifier",
        choices=("words", "hidden", "head", "none"),
        default="words",
        help="what is asked beside the adapter in the first round; its likely rows count where it "
        "sees bad rows at all (words)",
    )
    _takes_behavior(refine)


def _takes_behavior(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--behavior", metavar="LABEL", help="with several behaviors, which")


def _takes_fdr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fdr", type=rate, default=0.05, help="share of false rows among the found (0.05)"
    )


def _find(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.probes.finder import find_rows
    from gradroute.probes.found_files import found_place
    from gradroute.report.render.probe_text import found_text

    summary = find_rows(
        folder, by=options.by, fdr=options.fdr, label=options.behavior, file=options.file
    )
    print(found_text(str(found_place(folder, summary)), summary))


def _refine(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.experiments.refine import refine_run

    shipped = refine_run(
        folder,
        rounds=options.rounds,
        finish=options.finish,
        label=options.behavior,
        classifier=options.classifier,
        bar=sys.stderr.isatty(),
    )
    print(f"refined: {shipped.path}")
