"""Signal handling: training stops at the next step boundary, everything else at once.

SIGINT is Ctrl-C; SIGTERM and SIGUSR1 are what schedulers send before they take a machine away. Both
ways end in exit code 75, and the same command goes on. Windows has neither SIGUSR1 nor SIGALRM.
"""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_USER: signal.Signals | None = getattr(signal, "SIGUSR1", None)
_ALARM: signal.Signals | None = getattr(signal, "SIGALRM", None)
_SCHEDULER = (signal.SIGTERM,) if _USER is None else (signal.SIGTERM, _USER)
_AGAIN = 0.01  # seconds after which an interruption that was swallowed is tried again


class _Interruption(KeyboardInterrupt):
    """A KeyboardInterrupt, but for its type.

    Python remembers one of exactly that type that has passed through `exec` of a text, as imports
    do, and kills itself with SIGINT in the end, whatever the exit code was to be.
    """


class StopRequest:
    """Set by a signal, read at step boundaries.

    Attributes:
        requested: Whether a signal has asked for a stop.
    """

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGUSR1 ask for a stop; a SIGINT after one of them leaves at once.

    The handlers that were there come back afterwards. Outside of the main thread signals belong to
    somebody else, and nothing is ever requested.
    """
    stop = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise _Interruption
        stop.requested = True

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, *_SCHEDULER):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread
        pass
    try:
        yield stop
    finally:
        _put_back(before)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise KeyboardInterrupt, as SIGINT does where it is not ignored.

    The first is the last that is heard, but for SIGINT, so that what is put in order on the way out
    is put in order. Handlers come back afterwards. Outside of the main thread this does nothing.

    Python swallows an exception that is raised in a destructor or in a callback of its garbage
    collector, which an import runs many of. Such an interruption is tried again, where there is an
    alarm. Compiled code may make another error of it: whatever error ends the work after a signal
    is the interruption.
    """
    heard = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        for other in _SCHEDULER:
            signal.signal(other, signal.SIG_IGN)
        raise _Interruption

    def swallowed(what: Any) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            shown(what)
            return
        if _ALARM is not None:
            before.setdefault(_ALARM, signal.signal(_ALARM, leave))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)

    before: dict[int, Any] = {}
    shown = sys.unraisablehook
    try:
        for number in _SCHEDULER:
            before[number] = signal.signal(number, leave)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, leave)
        sys.unraisablehook = swallowed
    except ValueError:  # not the main thread
        pass
    try:
        yield
    except Exception as error:
        if heard:
            raise _Interruption from error
        raise
    finally:
        sys.unraisablehook = shown
        if _ALARM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _put_back(before)


@contextmanager
def without_signals() -> Iterator[None]:
    """For last words: SIGINT, SIGTERM and SIGUSR1 are not heard; the handlers come back."""
    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, *_SCHEDULER):
            before[number] = signal.signal(number, signal.SIG_IGN)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        _put_back(before)


def _put_back(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: not set from Python, and lost
            signal.signal(number, handler)
