import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from gradroute.errors import ConfigError, NumericError
from gradroute.evaluate.sampling import SharedNoise, draw, gumbel_noise, noise_keys, philox


def choose(
    keys: Tensor,
    prompts: Sequence[int],
    logits: Tensor,
    left: Tensor | None = None,
    ended: Tensor | None = None,
    *,
    temperature: float,
    top_p: float,
) -> Tensor:
    """The tokens of the fourth step, checked."""
    sampler = SharedNoise(keys, torch.tensor(prompts), temperature=temperature, top_p=top_p)
    among = sampler.rows(torch.arange(len(prompts)) if left is None else left)
    ended = torch.zeros(len(logits), dtype=torch.bool) if ended is None else ended
    token = sampler.choose(logits, 3, among, ended)
    sampler.check()
    return token


def words(*values: int) -> list[torch.Tensor]:
    return [torch.tensor([value]) for value in values]


# From the known-answer file of Random123, the authors' own implementation.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, answer) -> None:
    assert tuple(int(word) for word in philox(words(*counter), words(*key))) == answer


def test_noise_of_a_prompt_depends_on_neither_the_others_nor_the_vocabulary() -> None:
    together = gumbel_noise(noise_keys(7, ["a", "b", "c"]), 3, 50)
    alone = gumbel_noise(noise_keys(7, ["b"]), 3, 21)
    assert torch.equal(together[1:2, :21], alone)


@pytest.mark.parametrize(("seed", "prompt", "step"), [(8, "a", 3), (7, "b", 3), (7, "a", 4)])
def test_noise_changes_with_seed_prompt_and_step(seed: int, prompt: str, step: int) -> None:
    one = gumbel_noise(noise_keys(7, ["a"]), 3, 4000)[0]
    other = gumbel_noise(noise_keys(seed, [prompt]), step, 4000)[0]
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(4000)


def test_a_key_keeps_seed_and_prompt_apart() -> None:
    assert not torch.equal(noise_keys(1, ["12"]), noise_keys(11, ["2"]))


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(noise_keys(0, [str(i) for i in range(50)]), 0, 4001).double().flatten()
    assert noise.isfinite().all()
    # P(g <= x) = exp(-exp(-x)), at points from the far lower to the far upper tail.
    for x in (-2.0, -1.0, 0.0, 1.0, 3.0, 8.0):
        wanted = math.exp(-math.exp(-x))
        found = float((noise <= x).double().mean())
        assert abs(found - wanted) < 4.5 * math.sqrt(wanted * (1 - wanted) / len(noise)) + 1e-6


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, 1.5, -torch.inf])
    count = 20_000
    keys = noise_keys(0, [str(i) for i in range(count)])
    drawn = draw(logits.expand(count, -1), gumbel_noise(keys, 5, 7), 1.0)
    wanted = logits.double().softmax(0)
    found = drawn.bincount(minlength=7).double() / count
    assert ((found - wanted).abs() <= 4.5 * (wanted * (1 - wanted) / count).sqrt()).all()


@given(
    seed=st.integers(0, 10**6),
    top_p=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.95, 0.999]),
    scale=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
)
def test_the_nucleus_is_that_of_transformers(seed: int, top_p: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16, 100, generator=generator, dtype=torch.float64) * scale
    noise = gumbel_noise(noise_keys(seed, [str(i) for i in range(16)]), 0, 100).double()
    warped = TopPLogitsWarper(top_p)(None, logits)  # pyright: ignore[reportArgumentType]
    assert torch.equal(draw(logits, noise, top_p), (warped + noise).argmax(-1))


def test_equally_probable_tokens_stay_in_the_nucleus_together() -> None:
    logits = torch.zeros(200, 4)
    noise = gumbel_noise(noise_keys(0, [str(i) for i in range(200)]), 0, 4)
    assert set(draw(logits, noise, 0.1).tolist()) == {0, 1, 2, 3}


def test_a_colder_temperature_comes_closer_to_the_most_probable_token() -> None:
    logits = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
    keys = noise_keys(0, [str(i) for i in range(400)])
    best = logits.argmax(-1)
    hits = []
    for temperature in (2.0, 1.0, 0.3, 0.0):
        chosen = choose(keys, range(400), logits, temperature=temperature, top_p=1.0)
        hits.append(int((chosen == best).sum()))
    assert hits == sorted(hits)
    assert hits[-1] == 400


def test_rows_of_one_prompt_share_its_noise_whichever_rows_are_left() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    keys = noise_keys(0, ["a", "b", "c"])
    prompts = [0, 1, 2, 0, 1, 2]
    chosen = choose(keys, prompts, logits.repeat(2, 1), temperature=1.0, top_p=0.9)
    assert torch.equal(chosen[:3], chosen[3:])
    left = torch.tensor([1, 4, 5])
    fewer = choose(keys, prompts, logits[[1, 1, 2]], left, temperature=1.0, top_p=0.9)
    assert torch.equal(fewer, chosen[left])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error(temperature: float, broken: float) -> None:
    logits, keys = torch.tensor([[0.0, broken, 1.0]]), noise_keys(0, ["a"])
    with pytest.raises(NumericError, match="not finite"):
        choose(keys, [0], logits, temperature=temperature, top_p=0.9)
    ended = torch.tensor([True])  # nobody reads what it writes
    choose(keys, [0], logits, ended=ended, temperature=temperature, top_p=0.9)


@pytest.mark.parametrize(
    ("temperature", "top_p", "told"),
    [(-1.0, 0.9, "temperature is -1"), (math.nan, 0.9, "temperature"), (1.0, 0.0, "top_p is 0")],
)
def test_settings_out_of_range_are_refused(temperature: float, top_p: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        choose(noise_keys(0, ["a"]), [0], torch.zeros(1, 3), temperature=temperature, top_p=top_p)
