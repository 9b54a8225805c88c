"""Examples of like lengths in one step: each once an epoch, and less padding."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.config.run_config import find_config, load_config
from gradroute.data.order import DataOrder
from gradroute.errors import ConfigError
from gradroute.models.base import load_base
from gradroute.prepare import data_order, prepare, tokenize_examples

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60).map(tuple)
SIZES = st.integers(1, 9)
WINDOWS = st.integers(1, 5)


def order(lengths: tuple[int, ...], window: int, seed: int = 3) -> DataOrder:
    places = tuple(range(len(lengths)))
    return DataOrder(seed, len(lengths), places, window=window, lengths=lengths)


def stream(made: DataOrder, size: int, count: int) -> list[int]:
    """The first rows of all steps, one after another."""
    return [row for step in range(-(-count // size)) for row in made.batch(step, size)][:count]


@settings(max_examples=60)
@given(LENGTHS, SIZES, WINDOWS)
def test_every_example_comes_once_an_epoch(lengths, size, window):
    n = len(lengths)
    found = stream(order(lengths, window), size, 4 * n)
    for epoch in range(4):
        assert sorted(found[epoch * n : (epoch + 1) * n]) == [*range(n)]


@settings(max_examples=60)
@given(LENGTHS, SIZES, WINDOWS)
def test_a_window_has_the_examples_that_were_drawn_cut_by_length(lengths, size, window):
    n, sorted_order, plain = len(lengths), order(lengths, window), order(lengths, 0)
    first, last = 0, 4 * n // size  # whole steps of four epochs
    steps = [sorted_order.batch(step, size) for step in range(first, last)]
    drawn = [plain.batch(step, size) for step in range(first, last)]
    within = [s for s in range(last) if s * size // n == (s * size + size - 1) // n]
    assert all(steps[s] == drawn[s] for s in range(last) if s not in within)
    for epoch in range(4):
        own = [s for s in within if s * size // n == epoch]
        for at in range(0, len(own), window):
            part = own[at : at + window]
            if part[-1] == last - 1 and len(part) < window:
                continue  # the stream was cut here, not the epoch
            rows = [row for s in part for row in drawn[s]]
            wanted = sorted(rows, key=lambda row: lengths[row])
            cut = [wanted[i : i + size] for i in range(0, len(wanted), size)]
            assert Counter(map(tuple, cut)) == Counter(tuple(steps[s]) for s in part)


def test_steps_of_a_window_come_in_an_order_of_their_own_by_seed_and_epoch():
    lengths = tuple(range(120))
    orders = {
        tuple(
            max(order(lengths, 10, seed).batch(step, 6)) // 6 for step in range(20 * e, 20 * e + 20)
        )
        for seed in (1, 2)
        for e in (0, 1)
    }
    assert len(orders) == 4
    assert all([*one] != sorted(one) for one in orders)


@given(LENGTHS, SIZES, st.integers(0, 40))
def test_no_window_is_the_order_as_drawn(lengths, size, step):
    bare = DataOrder(3, len(lengths), tuple(range(len(lengths))))
    assert order(lengths, 0).batch(step, size) == bare.batch(step, size)


def test_under_a_twentieth_of_the_story_corpus_is_padding_with_a_window_of_eight_steps():
    shares = {}
    base = load_base("embedded")
    for window in (0, 8):
        config = load_config(
            find_config("caps"), ["data.train_examples=256", f"train.length_window={window}"]
        )
        prepared = prepare(config)
        rows, _ = tokenize_examples(prepared.train, prepared.policy, base, config.data.max_length)
        made = data_order(prepared, rows, seed=0, front_load=0.0, length_window=window)
        size = config.train.batch_size
        lengths = [
            [len(rows[at].input_ids) for at in made.batch(step, size)]
            for step in range(len(rows) // size)
        ]
        tokens = sum(map(sum, lengths))
        shares[window] = 1 - tokens / sum(size * max(step) for step in lengths)
    assert shares[8] < 0.05 < 0.1 < shares[0]


def test_a_window_and_early_examples_are_refused_together():
    with pytest.raises(ConfigError, match=r"data\.front_load puts first"):
        load_config(None, ["train.length_window=4", "data.front_load=0.5"])
