"""Files by chance: one is refused in words, or keeps everything but its labels."""

import csv
import io
import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradroute.data.jsonl import read_objects
from gradroute.data.labeling import Rule, behavior_scores, label_file
from gradroute.errors import DataError
from torture.drawn_files import damaged_file, valid_file

FIXTURE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FOX = behavior_scores("--regex", "regex:(?i)fox", "text")


def labeled(path: Path) -> tuple[int, Path]:
    """How many rows were labeled, and where they are."""
    out = path.with_name(f"out{path.suffix}")
    out.unlink(missing_ok=True)
    made = label_file(path, out, FOX, Rule(0.5), source={}, overwrite=True, report=None)
    return made["rows"], out


@settings(FIXTURE, max_examples=80)
@given(st.integers(0, 2**32), st.booleans())
def test_any_file_is_refused_in_words_or_keeps_all_but_its_labels(
    tmp_path: Path, seed: int, damaged: bool
):
    draw = random.Random(seed)
    content = damaged_file(draw, "jsonl") if damaged else valid_file(draw, "jsonl")[0]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    try:
        count, out = labeled(path)
    except DataError as error:
        assert str(error).startswith(str(path))
        return
    old, new = ([*read_objects(place, lambda _: None)] for place in (path, out))
    assert count == len(new)
    assert all(row.pop("label") in ("bad", "unlabeled") for _, row in new)
    assert new == [
        (line, {key: value for key, value in row.items() if key != "label"}) for line, row in old
    ]


@settings(FIXTURE, max_examples=60)
@given(
    st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.binary(max_size=3),
)
def test_any_csv_file_is_refused_in_words_or_keeps_its_fields(
    tmp_path: Path, rows: list[list[str]], end: str, junk: bytes
):
    stream = io.StringIO(newline="")
    try:
        csv.writer(stream, lineterminator=end).writerows([["text", "x"], *rows])
        content = stream.getvalue().encode() + junk
    except (UnicodeEncodeError, csv.Error):
        return
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    try:
        _, out = labeled(path)
    except DataError as error:
        assert str(error).startswith(str(path))
        return
    kept = [
        [row["text"], row["x"]]
        for row in csv.DictReader(io.StringIO(out.read_bytes().decode(), newline=""))
    ]
    assert kept[: len(rows)] == rows
