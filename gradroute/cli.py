"""The command line: verbs, nothing else. Each verb is one call into `gradroute.run`.

Heavy imports live inside the verbs, so that `--help` and `schema` answer at once.
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.errors import GradrouteError, Interrupted, MachineError

Verb = Callable[[argparse.Namespace], None]
if TYPE_CHECKING:  # generic for type checkers only
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code (see `gradroute.errors`).

    A known error is one line on standard error without a traceback; `--debug` shows it.
    """
    options = _parse(arguments)
    warnings.showwarning = _show_warning
    try:
        options.verb(options)
        sys.stdout.flush()
    except GradrouteError as error:
        return _explain(error, options.debug)
    except KeyboardInterrupt:
        stopped = Interrupted("interrupted. What was finished is kept; the same command goes on.")
        return _explain(stopped, options.debug)
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":
            raise  # a fault of the program: the traceback is what helps
        told = str(error).split("\n")[0] or "out of memory"
        return _explain(MachineError(f"the machine refuses: {told}."), options.debug)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, got {number}")
    return number


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, with `key=value` also after options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and options.verb is not _train):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.overrides += late
    return options


def _explain(error: GradrouteError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
) -> None:
    if issubclass(category, UserWarning):
        print(f"note: {message}", file=sys.stderr)


def _demo(options: argparse.Namespace) -> None:
    from gradroute.demo import demo

    demo(options.runs, seed=options.seed, quick=options.quick, jobs=options.jobs)


def _train(options: argparse.Namespace) -> None:
    from gradroute.config import find_config, load_config

    config = load_config(find_config(options.config), options.overrides)
    from gradroute.run import train_run

    train_run(config, options.runs, if_exists=options.if_exists, bar=sys.stderr.isatty())


def _eval(options: argparse.Namespace) -> None:
    from gradroute.folders import find_run

    folders = [find_run(name, options.runs) for name in options.run]
    from gradroute.run import evaluate_runs

    evaluate_runs(folders, options.out or options.runs)


def _sample(options: argparse.Namespace) -> None:
    from gradroute.folders import find_run

    folder = find_run(options.run, options.runs)
    from gradroute.run import sample_run

    sample_run(folder, modes=options.mode, prompts=options.prompt, count=options.count)


def _schema(options: argparse.Namespace) -> None:
    import json

    from gradroute.config import schema

    print(json.dumps(schema(), indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradroute",
        description="Fine-tune a language model so that an unwanted behaviour is learned by an "
        "adapter you can throw away.",
        epilog="Exit codes: 2 configuration or usage, 3 data, 4 machine (disk, memory, model), "
        "5 numbers that are not finite, 75 interrupted: the same command goes on.",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    _add_demo(verbs)
    _add_train(verbs)
    _add_eval(verbs)
    _add_sample(verbs)
    _add_schema(verbs)
    return parser


def _add_demo(verbs: "Verbs") -> None:
    demo = _verb(
        verbs,
        "demo",
        _demo,
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
        _train,
        "train one run from a config file or a shipped recipe",
        [
            "gradroute train caps run_name=0.1_1.0 data.labeled_fraction=1.0",
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


def _add_eval(verbs: "Verbs") -> None:
    evaluate = _verb(
        verbs,
        "eval",
        _eval,
        "measure runs under their ablation modes, compare them, draw the figure",
        ["gradroute eval 0.1_0.5", "gradroute eval baseline 0.1_0.0 0.1_0.5 --out comparison"],
    )
    evaluate.add_argument("run", nargs="+", metavar="RUN", help="a run's folder or name")
    evaluate.add_argument("--out", type=Path, help="folder of the comparison (the runs folder)")


def _add_sample(verbs: "Verbs") -> None:
    sample = _verb(
        verbs,
        "sample",
        _sample,
        "print completions of the same prompts, with the same noise, under several modes",
        [
            "gradroute sample 0.1_0.5",
            "gradroute sample 0.1_0.5 --mode bad_ablated --prompt 'THE LITTLE FOX'",
        ],
    )
    sample.add_argument("run", metavar="RUN", help="a run's folder or name")
    sample.add_argument(
        "--mode",
        action="append",
        help="full, bad_ablated, good_ablated, good_x2, base or e.g. good=1,bad=0.5; repeatable",
    )
    sample.add_argument("--prompt", action="append", help="a prompt, taken as it is; repeatable")
    sample.add_argument(
        "--count", type=_positive, default=4, help="held-out prompts if none given (4)"
    )


def _add_schema(verbs: "Verbs") -> None:
    _verb(
        verbs,
        "schema",
        _schema,
        "print the JSON schema of the configuration",
        ["gradroute schema", "gradroute schema > gradroute.schema.json"],
    )


def _verb(
    verbs: "Verbs",
    name: str,
    function: Verb,
    purpose: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=function)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    if name != "schema":
        parser.add_argument(
            "--runs", type=Path, default=Path("runs"), help="folder of the runs (runs)"
        )
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gradroute import __version__

        print(f"gradroute {__version__}")
        parser.exit()
