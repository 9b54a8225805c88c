"""Shared parts of the verbs: adding one, arguments that several take, and their checks."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gradroute.system.terminal import safe_text

if TYPE_CHECKING:
    from gradroute.config.libraries import Libraries
    from gradroute.evaluate.request import EvaluationRequest
    from gradroute.runs.folder import RunFolder

    Verbs = argparse._SubParsersAction["Parser"]
else:  # generic for type checkers only
    Verbs = argparse._SubParsersAction

Action = Callable[[argparse.Namespace], None]


def add_verb(
    verbs: Verbs,
    name: str,
    purpose: str,
    action: Action,
    examples: Sequence[str],
    *,
    runs: int | str | None = None,
    out: bool = False,
    runs_folder: bool = True,
) -> argparse.ArgumentParser:
    """Add a verb.

    Args:
        verbs: Where to.
        name: Its word.
        purpose: What it does, for the help.
        action: Is called with what was given.
        examples: Commands that it understands.
        runs: How many runs it takes (1, "+"); None for none.
        out: Whether it takes `--out`.
        runs_folder: Whether it takes `--runs`.
    """
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=parser.prog.partition(" ")[2], action=action, verb_parser=parser)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    if runs_folder:
        parser.add_argument(
            "--runs", type=Path, default=Path("runs"), help="folder of the runs (runs)"
        )
    if runs is not None:
        parser.add_argument("run", nargs=runs, metavar="RUN", help="a run's folder or name")
    if out:
        parser.add_argument("--out", type=Path, help="folder of the comparison (the runs folder)")
    return parser


def takes_prompts(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--prompts`; `default` says what is taken without it."""
    parser.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="KIND|FILE",
        help="prefix (openings that invite the behavior), plain (as they are), "
        "held_out_bad (of held-out rows that show it), bos (from "
        f"nothing), or a text file with a prompt on each line; repeatable ({default})",
    )


def takes_modes(parser: argparse.ArgumentParser, curve: str) -> None:
    """Add `--mode` and `--scale`; `curve` says what the latter does."""
    parser.add_argument(
        "--mode",
        action="append",
        default=[],
        help="full, bad_ablated, good_ablated, good_alone, good_x2, base or e.g. good=1,bad=0.5; "
        "repeatable (those of the run's config)",
    )
    parser.add_argument(
        "--scale",
        action="append",
        default=[],
        metavar="CURVE",
        help="scales of one adapter, the others at 1, or of all together, as in bad=0,0.1,...,1 or "
        f"all=0.2,0.4,...,1; {curve}; repeatable",
    )


def run_folders(options: argparse.Namespace) -> "list[RunFolder]":
    """The folders of the runs that were named."""
    from gradroute.runs.folder import find_run

    return [find_run(name, options.runs) for name in options.run]


def libraries(folders: "Sequence[RunFolder]") -> "Libraries":
    """Around the imports of what runs the models of these runs."""
    from gradroute.config.libraries import Libraries

    return Libraries.of_runs(folders)


def evaluation_request(options: argparse.Namespace) -> "EvaluationRequest":
    """What is asked for with `--prompts`, `--mode` and `--scale`."""
    from gradroute.evaluate.request import EvaluationRequest

    return EvaluationRequest(tuple(options.prompts), tuple(options.mode), tuple(options.scale))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """A whole number, 0 too."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number is needed, got {text!r}")
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """Two names with a comma between them."""
    first, _, second = (part.strip() for part in text.partition(","))
    if not first or not second or "," in second:
        raise argparse.ArgumentTypeError(f"two names are needed, as in good,bad, got {text!r}")
    return first, second


def rate(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and below 1 is needed, got {text!r}")
    return number


class Parser(argparse.ArgumentParser):
    """Says what is wrong without the secrets that were pasted into the command line."""

    def error(self, message: str) -> NoReturn:
        """End with the message and how the verb is used."""
        super().error(safe_text(message))
