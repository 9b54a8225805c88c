"""How much an adapter explains of an example: the score by which `find` ranks rows.

With the losses of a target token under three modes, in nats,

    full      every adapter on
    without   the behavior's adapter ablated
    alone     only the behavior's adapter on

    gain = max(0, without - max(full, alone), BESIDE * (without - full))
    score = sqrt(mean over the tokens of gain ** 2)

A token counts as far as the adapter explains it both beside the other adapters and by itself, and
to a smaller part as far as it does beside them alone: an adapter may have learned something that
shows only on top of the others. The first difference alone also shows what the others left to it by
chance; the second alone, how much better a language model it is than what remains. A root mean
square lies between the mean, which a relation between two words hardly changes, and the maximum,
which is large for some good rows too. A long row has no more room for a high score than a short
one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

BESIDE = 0.1
"""Weight of what is explained beside the other adapters alone. From 0.05 to 0.3 as much is found
where the adapter needs the others; above 0.2 less where it does not and few rows are known good."""


class Explained(NamedTuple):
    """What an adapter explains of one example.

    Attributes:
        score: In nats, 0 or above.
        tokens: Share of each target token in the score, in order; their sum is the score.
    """

    score: float
    tokens: Float[ndarray, " t"]


def explained(
    full: Sequence[float] | Float[ndarray, " t"],
    without: Sequence[float] | Float[ndarray, " t"],
    alone: Sequence[float] | Float[ndarray, " t"],
) -> Explained:
    """Score one example from the losses of its target tokens, one at least, in float64."""
    beside, left, by_itself = (np.asarray(own, float) for own in (full, without, alone))
    both = left - np.maximum(beside, by_itself)
    gain = np.maximum(np.maximum(both, BESIDE * (left - beside)), 0.0)
    squares = gain**2
    score = float(np.sqrt(squares.mean()))
    return Explained(score, squares * (score / squares.sum()) if score else squares)
