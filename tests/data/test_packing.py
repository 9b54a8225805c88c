"""Packed batches: every example whole, in a row with room for it, with positions of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.data.batches import IGNORED, TokenizedExample, collate, pack

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=8)


def made(lengths: list[int]) -> list[TokenizedExample]:
    return [
        TokenizedExample(
            id=str(at),
            input_ids=tuple(range(10 * at, 10 * at + length)),
            target_start=at % length,
            label_id=at % 3,
            true_label="good",
            weight=1.0 + at,
            label_ids=tuple(i % 3 for i in range(length)) if at % 2 else (),
        )
        for at, length in enumerate(lengths)
    ]


@settings(max_examples=40)
@given(LENGTHS)
def test_every_example_is_whole_in_its_place_and_all_else_is_filling(lengths: list[int]):
    rows = made(lengths)
    batch = pack(rows, 99, 12)
    assert batch.position_ids is not None and batch.token_label_ids is not None
    left = torch.ones_like(batch.input_ids, dtype=torch.bool)
    for row, (at, start, end) in zip(rows, batch.places, strict=True):
        here = (at, slice(start, end))
        assert bool(left[here].all())  # nobody else's place
        left[here] = False
        assert batch.input_ids[here].tolist() == [*row.input_ids]
        assert batch.targets[here].tolist() == row.targets
        assert batch.position_ids[here].tolist() == [*range(len(row.input_ids))]
        labels = row.label_ids or [row.label_id] * len(row.input_ids)
        assert batch.token_label_ids[here].tolist() == [*labels]
    assert set(batch.input_ids[left].tolist()) <= {99}
    assert set(batch.targets[left].tolist()) <= {IGNORED}
    assert torch.equal(batch.attention_mask == 0, left)
    # What fills a row begins anew: no example sees it, and it sees none.
    ends = {}
    for at, _, end in batch.places:
        ends[at] = max(end, ends.get(at, 0))
    for at, end in ends.items():
        assert batch.position_ids[at, end:].tolist() == [*range(batch.input_ids.shape[1] - end)]


@given(LENGTHS)
def test_an_example_goes_into_the_first_row_with_room(lengths: list[int]):
    batch = pack(made(lengths), 0, 12)
    filled: dict[int, int] = {}
    for length, (at, start, end) in zip(lengths, batch.places, strict=True):
        assert (start, end) == (filled.get(at, 0), filled.get(at, 0) + length)
        assert all(filled[earlier] + length > 12 for earlier in range(at))
        filled[at] = end
    assert max(filled.values()) <= 12


@given(LENGTHS, st.data())
def test_examples_taken_out_of_a_packed_batch_are_those_of_a_padded_one(lengths, data):
    rows = made(lengths)
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)))
    packed, padded = pack(rows, 0, 12).rows(index), collate(rows, 0).rows(index)
    assert packed.position_ids is None
    for part in ("input_ids", "attention_mask", "targets", "label_ids", "weights"):
        assert torch.equal(getattr(packed, part), getattr(padded, part)), part
    assert (packed.ids, packed.places) == (padded.ids, padded.places)
    for at, place in enumerate(packed.places):
        row = rows[int(index[at])]
        assert packed.token_label_ids is not None
        found = packed.token_label_ids[place.row, place.start : place.end].tolist()
        assert found == [*(row.label_ids or [row.label_id] * len(row.input_ids))]


def test_sums_by_example_are_those_of_its_own_positions():
    batch = pack(made([3, 4, 5, 2]), 0, 7)
    values = torch.arange(batch.input_ids.numel(), dtype=torch.float64).view(batch.input_ids.shape)
    wanted = [values[row, start:end].sum() for row, start, end in batch.places]
    assert batch.by_example(values).tolist() == [float(one) for one in wanted]


def test_an_example_that_is_longer_than_a_row_is_refused_by_name():
    with pytest.raises(ValueError, match="example '1' has 9 tokens, a row only 8"):
        pack(made([4, 9]), 0, 8)
