"""Text for the terminal: shown literally, never obeyed, and without secrets.

A completion, a row of a data file or the message of an error may hold the sequences with which a
terminal moves its cursor, sets its title or turns the reading direction. They are shown as escapes.
"""

import os
import sys

from gradroute.system.launcher import own_rank
from gradroute.system.secrets import redact


def printable(text: str) -> str:
    """Text of a model, a file or a user on one line, safe for a terminal.

    What `str.isprintable` holds for printable stays; control characters, line breaks, marks that
    turn the reading direction, invisible characters and lone surrogates are shown as escapes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def safe_text(text: str) -> str:
    """A message for the terminal: redacted, and `printable` line by line."""
    return "\n".join(printable(line) for line in redact(text).split("\n"))


def first_line(error: BaseException, limit: int = 200) -> str:
    """What another library's error says, to quote in a sentence; its type where it says nothing.

    Args:
        error: The error.
        limit: Characters after which it is cut; secrets are taken out before.
    """
    return (redact(str(error).strip().split("\n")[0]) or type(error).__name__)[:limit]


def say(line: str) -> None:
    """A line for the user: on standard error, so that results can be piped.

    Line breaks in it are kept (for tables). Of several processes that a launcher has started for
    one run the first speaks; the others say what ends them, and which they are. Where nobody reads
    standard error any more, the line and those after it go nowhere: work does not stop for want of
    a listener.
    """
    if rank := own_rank():
        if not line.startswith(("error:", "Traceback")):
            return
        line = f"rank {rank}: {line}"
    try:
        print(safe_text(line), file=sys.stderr, flush=True)
    except OSError:  # a pipe without a reader, a full device
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
