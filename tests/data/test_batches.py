"""Tokens, targets and order: exact boundaries, no second beginning token, no lost examples."""

from collections import Counter

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.data.batches import (
    IGNORED,
    DataOrder,
    TokenizedExample,
    check_token_ids,
    collate,
    padding_id,
    tokenize,
)
from gradroute.data.examples import Example
from gradroute.errors import DataError

FULL = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
ENDS = byte_tokenizer(eos_token="</s>")
BARE = byte_tokenizer()
BEGINS = byte_tokenizer(bos_token="<s>")
ONE = byte_tokenizer(bos_token="</s>", eos_token="</s>", pad_token="</s>")  # as GPT-2 has it
TOKENIZERS = {"bos, eos, pad": FULL, "eos": ENDS, "none": BARE, "bos": BEGINS, "one": ONE}


def ids(text: str) -> list[int]:
    return BARE(text, add_special_tokens=False).input_ids


def one(tokenizer, text: str, prompt: str = "", max_length: int = 64) -> TokenizedExample:
    [row], _ = tokenize([Example("a", text, prompt)], tokenizer, [0], max_length)
    return row


def targets_of(row: TokenizedExample) -> list[int]:
    """What a loss is taken on, from the definition: the tokens after each target position."""
    return [row.input_ids[t + 1] for t in range(row.target_start, len(row.input_ids) - 1)]


@pytest.mark.parametrize("prompt", ["", "Say it: "])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_example_is_beginning_prompt_text_end_with_what_the_tokenizer_has(name, prompt):
    row = one(TOKENIZERS[name], "a fox", prompt)
    begins = {"bos, eos, pad": [0], "eos": [], "none": [], "bos": [0], "one": []}
    beginning, end = begins[name], [1] if TOKENIZERS[name].eos_token else []
    assert list(row.input_ids) == beginning + ids(prompt) + ids("a fox") + end
    # Without a beginning token nothing predicts the first token of an example.
    trained = ids("a fox") + end if beginning or prompt else (ids("a fox") + end)[1:]
    assert targets_of(row) == trained
    assert row.target_count == len(trained)


def test_prompt_and_text_are_tokenised_in_one_and_a_token_of_both_is_read_and_not_learned():
    row = one(FULL, "bcd", prompt="xa")
    assert list(row.input_ids) == [0, *ids("xabcd"), 1]  # "ab" is one token
    assert targets_of(row) == [*ids("cd"), 1]


@pytest.mark.parametrize(("prompt", "text"), [("<s>Say: ", "a fox"), ("", "<s>a fox")])
def test_a_beginning_token_in_the_text_is_not_put_twice(prompt: str, text: str):
    row = one(FULL, text, prompt)
    assert Counter(row.input_ids)[0] == 1 and row.input_ids[0] == 0
    assert targets_of(row) == [*ids("a fox"), 1]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01",
        "2024-01-01T00:00:00Z",
        "1e5",
        "true",
        "a\0b\x1b[31m\x07\x7f",
        "\ufeffx",
        "e\u0301",
        "x\u2028y\u2029z\x85\x0b\x0c\r\n",
        "\u202eright",
        "日本 😀",
        "\t \n",
    ],
)
def test_the_text_that_is_trained_on_is_the_text_of_the_row(name: str, text: str):
    """Dates stay texts; control characters and separators are tokens like others."""
    tokenizer = TOKENIZERS[name]
    row = one(tokenizer, text, prompt="a")
    trained = [token for token in targets_of(row) if token > 2]  # the special ones apart
    assert tokenizer.decode(trained, clean_up_tokenization_spaces=False) == text


def test_an_end_token_in_the_text_is_not_put_twice():
    assert targets_of(one(FULL, "a fox</s>")) == [*ids("a fox"), 1]


def test_cutting_is_counted_and_a_cut_text_does_not_learn_to_end():
    examples = [Example("a", "12345678"), Example("b", "1234"), Example("c", "123", prompt="1234")]
    rows, report = tokenize(examples, FULL, [0, 1, 2], max_length=6)
    assert [list(row.input_ids) for row in rows] == [
        [0, *ids("12345")],
        [0, *ids("1234"), 1],
        [0, *ids("1234"), *ids("1")],
    ]
    assert (report.truncated, report.dropped) == (2, 0)
    assert report.notes == ("2 of 3 examples were longer than max_length and were cut.",)


def test_an_example_whose_targets_are_all_cut_is_left_out_and_counted():
    examples = [Example("a", "text", prompt="12345"), Example("b", "text", true_label="bad")]
    rows, report = tokenize(examples, FULL, [0, 7], max_length=6)
    assert [(row.id, row.label_id, row.true_label) for row in rows] == [("b", 7, "bad")]
    assert (report.truncated, report.dropped) == (1, 1)
    assert report.notes[1] == "1 of 2 examples were left out: no token of their text remained."
    with pytest.raises(DataError, match="none of 1 examples has a token of its text within max_l"):
        tokenize(examples[:1], FULL, [0], max_length=6)


