"""How much an adapter explains of an example: the score by which `find` ranks rows.

With the losses of a target token under three modes, in nats,

    full      every adapter on
    without   the behavior's adapter ablated
    alone     only the behavior's adapter on

    d = (without - full) + (without - alone)          log p_full p_alone / p_without²
    score = sum over the tokens of max(0, d) ** 1.5

The first difference is small where the other adapters learned the behavior too (few known-good
rows), the second where the adapter alone is a poor language model (many); their sum is large in
both cases. The power lies between a sum, which a relation between two words hardly changes, and a
maximum, whose tail among good rows is heavy.
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
    with_it, beside, by_itself = (np.asarray(own, float) for own in (full, without, alone))
    gain = np.maximum(2.0 * beside - with_it - by_itself, 0.0)
    tokens = gain**POWER
    return Explained(float(tokens.sum()), tokens)
