"""What the command line understands: verbs, their arguments and their help; nothing heavy."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gradroute.terminal import shown

if TYPE_CHECKING:  # generic for type checkers only
    Verbs = argparse._SubParsersAction["_Parser"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, with `key=value` also after options; `verb` is the verb's name."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and options.verb != "train"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.overrides += late
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gradroute",
        description="Fine-tune a language model so that an unwanted behaviour is learned by an "
        "adapter you can throw away.",
        epilog="Exit codes: 2 configuration or usage, 3 data, 4 machine (disk, memory, model), "
        "5 numbers that are not finite, 75 interrupted: the same command goes on.",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (_add_demo, _add_train, _add_eval, _add_sample, _add_reports, _add_afterwards):
        add(verbs)
    _verb(
        verbs,
        "schema",
        "print the JSON schema of the configuration",
        ["gradroute schema", "gradroute schema > gradroute.schema.json"],
    )
    return parser


def _add_demo(verbs: "Verbs") -> None:
    demo = _verb(
        verbs,
        "demo",
        "the reference experiment from stories to verdicts, on the shipped model",
        ["gradroute demo", "gradroute demo --quick --seed 7"],
    )
    demo.add_argument("--quick", action="store_true", help="one short routed run, no controls")
    demo.add_argument("--seed", type=int, default=0, help="another seed, in runs/seed-N (0)")
    demo.add_argument("--jobs", type=_positive, help="runs at the same time (the number of cores)")


def _add_train(verbs: "Verbs") -> None:
    train = _verb(
        verbs,
        "train",
        "train a run, and the controls it names, from a config file or a shipped recipe",
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
        help="when the run folder is there: stop, go on (default), or move it aside and start anew",
    )
    train.add_argument(
        "--override",
        dest="may_differ",
        action="append",
        default=[],
        metavar="KEY",
        help="go on although this key or section (train.max_steps, data, ground.data) is not as "
        "the run was begun; it is recorded; repeatable",
    )
    train.add_argument(
        "--audit",
        action="store_true",
        help="check which routes every example takes, and write them to audit.jsonl",
    )
    train.add_argument(
        "--jobs", type=_positive, default=1, help="runs at the same time, with controls (1)"
    )


def _add_eval(verbs: "Verbs") -> None:
    evaluate = _verb(
        verbs,
        "eval",
        "measure runs under their ablation modes, compare them, draw the figure",
        [
            "gradroute eval baseline 0.1_0.0 0.1_0.5 --out comparison",
            "gradroute eval 0.1_0.5 --prompts plain --prompts bos",
            "gradroute eval 0.1_0.5 --prompts mine.txt --mode full --mode bad_ablated",
            "gradroute eval 0.1_0.5 --scale bad=0,0.1,...,1",
        ],
        runs="+",
        out=True,
    )
    _takes_prompts(evaluate, "those of the behaviour")
    _takes_modes(evaluate, "measured beside the modes")


def _add_sample(verbs: "Verbs") -> None:
    sample = _verb(
        verbs,
        "sample",
        "print completions of the same prompts, with the same noise, under several modes",
        [
            "gradroute sample 0.1_0.5",
            "gradroute sample 0.1_0.5 --mode bad_ablated --prompt 'THE LITTLE FOX'",
            "gradroute sample 0.1_0.5 --prompts plain --scale bad=0,0.5,1",
        ],
        runs=1,
    )
    _takes_prompts(sample, "those of the behaviour, unless there is a --prompt")
    sample.add_argument(
        "--prompt", action="append", default=[], help="a prompt, taken as it is; repeatable"
    )
    _takes_modes(sample, "without --mode, its points alone")
    sample.add_argument(
        "--count", type=_positive, default=4, help="prompts of each kind, at most (4)"
    )


def _add_reports(verbs: "Verbs") -> None:
    _verb(
        verbs,
        "report",
        "write what measured runs show: one page that opens offline, tables, figures",
        ["gradroute report baseline 0.1_0.0 0.1_0.5 --out comparison"],
        runs="+",
        out=True,
    )
    _verb(
        verbs,
        "plot",
        "draw one run's training: loss, gradient shares, learning rate, behaviour over steps",
        ["gradroute plot 0.1_0.5"],
        runs=1,
    )
    _verb(
        verbs,
        "geometry",
        "compare the subspaces and updates of good and bad, module by module",
        ["gradroute geometry 0.1_0.0 0.1_0.5"],
        runs="+",
        out=True,
    )


def _add_afterwards(verbs: "Verbs") -> None:
    recover = _verb(
        verbs,
        "recover",
        "tune what is kept after ablation on known-good examples; see what that costs or revives",
        ["gradroute recover 0.1_0.5", "gradroute recover 0.1_0.5 --steps 100"],
        runs=1,
    )
    recover.add_argument("--steps", type=_positive, default=150, help="optimizer steps (150)")
    recover.add_argument(
        "--learning-rate", type=_rate, help="a tenth of the run's own if not given"
    )
    recover.add_argument(
        "--examples", type=_positive, default=1024, help="known-good examples, at most (1024)"
    )
    relearn = _verb(
        verbs,
        "relearn",
        "see how many steps of plain fine-tuning bring the behaviour back",
        ["gradroute relearn baseline filter_0.5 0.1_0.5"],
        runs="+",
    )
    relearn.add_argument(
        "--examples", type=_positive, default=64, help="examples of the behaviour (64)"
    )
    relearn.add_argument("--max-steps", type=_positive, default=100, help="steps at most (100)")
    relearn.add_argument("--every", type=_positive, default=1, help="steps between rates (1)")
    relearn.add_argument("--prompts", type=_positive, default=64, help="prompts of a rate (64)")


def _takes_prompts(parser: argparse.ArgumentParser, otherwise: str) -> None:
    parser.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="KIND|FILE",
        help="prefix (openings that invite the behaviour), plain (as they are), bos (from "
        f"nothing), or a text file with a prompt on each line; repeatable ({otherwise})",
    )


def _takes_modes(parser: argparse.ArgumentParser, curve: str) -> None:
    parser.add_argument(
        "--mode",
        action="append",
        default=[],
        help="full, bad_ablated, good_ablated, good_x2, base or e.g. good=1,bad=0.5; repeatable "
        "(those of the run's config)",
    )
    parser.add_argument(
        "--scale",
        action="append",
        default=[],
        metavar="CURVE",
        help="scales of one adapter, the others at 1, or of all together, as in bad=0,0.1,...,1 or "
        f"all=0.2,0.4,...,1; {curve}; repeatable",
    )


def _verb(
    verbs: "Verbs",
    name: str,
    purpose: str,
    examples: Sequence[str],
    *,
    runs: int | str | None = None,
    out: bool = False,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=name)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    if name != "schema":
        parser.add_argument(
            "--runs", type=Path, default=Path("runs"), help="folder of the runs (runs)"
        )
    if runs is not None:
        parser.add_argument("run", nargs=runs, metavar="RUN", help="a run's folder or name")
    if out:
        parser.add_argument("--out", type=Path, help="folder of the comparison (the runs folder)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and below 1 is needed, got {text!r}")
    return number


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without the secrets that were pasted into the command line."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gradroute import __version__

        print(f"gradroute {__version__}")
        parser.exit()
