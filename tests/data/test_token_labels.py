"""Spans and context of a text, in characters, become labels and gaps of its tokens."""

import pytest
from byte_tokenizer import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import PreTrainedTokenizerFast, PythonBackend

from gradroute.data.batches import IGNORED, TokenizedExample, TokenizeReport, tokenize
from gradroute.data.examples import Example, Span
from gradroute.errors import DataError

BYTES = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
BARE = byte_tokenizer()
LABELS = ("bad", "unlabeled", "good")
BAD, UNLABELED, GOOD = range(3)


def tokens(
    example: Example, tokenizer: Tokenizer = BYTES, max_length: int = 64
) -> TokenizedExample:
    return tokens_and_report(example, tokenizer, max_length)[0]


def tokens_and_report(
    example: Example, tokenizer: Tokenizer = BYTES, max_length: int = 64
) -> tuple[TokenizedExample, TokenizeReport]:
    label_id = LABELS.index(example.label)
    [row], report = tokenize([example], tokenizer, [label_id], max_length, LABELS)
    return row, report


def test_a_position_has_the_label_of_the_token_that_it_predicts():
    row = tokens(Example("a", "wxyz", "pq", spans=(Span(1, 3, "bad"),)))
    # <s> p q w x y z </s>: the positions before x and y are those of w and x.
    assert row.label_ids == tuple([UNLABELED] * 3 + [BAD, BAD] + [UNLABELED] * 3)
    assert row.target_start == 2 and row.target_count == 5


def test_the_last_position_of_a_prompt_has_the_label_of_the_first_token():
    row = tokens(Example("a", "wx", "pqr", "good", spans=(Span(0, 2, "bad"),)))
    assert row.label_ids == (GOOD, GOOD, GOOD, BAD, BAD, GOOD, GOOD)


def test_an_end_token_has_the_label_of_the_example():
    row = tokens(Example("a", "wx", spans=(Span(0, 2, "bad"),)))
    assert [row.label_ids[t] for t, target in enumerate(row.targets) if target == 1] == [UNLABELED]


def test_a_token_across_a_boundary_has_the_label_of_the_span_that_touches_it_first():
    split = Example("a", "xaby", spans=(Span(1, 2, "bad"), Span(2, 3, "good")))
    assert len(tokens(split).input_ids) == 5  # "ab" is one token
    assert tokens(split).label_ids == (UNLABELED, BAD, UNLABELED, UNLABELED, UNLABELED)
    touched = Example("a", "xaby", spans=(Span(2, 4, "good"),))
    assert tokens(touched).label_ids == (UNLABELED, GOOD, GOOD, UNLABELED, UNLABELED)


def test_every_byte_of_a_character_has_its_label():
    row = tokens(Example("a", "x日y", spans=(Span(1, 2, "bad"),)))
    assert [label == BAD for label in row.label_ids] == [False, True, True, True, *[False] * 3]


def test_an_example_whose_spans_have_its_own_label_has_no_labels_by_token():
    assert tokens(Example("a", "wx", spans=(Span(0, 1, "unlabeled"),))).label_ids == ()


def test_context_is_read_and_not_learned_and_has_the_label_of_the_example():
    example = Example("a", "abcdefgh", spans=(Span(4, 8, "bad"),), context=((2, 5),))
    row = tokens(example, BARE)
    # "ab" is one token: ab c d e f g h, and c, d, e are no targets.
    assert row.targets == [IGNORED] * 3 + [*row.input_ids[4:], IGNORED]
    assert row.gaps == ((0, 3),) and row.target_count == 3
    assert row.label_ids == (UNLABELED,) * 3 + (BAD,) * 3 + (UNLABELED,)


def test_a_token_that_is_partly_context_is_no_target():
    row = tokens(Example("a", "xaby", context=((2, 3),)))
    assert [t for t in row.targets if t != IGNORED] == [row.input_ids[1], row.input_ids[3], 1]


@pytest.mark.parametrize(
    ("example", "ends"),
    [
        (Example("a", "wx"), True),
        (Example("a", "wx", ends=True), False),
        (Example("a", "wx", context=((1, 2),)), False),
        (Example("a", "wx", context=((0, 1),)), True),
    ],
)
def test_an_end_token_is_put_unless_the_text_ends_by_itself_or_in_the_context(example, ends):
    assert (tokens(example).input_ids[-1] == 1) == ends


def test_an_example_whose_every_target_is_context_or_cut_is_left_out_and_counted():
    whole = Example("a", "wxyz", context=((0, 4),))
    cut = Example("b", "wxyz", context=((0, 3),))
    kept = Example("c", "wxyz", context=((1, 3),))
    rows, report = tokenize([whole, cut, kept], BYTES, [0, 0, 0], 4)
    assert [row.id for row in rows] == ["c"]
    assert (report.truncated, report.dropped) == (3, 2)
    assert "2 of 3 examples were left out: no token of their text remained." in report.notes


