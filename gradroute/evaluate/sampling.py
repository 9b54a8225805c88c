"""Sampling with noise that depends on (seed, prompt, step, token) and on nothing else.

Modes and runs are compared on the same noise, and a completion can be computed again, alone or in
any batch, without changing the others. A token is drawn by the Gumbel-max trick: argmax of
`logits / temperature + g` with independent standard Gumbel g is a draw from the softmax. The noise
comes from the counter-based generator Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"), in integer tensor operations, so that every device draws the same bits.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradroute.errors import ConfigError, NumericError

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def noise_keys(seed: int, prompt_ids: Sequence[str]) -> Int[Tensor, "prompts 4"]:
    """Four 32-bit words per prompt, by sha256 of the seed and the prompt's id."""
    rows = []
    for prompt_id in prompt_ids:
        digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
        rows.append([int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def philox(
    counter: Sequence[Int[Tensor, "*#shape"]], key: Sequence[Int[Tensor, "*#shape"]]
) -> tuple[Int[Tensor, "*shape"], ...]:
    """Philox4x32-10: four random words from a counter of four words and a key of two.

    All tensors hold 32-bit words in int64 and broadcast against each other. A product of two words
    wraps around in int64, which leaves the lower 64 bits right; the mask removes the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32 & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def gumbel_noise(
    keys: Int[Tensor, "prompts 4"], step: int, size: int
) -> Float[Tensor, "prompts {size}"]:
    """Standard Gumbel noise in float32 for one step; token i's value does not depend on `size`.

    `g = -log(-log(1 - u))` for `u = (word + 0.5) / 2**32`: float32 is fine-grained where u is
    small, which is where g is large and decides. u stays below 1, so that g is finite.
    """
    block = torch.arange(-(-size // 4), device=keys.device)[None]
    step_word = torch.full_like(block, step)
    words = philox((block, step_word, keys[:, 2:3], keys[:, 3:4]), (keys[:, 0:1], keys[:, 1:2]))
    word = torch.stack(words, -1).flatten(1)[:, :size]
    uniform = (word.to(torch.float32) + 0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def draw(
    logits: Float[Tensor, "rows vocab"], noise: Float[Tensor, "rows vocab"], top_p: float
) -> Int[Tensor, " rows"]:
    """Gumbel-max over the nucleus: the most probable tokens that together reach `top_p`.

    A token belongs to the nucleus if the tokens more probable than it hold less than `top_p`
    (Holtzman et al. 2020, section 3.1; tokens of equal probability stay together). Instead of
    sorting the vocabulary, the winner over all tokens is checked; if it is outside, so is
    everything no more probable, and the rest is asked again. That ends at the most probable token
    at the latest and gives exactly the argmax over the nucleus.
    """
    noisy = logits + noise
    token = noisy.argmax(-1)
    if top_p >= 1:
        return token
    probabilities = logits.softmax(-1)
    rows = torch.arange(len(token), device=token.device)
    while len(rows):
        rest = probabilities[rows] if len(rows) < len(token) else probabilities
        own = rest.gather(1, token[rows, None])
        more_probable = rest > own
        outside = (rest * more_probable).sum(-1) >= top_p
        rows = rows[outside]
        if len(rows):
            noisy[rows] = noisy[rows].masked_fill(~more_probable[outside], -torch.inf)
            token[rows] = noisy[rows].argmax(-1)
    return token


class SharedNoise:
    """Chooses tokens for rows that continue prompts, with noise that belongs to the prompt.

    Rows of one prompt, such as those of several modes, are given the same noise; which other rows
    are there does not matter.

    Args:
        keys: `noise_keys` of the prompts.
        prompt_of_row: The prompt, an index into `keys`, that each row continues.
        temperature: 0 for the most probable token.
        top_p: Size of the nucleus, above 0; 1 for all tokens.

    Raises:
        ConfigError: The temperature or `top_p` is out of range.
    """

    def __init__(
        self,
        keys: Int[Tensor, "prompts 4"],
        prompt_of_row: Int[Tensor, " rows"],
        *,
        temperature: float,
        top_p: float,
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ConfigError(
                f"the sampling temperature is {temperature}; it must be a number >= 0, 0 for the "
                "most probable token."
            )
        if not 0 < top_p <= 1:
            raise ConfigError(f"top_p is {top_p}; it must be above 0 and at most 1 (no cut).")
        self.keys = keys
        self.prompt_of_row = prompt_of_row.to(keys.device)
        self.temperature = temperature
        self.top_p = top_p
        self._broken = torch.zeros((), dtype=torch.bool, device=keys.device)

    def rows(self, left: Int[Tensor, " left"]) -> "Among":
        """The noise of some of the rows, to be handed to `choose`."""
        prompts, place = self.prompt_of_row[left].unique(return_inverse=True)
        return Among(self.keys[prompts], place)

    def choose(
        self,
        logits: Float[Tensor, "left vocab"],
        step: int,
        among: "Among",
        ended: Bool[Tensor, " left"],
    ) -> Int[Tensor, " left"]:
        """The next token of each row; logits that are not finite are told by `check`.

        Args:
            logits: Of the next token.
            step: New tokens before this one.
            among: `rows` of these rows.
            ended: Rows whose tokens are of no interest any more.
        """
        if self.temperature == 0:
            token = logits.argmax(-1)
        else:
            noise = gumbel_noise(among.keys, step, logits.shape[1])
            token = draw(logits / self.temperature, noise[among.place], self.top_p)
        # argmax takes a NaN for the largest, so a row with a NaN shows it here.
        finite = logits.gather(1, token[:, None]).squeeze(1).isfinite()
        self._broken |= (~finite & ~ended).any()
        return token

    def check(self) -> None:
        """See that all logits so far were finite; on a device, this waits for it.

        Raises:
            NumericError: Those of a row were not.
        """
        if bool(self._broken):
            raise NumericError(
                "the model's next-token logits are not finite, so nothing can be sampled; look "
                "at the training losses of this run, or lower its learning rate."
            )


class Among(NamedTuple):
    """Some rows of a sampler: the keys of their prompts, and for each row which one is its own."""

    keys: Int[Tensor, "prompts 4"]
    place: Int[Tensor, " left"]
