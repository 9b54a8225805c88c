"""How much an adapter explains of an example: the score by which `find` ranks rows.

With the losses of a target token under three modes, in nats,

    full      every adapter on
    without   the behavior's adapter ablated
    alone     only the behavior's adapter on

    gain = without - max(full, alone)
    score = sum over the tokens of max(0, gain) ** 1.5

A token counts as far as the adapter explains it both beside the other adapters and by itself. The
first difference alone also shows what the others left to it by chance; the second alone, how much
better a language model it is than what remains. The power lies between a sum, which a relation
between two words hardly changes, and a maximum, whose tail among good rows is heavy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

POWER = 1.5
"""Of a token's gain in the score."""


class Explained(NamedTuple):
    """What an adapter explains of one example.

    Attributes:
        score: Sum of the tokens' shares.
        tokens: Share of each target token in the score, in order.
    """

    score: float
    tokens: Float[ndarray, " t"]


def explained(
    full: Sequence[float] | Float[ndarray, " t"],
    without: Sequence[float] | Float[ndarray, " t"],
    alone: Sequence[float] | Float[ndarray, " t"],
) -> Explained:
    """Score one example from the losses of its target tokens in nats, in float64."""
    beside, left, by_itself = (np.asarray(own, float) for own in (full, without, alone))
    gain = left - np.maximum(beside, by_itself)
    tokens = np.maximum(gain, 0.0) ** POWER
    return Explained(float(tokens.sum()), tokens)
