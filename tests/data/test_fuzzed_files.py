"""Files put together piece by piece: one that is read wrongly is found in its smallest form.

`torture/files.py` draws many more and larger ones; these shrink.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradroute.data.jsonl import MAX_ROW_BYTES
from gradroute.data.reading import read_examples
from gradroute.errors import DataError
from torture.drawn_files import PIECES, SPANS, VALUES
from torture.files import MAPS, wrong_readings
from torture.slow_reader import read

FIXTURE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
values = st.sampled_from(["A fox.", "b", "\u2028", "bad", "good", "unlabeled", *VALUES, *SPANS])
fields = ["text", "label", "true_label", "prompt", "id", "Label", "source", "weight", "spans"]
rows = st.dictionaries(st.sampled_from([*fields, "completion", "messages"]), values)
usual_rows = st.builds(
    lambda text, row: {"text": f"{text} fox", **row},
    st.integers(0, 3),
    st.fixed_dictionaries(
        {}, optional={"label": st.sampled_from(["good", "bad"]), "id": st.integers(0, 3)}
    ),
)


def lines(some: list[dict[str, Any]], ends: list[bytes]) -> list[bytes]:
    texts = [json.dumps(row).replace("Infinity", "1e999").encode() for row in some]
    return [text + end for text, end in zip(texts, ends, strict=False)]


def pieces(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for start, gone, new in changes:
        start %= len(content) + 1
        content = content[:start] + new + content[start + gone :]
    return content


contents = st.builds(
    lambda some, ends, changes: pieces(b"".join(lines(some, ends)), changes),
    st.lists(rows | usual_rows, max_size=5),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n"]), min_size=5, max_size=5),
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 9), st.sampled_from(PIECES)), max_size=2
    ),
)


@settings(FIXTURE, max_examples=150)
@given(contents, st.sampled_from([MAX_ROW_BYTES, MAX_ROW_BYTES, 60]), st.sampled_from(MAPS))
def test_a_file_is_read_as_it_stands_or_refused_with_file_and_line(
    tmp_path: Path, content: bytes, limit: int, labels
):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert list(wrong_readings(path, content, limit, Counter(), labels)) == []


csv_contents = st.builds(
    lambda head, rows, changes: pieces("\n".join([head, *map(",".join, rows)]).encode(), changes),
    st.sampled_from(["text,label", "text,label,weight", "label,text,spans", "prompt,completion"]),
    st.lists(
        st.lists(
            st.sampled_from(
                ["a", "bad", "good", "", '"a, ""b"""', '"c\n"', "0", '"[[0,1,""bad""]]"']
            ),
            min_size=2,
            max_size=3,
        ),
        max_size=4,
    ),
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.integers(0, 3),
            st.sampled_from([b'"', b",", b"\n", b"\r", b"\xff", b";", b" ", b"\0"]),
        ),
        max_size=2,
    ),
)


@settings(FIXTURE, max_examples=100)
@given(csv_contents, st.sampled_from(MAPS))
def test_a_csv_file_is_read_as_it_stands_or_refused_with_file_and_line(
    tmp_path: Path, content: bytes, labels
):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    assert list(wrong_readings(path, content, MAX_ROW_BYTES, Counter(), labels)) == []


@settings(FIXTURE, max_examples=150)
@given(
    st.lists(usual_rows, max_size=5), st.lists(rows, max_size=3), st.randoms(use_true_random=False)
)
def test_skipping_bad_rows_is_reading_the_file_without_them(tmp_path: Path, fine, odd, draw):
    """Ids, labels and order of the other rows do not know of them."""
    some = lines([*fine, *odd], [b"\n"] * 9)
    draw.shuffle(some)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(some))
    try:
        skipping = read_examples(path, skip_bad_rows=True)
    except DataError:
        return
    gone = {row.line for row in skipping.skipped}
    path.write_bytes(b"".join(b"\n" if n in gone else row for n, row in enumerate(some, 1)))
    without = read_examples(path)
    assert skipping.examples == without.examples
    assert (skipping.labeled, skipping.true_labeled) == (without.labeled, without.true_labeled)
    assert skipping.notes[bool(gone) :] == without.notes
    assert read(path.read_bytes(), skip=False, limit=MAX_ROW_BYTES).rows is not None
