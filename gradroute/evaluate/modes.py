"""Ablation modes on a command line: by name, by scales, and as scale curves.

A curve takes one adapter (or `all` of them together) through a row of scales and leaves the others
at 1: `bad=0,0.1,...,1`. Every point of it is an ablation mode of its own. Nothing here needs torch.
"""

import difflib
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from gradroute.errors import ConfigError
from gradroute.routing.policy import AblationMode, named_mode

ALL = "all"
"""In a curve, the name for all adapters together: the shrinkage of the whole update."""
MOST_SCALES = 101
"""A curve of more scales than this is taken for a slip of the pen."""

_DOTS = ("...", "…")


def read_modes(
    modes: Sequence[str], curves: Sequence[str], adapters: Sequence[str]
) -> list[AblationMode]:
    """The modes that were asked for, each once, in the order in which they were named.

    Scales that are those of a standard mode get its name (`bad=0` is `bad_ablated`), all others one
    way of writing, so that one and the same mode is measured once.

    Args:
        modes: Texts of `AblationMode.parse`.
        curves: Texts such as `bad=0,0.1,...,1`; three dots (or an ellipsis) go on with the step
            before them to the number after them.
        adapters: The adapters of the model.

    Raises:
        ConfigError: A mode or a curve cannot be read, or names an unknown adapter.
    """
    found = [AblationMode.parse(mode, adapters) for mode in modes]
    twofold = ("=", "_alone")  # of two adapters, good_alone is bad_ablated
    found = [
        named_mode(mode.scales) if any(sign in mode.name for sign in twofold) else mode
        for mode in found
    ]
    for curve in curves:
        found += _curve(curve, adapters)
    return list({mode.name: mode for mode in found}.values())


def _curve(text: str, adapters: Sequence[str]) -> list[AblationMode]:
    name, _, numbers = (part.strip() for part in text.partition("="))
    if not numbers:
        raise ConfigError(
            f"the scale curve {text!r} cannot be read; write an adapter (or {ALL}) and its scales, "
            "as in bad=0,0.1,...,1."
        )
    if name != ALL and name not in adapters:
        near = difflib.get_close_matches(name, [*adapters, ALL], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"the scale curve {text!r} names the adapter {name!r}, which does not exist{hint}; the "
            f"adapters are {', '.join(adapters)}, and {ALL} stands for all of them together."
        )
    moved = adapters if name == ALL else [name]
    rest = dict.fromkeys(adapters, 1.0)
    return [named_mode(rest | dict.fromkeys(moved, scale)) for scale in _scales(text, numbers)]


def _scales(text: str, numbers: str) -> list[float]:
    """The numbers of a curve with its dots filled in; in decimals, so that 0.3 is 0.3."""
    scales: list[Decimal] = []
    dots = False
    for word in (word.strip() for word in numbers.split(",")):
        if word in _DOTS and not dots:
            dots = True
            continue
        number = _decimal(text, word)
        scales += _between(text, scales, number) if dots else []
        scales.append(number)
        dots = False
    if dots:
        raise ConfigError(f"the scale curve {text!r} ends with dots; give its last scale.")
    if len(scales) > MOST_SCALES:
        raise _too_many(text)
    # Adding 0 makes -0 a 0.
    return [float(scale) + 0.0 for scale in scales]


def _decimal(text: str, word: str) -> Decimal:
    try:
        number = Decimal(word)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ConfigError(
            f"the scale curve {text!r} contains {word!r}; numbers with commas between them are "
            f"needed, and dots to continue with the step before them, as in 0,0.1,...,1."
        )
    return number


def _between(text: str, scales: Sequence[Decimal], end: Decimal) -> list[Decimal]:
    """What the dots stand for: the numbers strictly between the last one and `end`."""
    if len(scales) < 2:
        raise ConfigError(
            f"the dots in the scale curve {text!r} need two numbers before them, whose difference "
            "is the step, as in 0,0.1,...,1."
        )
    last, step = scales[-1], scales[-1] - scales[-2]
    try:
        count = (end - last) / step if step else Decimal(0)
    except ArithmeticError:  # a step so small that the count overflows
        raise _too_many(text) from None
    if count > MOST_SCALES:
        raise _too_many(text)
    if count < 1 or count % 1:
        raise ConfigError(
            f"the dots in the scale curve {text!r} continue from {last} in steps of {step}, which "
            f"do not reach {end}."
        )
    return [last + step * i for i in range(1, int(count))]


def _too_many(text: str) -> ConfigError:
    return ConfigError(
        f"the scale curve {text!r} has more than {MOST_SCALES} scales; take a larger step."
    )
