"""Texts without end: cut at the same token, in bounded memory."""

import json
import subprocess
import sys

import pytest
from byte_tokenizer import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gradroute.data.batches import TokenizedExample, tokenize
from gradroute.data.examples import Example
from gradroute.errors import DataError

FULL = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def ids(text: str) -> list[int]:
    return FULL(text, add_special_tokens=False).input_ids


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 3), st.sampled_from(["ab", "abc ", " ", "é日", "a"]))
def test_of_a_text_without_end_the_front_is_what_it_would_be(limit: int, extra: int, part: str):
    """Only the front of it is given to the tokenizer, which would need gigabytes for all of it."""
    text = (part * 30_000)[: 30_000 + extra]
    prompt = "x" * (extra * 20_000)
    row = TokenizedExample(
        "a", (0, *ids(prompt), *ids(text), 1)[:limit], len(ids(prompt)), 0, "good"
    )
    if prompt:
        with pytest.raises(DataError, match="none of 1 examples has a token of its text"):
            tokenize([Example("a", text, prompt)], FULL, [0], limit)
        return
    rows, report = tokenize([Example("a", text, prompt)], FULL, [0], limit)
    assert (rows, report.truncated) == ([row], 1)


def test_a_front_that_turns_out_short_is_made_longer():
    """A token of this one is up to a thousand spaces."""
    vocab = {" " * 2**i: i for i in range(11)} | {"x": 11}
    merges = [(" " * 2**i, " " * 2**i) for i in range(10)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)))
    text = " " * 1024 * 50 + "x" * 10
    whole = tokenizer(text, add_special_tokens=False).input_ids
    assert len(whole) == 60
    for limit in (20, 49, 50, 51, 55, 59, 60, 61):
        [row], report = tokenize([Example("a", text)], tokenizer, [0], limit)
        assert list(row.input_ids) == whole[:limit]
        assert report.truncated == (limit < 60)


def test_more_texts_than_are_tokenised_at_once_keep_their_order():
    examples = [Example(str(i), f"text {i}") for i in range(2500)]
    rows, _ = tokenize(examples, FULL, list(range(2500)), 64)
    assert [row.label_id for row in rows] == list(range(2500))
    for i in (0, 1023, 1024, 2048, 2499):
        assert list(rows[i].input_ids) == [0, *ids(f"text {i}"), 1]


MEMORY = """
import json, resource, sys
from gradroute.data.batches import tokenize
from gradroute.data.reading import read_examples
from gradroute.errors import DataError
from gradroute.models.base import embedded_model
from transformers import AutoTokenizer
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
tokenizer = AutoTokenizer.from_pretrained(embedded_model())
examples = read_examples(sys.argv[1]).examples
for limit in (128, 1_200_000):
    rows, report = tokenize(examples[:1], tokenizer, [0], limit)
    print(len(rows[0].input_ids), report.truncated)
rows, report = tokenize(examples, tokenizer, [0] * len(examples), 128)
print(len(rows), report.truncated)
try:
    read_examples(sys.argv[2])
except DataError as error:
    print(str(error).removeprefix(sys.argv[2]))
"""


@pytest.mark.slow
def test_ten_megabytes_of_text_and_a_million_tokens_fit_into_two_gigabytes(tmp_path):
    texts = [
        "a " * 1_000_000 + "b",
        "once upon a time " * 600_000,
        "é" * 5_000_000,
        "z" * 10_000_000,
    ]
    path, too_long = tmp_path / "rows.jsonl", tmp_path / "long.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(rows), encoding="utf-8")
    too_long.write_bytes(b'{"text": "' + b"x" * 40_000_000 + b'"}\n')
    command = [sys.executable, "-c", MEMORY, str(path), str(too_long)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "128 1"
    assert int(lines[1].split()[0]) >= 1_000_000 and lines[1].endswith(" 0")
    assert lines[2] == "4 4"
    assert lines[3].startswith(":1: the row is longer than 16777216 bytes: shorten it. ")
