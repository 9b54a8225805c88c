"""The command line: one verb, its errors as sentences, an exit code."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from types import TracebackType

from gradroute.cli.parser import parse
from gradroute.errors import GradrouteError, Interrupted, MachineError
from gradroute.system.memory import is_out_of_memory
from gradroute.system.secrets import without_hub_code
from gradroute.system.signals import interruptible, without_signals
from gradroute.system.terminal import first_line, say

_STOPPED = "interrupted. Finished work is kept; the same command goes on."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code (see `gradroute.errors`).

    A known error is one line on standard error without a traceback; `--debug` shows it.
    """
    _open_streams()
    without_hub_code()
    warnings.showwarning = _show_warning
    sys.excepthook = _show_crash
    try:
        with interruptible():  # also while the answer is told
            return _run_command(arguments)
    except KeyboardInterrupt:  # before anything had begun, or again while the first was told
        with without_signals():
            return _explain(Interrupted(_STOPPED), debug=False)


def _run_command(arguments: Sequence[str] | None) -> int:
    debug = False
    try:
        with interruptible():
            options = parse(arguments)
            debug = options.debug
            options.action(options)
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
        told = first_line(error, limit=5000) if str(error).strip() else "out of memory"
        if isinstance(error, FileNotFoundError) and error.filename is None:
            told = "the current folder no longer exists; change to one that does"
        return _explain(MachineError(f"the operating system reports an error: {told}."), debug)
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
    if not error.told_elsewhere:
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
