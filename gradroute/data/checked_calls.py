"""Calls of functions of a user's own behavior, each with its result checked."""

from collections.abc import Callable
from numbers import Real
from typing import Any

from gradroute.errors import DataError
from gradroute.system.terminal import printable


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    number: Any = value  # a Real has the comparisons, though its type does not say so
    return isinstance(value, Real) and 0 <= number <= 1


def are_two_texts(value: Any) -> bool:
    """Whether a value is a prompt and a text."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(x, str) for x in value)


def checked(
    place: str,
    function: Callable[..., Any],
    fits: Callable[[Any], bool],
    needed: str,
    *arguments: Any,
) -> Any:
    """What a function gives, if it fits; the first argument is the text to name in errors.

    Raises:
        DataError: The function raises, or gives something else.
    """
    text = f"{str(arguments[0])[:60]!r}"
    try:
        made = function(*arguments)
    except DataError:  # a sentence already
        raise
    except (Exception, SystemExit) as error:
        reason = printable(str(error)[:200])
        raise DataError(
            f"{place} raised {type(error).__name__} ({reason}) on the text {text}; fix it."
        ) from error
    if not fits(made):
        kind = type(made).__name__
        shown = f"{made!r:.60}" if isinstance(made, int | float | str) else f"something ({kind})"
        raise DataError(f"{place} gave {shown} for the text {text}; {needed} is needed.")
    return made
