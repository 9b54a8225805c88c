"""Shapes of what a function is given and gives back are checked, each combination of shapes once.

jaxtyping and beartype check a call. What they find depends on nothing but the types, dtypes and
shapes of what goes in and comes out, so a call that has those of an earlier one is not checked
again: checking all calls would take more time than all the rest of training does.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor


def checked(made: Any) -> Any:
    """A function, or a dataclass with its `__init__`, whose calls are checked."""
    if not inspect.isclass(made):
        return _checked(made)
    if dataclasses.is_dataclass(made):
        made.__init__ = _checked(made.__init__)
    return made


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    if "{" in "".join(map(str, inspect.get_annotations(function).values())):
        return jaxtyped(function, typechecker=beartype)  # sizes that are values, not shapes
    seen: set[Any] = set()
    given_out: dict[int, Any] = {}  # thread -> what its call has given back, to be checked alone

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        me = get_ident()
        return given_out.pop(me) if me in given_out else function(*args, **kwargs)

    every_time = jaxtyped(call, typechecker=beartype)

    @functools.wraps(function)
    def once(*args: Any, **kwargs: Any) -> Any:
        going_in = (kind(args), kind(kwargs))
        if going_in not in seen:
            out = every_time(*args, **kwargs)
            seen.add(going_in)
            seen.add((going_in, kind(out)))
            return out
        out = function(*args, **kwargs)
        if (going_in, kind(out)) not in seen:
            given_out[get_ident()] = out
            try:
                every_time(*args, **kwargs)
            finally:  # arguments that the function has changed may not pass any more
                given_out.pop(get_ident(), None)
            seen.add((going_in, kind(out)))
        return out

    return once


def kind(value: Any) -> Any:
    """All of a value that a signature can speak of, as a key; of what may change, nothing equal."""
    if isinstance(value, Tensor):
        return type(value), value.dtype, value.shape
    if isinstance(value, str) or not isinstance(value, Sequence | Mapping):
        return type(value)
    if isinstance(value, tuple | list):
        return type(value), *map(kind, value)
    if isinstance(value, dict):
        return dict, *((type(key), kind(part)) for key, part in value.items())
    return object()