def test_spans_that_label_no_token_are_counted_and_said():
    example = Example(
        "a",
        "abxyzzz",
        spans=(Span(0, 1, "bad"), Span(1, 2, "good"), Span(2, 3, "good"), Span(5, 7, "bad")),
        context=((2, 3),),
    )
    row, report = tokens_and_report(example, max_length=5)
    assert row.label_ids == (BAD, *(UNLABELED,) * 4)
    assert (report.spans, report.lost_spans) == (4, 3)
    assert any(note.startswith("3 of 4 spans label no token") for note in report.notes)


def test_without_a_policy_spans_are_left_aside_and_context_is_not():
    example = Example("a", "wxyz", spans=(Span(0, 2, "bad"),), context=((1, 2),))
    [row], report = tokenize([example], BYTES, [0], 64)
    assert row.label_ids == () and row.target_count == 4
    assert report.spans == 0


def test_a_span_under_a_label_without_a_row_is_refused_by_name():
    example = Example("row-7", "wx", spans=(Span(0, 1, "rude"),))
    with pytest.raises(DataError, match=r"'row-7' has a span labeled 'rude'.*bad, unlabeled, g"):
        tokens(example)


class Slow(PythonBackend):
    """A tokenizer in plain Python, a token per character; it knows no offsets."""

    @property
    def vocab_size(self):
        return 300

    def get_vocab(self):
        return {chr(i): i for i in range(300)}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_tokenizer_without_offsets_serves_whole_examples_and_is_refused_by_name_for_spans():
    slow = Slow()
    assert tokens(Example("a", "wx"), slow).input_ids == (ord("w"), ord("x"))
    spans, context = (
        Example("a", "wx", spans=(Span(0, 1, "bad"),)),
        Example("a", "wx", context=((0, 1),)),
    )
    for example in (spans, context):
        with pytest.raises(DataError, match=r"'a' has (spans|context).*tokenizer Slow cannot say"):
            tokens(example, slow)


class Joined(Slow):
    """The same, and what its tokens decode to is the text."""

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def test_a_tokenizer_without_offsets_serves_prompts_and_parts_that_its_tokens_decode_to():
    prompted = Example("a", "wx", "pq")
    for slow in (Slow(), Joined()):
        row = tokens(prompted, slow)
        assert (row.target_start, row.target_count) == (1, 2)
    row = tokens(Example("a", "wxy", "pq", spans=(Span(1, 2, "bad"),)), Joined())
    assert row.label_ids == (UNLABELED, UNLABELED, BAD, UNLABELED, UNLABELED)


def test_marks_of_spaces_without_characters_belong_to_what_follows():
    vocab = {"▁": 0, "a": 1, "b": 2}
    inner = RustTokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    row = tokens(
        Example("a", "ab", "b", spans=(Span(0, 1, "bad"),)),
        PreTrainedTokenizerFast(tokenizer_object=inner),
    )
    assert row.input_ids == (0, 2, 1, 2)  # ▁ b | a b
    assert row.label_ids == (UNLABELED, BAD, UNLABELED, UNLABELED)


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.sampled_from("abcé日 "), min_size=1, max_size=12),
    st.lists(st.integers(0, 12), min_size=4, max_size=4).map(sorted),
    st.integers(3, 20),
)
def test_labels_and_gaps_are_those_of_a_character_by_character_reference(text, bounds, max_length):
    """Slow and obvious: which characters does each token stand for, and what holds there?"""
    low, high, start, end = (min(bound, len(text)) for bound in bounds)
    spans = (Span(low, high, "bad"),) if low < high else ()
    context = ((start, end),) if start < end else ()
    example = Example("a", text, spans=spans, context=context)
    rows, _ = tokenize([example, Example("b", "xy")], BYTES, [UNLABELED] * 2, max_length, LABELS)
    row = next((row for row in rows if row.id == "a"), None)
    encoded = BYTES(text, add_special_tokens=False, return_offsets_mapping=True)
    labels, targets = [], []
    for token, (first, after) in zip(encoded.input_ids, encoded["offset_mapping"], strict=True):
        within = range(first, after)
        targets.append(IGNORED if any(start <= c < end for c in within) else token)
        bad = targets[-1] != IGNORED and any(low <= c < high for c in within)
        labels.append(BAD if bad else UNLABELED)
    if end < len(text) or start >= end:
        targets, labels = [*targets, 1], [*labels, UNLABELED]
    targets, labels = targets[: max_length - 1], labels[: max_length - 1]
    if row is None:
        assert set(targets) == {IGNORED}
        return
    assert row.targets == [*targets, IGNORED]
    assert [*(row.label_ids or [UNLABELED] * len(row.input_ids))] == [*labels, UNLABELED]