def test_a_tokenizer_without_end_token_is_said():
    _, report = tokenize([Example("a", "text")], BARE, [0], 64)
    assert report.notes == ("The tokenizer has no end token: the model cannot learn to stop.",)


@settings(deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    prompt=st.text(st.characters(codec="utf-8"), max_size=12),
    max_length=st.integers(2, 40),
)
def test_what_is_trained_on_is_the_front_of_the_text(text: str, prompt: str, max_length: int):
    rows, report = tokenize(
        [Example("a", text, prompt), Example("b", "xx")], ENDS, [0, 0], max_length
    )
    whole = [*ids(prompt + text), 1]
    # The first token of all is predicted by nothing, and "ab" may be of both.
    first = len(ids(prompt)) if prompt else 1
    expected = whole[first:max_length]
    assert report.dropped == (not expected)
    if expected:
        assert targets_of(rows[0]) == expected
        assert len(rows[0].input_ids) <= max_length


def test_a_long_text_gives_no_warning_and_no_examples_give_no_rows():
    FULL.model_max_length = 4
    assert one(FULL, "much longer than four").target_count == 22  # warnings are errors here
    assert tokenize([], FULL, [], 64)[0] == []


def test_a_token_that_the_model_has_no_embedding_for_is_refused_with_both_sizes():
    rows, _ = tokenize([Example("a", "x"), Example("b", "ab")], FULL, [0, 0], 64)
    check_token_ids(rows, 260)
    with pytest.raises(DataError, match="'b' has the token id 259, but the model has only 259 emb"):
        check_token_ids(rows, 259)


def test_padding_is_the_tokenizers_own_or_the_end_token_or_any_id():
    assert [padding_id(TOKENIZERS[name], 260) for name in TOKENIZERS] == [2, 1, 0, 0, 1]


def test_a_padding_token_that_the_model_has_no_embedding_for_is_not_taken():
    """As where somebody added one to the tokenizer and never to the model."""
    added = byte_tokenizer(eos_token="</s>")
    added.add_special_tokens({"pad_token": "[PAD]"})
    assert (added.pad_token_id, padding_id(added, 261), padding_id(added, 260)) == (260, 260, 1)


# -------------------------------------------------------------------- batches


# Plain values, made into examples in the test: the shape checker that the tests run under draws
# random numbers when an example is made, which a strategy may not.
plain_rows = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), min_size=2, max_size=9),
        st.integers(0, 7),
        st.integers(0, 2),
        st.sampled_from(["good", "bad"]),
    ),
    min_size=1,
    max_size=6,
)
Plain = list[tuple[list[int], int, int, str]]


def made(rows: Plain) -> list[TokenizedExample]:
    return [
        TokenizedExample(str(i), tuple(tokens), min(start, len(tokens) - 2), label_id, true_label)
        for i, (tokens, start, label_id, true_label) in enumerate(rows)
    ]


@given(plain_rows, st.integers(0, 9))
def test_a_batch_holds_each_example_and_masks_all_else(plain: Plain, pad_id: int):
    rows = made(plain)
    batch = collate(rows, pad_id)
    width = max(len(row.input_ids) for row in rows)
    assert batch.input_ids.shape == batch.targets.shape == (len(rows), width)
    for b, row in enumerate(rows):
        length = len(row.input_ids)
        assert batch.input_ids[b].tolist() == list(row.input_ids) + [pad_id] * (width - length)
        assert batch.attention_mask[b].tolist() == [1] * length + [0] * (width - length)
        for t in range(width):
            trained = row.target_start <= t < length - 1
            assert batch.targets[b, t].item() == (row.input_ids[t + 1] if trained else IGNORED)
        assert (batch.targets[b] != IGNORED).sum() == row.target_count > 0
    assert batch.label_ids.tolist() == [row.label_id for row in rows]
    assert batch.ids == [row.id for row in rows]
    assert batch.true_labels == [row.true_label for row in rows]


def test_an_end_token_that_is_also_padding_keeps_its_target_and_the_padding_has_none():
    rows, _ = tokenize([Example("a", "x"), Example("b", "longer")], ENDS, [0, 0], 64)
    batch = collate(rows, padding_id(ENDS, 260))
    assert batch.input_ids[0].tolist() == [*ids("x"), 1, 1, 1, 1, 1, 1]
    assert batch.targets[0].tolist() == [1] + [IGNORED] * 6
    assert batch.attention_mask[0].tolist() == [1, 1, 0, 0, 0, 0, 0]


