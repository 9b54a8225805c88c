"""The command line: verbs, nothing else. Each verb is one call into a room below.

Heavy imports live inside the verbs, so that `--help` and `schema` answer at once.
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from types import TracebackType
from typing import TYPE_CHECKING

from gradroute.cli_parser import parse
from gradroute.errors import GradrouteError, Interrupted, MachineError
from gradroute.memory import is_out_of_memory
from gradroute.terminal import printable, say
from gradroute.train.stopping import interruptible, undisturbed

if TYPE_CHECKING:
    from gradroute.folders import RunFolder
    from gradroute.measure import Asked


_STOPPED = "interrupted. What was finished is kept; the same command goes on."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code (see `gradroute.errors`).

    A known error is one line on standard error without a traceback; `--debug` shows it.
    """
    _open_streams()
    warnings.showwarning = _show_warning
    sys.excepthook = _show_crash
    try:
        with interruptible():  # also while the answer is told
            return _answer(arguments)
    except KeyboardInterrupt:  # before anything had begun, or again while the first was told
        with undisturbed():
            return _explain(Interrupted(_STOPPED), debug=False)


def _answer(arguments: Sequence[str] | None) -> int:
    debug = False
    try:
        with interruptible():
            options = parse(arguments)
            debug = options.debug
            _VERBS[options.verb](options)
            sys.stdout.flush()
    except GradrouteError as error:
        return _explain(error, debug)
    except KeyboardInterrupt:
        return _explain(Interrupted(_STOPPED), debug)
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing to say, and nobody to say it to.
        _close_output()
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise  # a fault of the program: the traceback is what helps
        _close_output()
        told = str(error).strip().split("\n")[0] or "out of memory"
        if isinstance(error, FileNotFoundError) and error.filename is None:
            told = "the current folder is gone; change to one that is there"
        return _explain(MachineError(f"the machine refuses: {told}."), debug)
    return 0


def _open_streams() -> None:
    """Standard streams that were closed lead nowhere; a file must not get one's number.

    A character that a stream's encoding does not have is written as its escape.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):  # standard error does so by itself
        sys.stdout.reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """What is still held back for a standard output that refuses it goes nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: GradrouteError, debug: bool) -> int:
    if debug:
        say(traceback.format_exc().rstrip())
    say(f"error: {error}")
    return error.exit_code


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
) -> None:
    if issubclass(category, UserWarning):
        say(f"note: {message}")


def _show_crash(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """A fault of the program: the traceback helps, and holds no secrets."""
    say("".join(traceback.format_exception(kind, error, where)).rstrip())


def _demo(options: argparse.Namespace) -> None:
    from gradroute.demo import demo

    demo(options.runs, seed=options.seed, quick=options.quick, jobs=options.jobs)


def _train(options: argparse.Namespace) -> None:
    from gradroute.config import find_config, load_config

    config = load_config(find_config(options.config), options.overrides)
    from gradroute.controls import train_with_controls

    train_with_controls(
        config,
        options.runs,
        if_exists=options.if_exists,
        bar=sys.stderr.isatty(),
        jobs=options.jobs,
        overrides=options.may_differ,
        audit=options.audit,
    )


def _eval(options: argparse.Namespace) -> None:
    folders = _folders(options)
    from gradroute.run import evaluate_runs

    evaluate_runs(folders, _asked(options), options.out or options.runs)


def _sample(options: argparse.Namespace) -> None:
    (folder,) = _folders(options)
    from gradroute.run import sample_run

    sample_run(folder, _asked(options), texts=options.prompt, count=options.count)


def _report(options: argparse.Namespace) -> None:
    folders = _folders(options)
    from gradroute.report.publish import publish

    publish(folders, options.out or options.runs, page=True)


def _plot(options: argparse.Namespace) -> None:
    (folder,) = _folders(options)
    from gradroute.report.training_plot import plot_run

    print(printable(str(plot_run(folder))))


def _geometry(options: argparse.Namespace) -> None:
    folders = _folders(options)
    from gradroute.recovery import geometry_runs

    geometry_runs(folders, options.out or options.runs)


def _recover(options: argparse.Namespace) -> None:
    (folder,) = _folders(options)
    from gradroute.recovery import recover_run

    recover_run(
        folder,
        steps=options.steps,
        learning_rate=options.learning_rate,
        examples=options.examples,
    )


def _relearn(options: argparse.Namespace) -> None:
    folders = _folders(options)
    from gradroute.attack import relearn_runs

    relearn_runs(
        folders,
        examples=options.examples,
        max_steps=options.max_steps,
        every=options.every,
        prompts=options.prompts,
    )


def _folders(options: argparse.Namespace) -> "list[RunFolder]":
    from gradroute.folders import find_run

    return [find_run(name, options.runs) for name in options.run]


def _asked(options: argparse.Namespace) -> "Asked":
    from gradroute.measure import Asked

    return Asked(tuple(options.prompts), tuple(options.mode), tuple(options.scale))


def _schema(options: argparse.Namespace) -> None:
    import json

    from gradroute.config import schema

    print(json.dumps(schema(), indent=2))


_VERBS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "train": _train,
    "eval": _eval,
    "sample": _sample,
    "report": _report,
    "plot": _plot,
    "geometry": _geometry,
    "recover": _recover,
    "relearn": _relearn,
    "schema": _schema,
}
