"""Hundreds of data files, whole and damaged: read as they stand, or refused with file and line."""

import random
from pathlib import Path

from torture.drawn_files import damaged_file, valid_file
from torture.files import trials
from torture.slow_reader import Known, read


def test_no_file_is_read_as_anything_but_what_it_says(tmp_path: Path):
    outcome = trials(600, 100, tmp_path)
    assert outcome["failures"] == []
    assert (outcome["tracebacks"], outcome["label_changes"], outcome["without_line"]) == (0, 0, 0)
    assert outcome["trials"] == 600 and outcome["read"] + outcome["refused"] == 1200
    assert outcome["valid"] >= 180 and outcome["refused"] >= 300
    assert outcome["skipped_rows"] >= 100 and outcome["prepared"] >= 5


def test_the_same_seed_draws_the_same_files_and_another_seed_others():
    files = [
        [(valid_file(draw, kind)[0], damaged_file(draw, kind)) for kind in ["jsonl", "csv"] * 10]
        for draw in (random.Random("0:1"), random.Random("0:1"), random.Random("0:2"))
    ]
    assert files[0] == files[1] != files[2]


def test_the_slow_reader_reads_what_is_written_by_hand():
    """Only a reader that is itself right is a measure of another."""
    fine = b'{"text": "a", "label": "bad", "id": 7}\n'
    assert read(fine, skip=False, limit=99).rows == [Known("7", "a", "", "bad", "bad")]
    for wrong in (b'{"text": "b", "label": true}', b'{"text": 1}', b"[]", b'{"text": "b"', b"\xff"):
        assert read(fine + wrong, skip=False, limit=99).line == 2
    assert read(fine + b'{"text": 1}\n', skip=True, limit=99).skipped == [2]
    assert read(fine + b'{"text": "b"}\n', skip=True, limit=99).line == 2
    assert read(b'{"text": "b"}\n' + fine[:-9], skip=True, limit=99).line == 1
    assert read(fine + fine, skip=True, limit=99).line == 2
    assert read(fine, skip=True, limit=len(fine) - 1).line == 1


def test_the_slow_reader_reads_csv_that_is_written_by_hand():
    fine = b'text,label,spans\n"a, ""b""\n",bad,"[[0, 1, ""good""]]"\nc,good,\n'
    [one, two] = read(fine, skip=False, limit=99, csv=True).rows or []
    assert (one.text, one.label, one.spans) == ('a, "b"\n', "bad", ((0, 1, "good"),))
    assert two == Known(two.id, "c", "", "good", "good")
    for wrong in (b"d\n", b"d,bad,,\n", b'"d,bad,\n', b'd" x,bad,\n', b"d,Bad,\n", b"\xff,bad,\n"):
        assert read(fine + wrong, skip=False, limit=99, csv=True).line == 5
    for broken in (b'"d,bad,\n', b'd" x,bad,\n', b"d\r,bad,\n"):
        assert read(fine + broken, skip=True, limit=99, csv=True).line == 5
    assert read(fine + b"d\n", skip=True, limit=99, csv=True).skipped == [5]
    labels = {"bad": "good", "good": "bad"}
    [one, two] = read(fine, skip=False, limit=99, csv=True, labels=labels).rows or []
    assert (one.label, one.spans, two.label) == ("good", ((0, 1, "bad"),), "bad")