@given(plain_rows, st.data())
def test_rows_of_a_batch_keep_all_that_belongs_to_them(plain: Plain, data: st.DataObject):
    rows = made(plain)
    batch = collate(rows, 0)
    positions = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=4))
    part = batch.rows(torch.tensor(positions, dtype=torch.long))
    assert part.ids == [batch.ids[p] for p in positions]
    assert part.true_labels == [batch.true_labels[p] for p in positions]
    assert torch.equal(part.targets, batch.targets[positions])
    masked = batch.rows(batch.label_ids == 1)
    assert masked.ids == [row.id for row in rows if row.label_id == 1]
    assert torch.equal(masked.input_ids, batch.input_ids[batch.label_ids == 1])


def test_the_kinds_of_a_batch_are_masks_that_cover_each_row_once():
    pairs = [("good", 1), ("bad", 0), ("good", 0), ("bad", 0)]
    rows = [
        TokenizedExample(str(i), (1, 2), 0, label, true) for i, (true, label) in enumerate(pairs)
    ]
    kinds = collate(rows, 0).kinds(("bad", "unlabeled"))
    assert {pair: mask.tolist() for pair, mask in kinds.items()} == {
        ("bad", "bad"): [False, True, False, True],
        ("good", "bad"): [False, False, True, False],
        ("good", "unlabeled"): [True, False, False, False],
    }
    assert list(kinds) == sorted(kinds)


def test_a_batch_moves_as_a_whole():
    moved = collate([TokenizedExample("a", (1, 2), 0, 0, "good")], 0).to("meta")
    parts = (moved.input_ids, moved.attention_mask, moved.targets, moved.label_ids)
    assert {part.device.type for part in parts} == {"meta"}
    assert (moved.ids, moved.true_labels) == (["a"], ["good"])


# -------------------------------------------------------------------- order


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> list[int]:
    return DataOrder(seed, size, tuple(range(size))).batch(step, batch_size)


@given(st.integers(0, 2**40), st.integers(1, 30), st.integers(1, 30))
def test_every_example_comes_exactly_once_an_epoch(seed: int, batch_size: int, size: int):
    steps = 3 * size // batch_size + 1
    stream = [i for step in range(steps) for i in batch_indices(seed, step, batch_size, size)]
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_step_does_not_depend_on_the_steps_before_it():
    forward = [batch_indices(7, step, 4, 10) for step in range(40)]
    assert [batch_indices(7, step, 4, 10) for step in reversed(range(40))] == forward[::-1]


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(batch_indices(seed, epoch, 50, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert tuple(range(50)) not in orders


def test_the_order_is_the_same_in_every_version():
    # Constants: a run that is resumed under a newer version must see the same data.
    assert batch_indices(0, 0, 8, 8) == [0, 4, 2, 3, 7, 5, 6, 1]
    assert batch_indices(100, 3, 5, 7) == [3, 0, 1, 4, 5]


@given(st.integers(0, 99), st.sets(st.integers(0, 39), min_size=1))
def test_what_is_left_out_does_not_move_the_others(seed: int, kept: set[int]):
    places = tuple(sorted(kept))
    whole = DataOrder(seed, 40, tuple(range(40))).batch(0, 40)
    part = DataOrder(seed, 40, places).batch(0, len(places))
    assert [places[row] for row in part] == [place for place in whole if place in kept]


def test_front_loading_brings_rows_forward_in_the_first_epoch_and_only_there():
    early = frozenset(range(0, 200, 10))
    plain = DataOrder(3, 200, tuple(range(200)))
    loaded = DataOrder(3, 200, tuple(range(200)), early, 0.5)
    first = loaded.batch(0, 200)
    assert sorted(first) == list(range(200))
    assert max(first.index(row) for row in early) < 125  # in the first half, give or take
    others = [row for row in first if row not in early]
    assert others == [row for row in plain.batch(0, 200) if row not in early]
    assert loaded.batch(1, 200) == plain.batch(1, 200)
    whole = DataOrder(3, 200, tuple(range(200)), early, 1.0)
    assert set(whole.batch(0, 20)) == early


def test_every_place_in_an_epoch_is_equally_likely():
    firsts = Counter(batch_indices(seed, 0, 1, 4)[0] for seed in range(2000))
    assert all(420 < firsts[i] < 580 for i in range(4))  # 500 with a standard deviation of 19


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch_indices(0, -1, 1, 1), "got step -1, batch_size 1, 1 rows"),
        (lambda: batch_indices(0, 0, 0, 1), "got step 0, batch_size 0, 1 rows"),
        (lambda: batch_indices(0, 0, 1, 0), "got step 0, batch_size 1, 0 rows"),
        (lambda: collate([], 0), "a batch needs at least one example"),
        (lambda: tokenize([], FULL, [1], 64), "1 label ids do not fit 0 examples"),
        (lambda: tokenize([], FULL, [], 1), "max_length must be at least 2, got 1"),
    ],
)
def test_what_makes_no_batch_is_refused_in_words(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
